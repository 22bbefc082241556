"""What a low-rank payload looks like: its sections and their sizes.

Sections, in this order, all of one flat uint8 buffer::

    scales  float16 [4, R]            scale of U, low of U, scale of V, low of V; little endian
    U       uint8   [R, ceil(N / 2)]  two rows a byte, the even one in the low four bits
    V       uint8   [R, ceil(C / 2)]  likewise

The scales come first, so that they are aligned where the buffer is, whatever N and C; codes of a component lie together, for whoever adds one
component after another.
"""

from __future__ import annotations

from typing import Final

RANK: Final = 32
"""Components, unless asked for otherwise: 1/100 of bfloat16 for 1088 tokens of 24 heads of 128."""
GREATEST_CODE: Final = 15
"""Of four bits."""
SCALES: Final = 4
"""Numbers in float16 of each component."""
COMPONENT_BYTES: Final = 2 * SCALES
"""Of the scales of one component."""


def rank_of(rank: int, rows: int, columns: int) -> int:
    """Components of a residual ``[rows, columns]``: no more than it can have.

    Raises:
        ValueError: ``rank`` is less than one.
    """
    if rank < 1:
        raise ValueError(f"Take a rank of 1 or more: {rank} leaves nothing to send.")
    return min(rank, rows, columns)


def payload_bytes(rows: int, columns: int, rank: int = RANK) -> int:
    """Bytes of the payload of a residual ``[rows, columns]``: 66,816 for (1088, 3072) and rank 32, 100.05 times less than bfloat16."""
    return rank_of(rank, rows, columns) * _bytes_of_a_component(rows, columns)


def rank_in(size: int, rows: int, columns: int) -> int:
    """The rank of a payload of ``size`` bytes: the inverse of :func:`payload_bytes`.

    Raises:
        ValueError: no rank has that size.
    """
    rank, rest = divmod(size, _bytes_of_a_component(rows, columns))
    if rest or rank > min(rows, columns) or (not rank and min(rows, columns)):
        raise ValueError(
            f"Give a whole payload: {size} bytes are none for a base of {rows} x {columns}, "
            f"which takes {_bytes_of_a_component(rows, columns)} bytes a component."
        )
    return rank


def _bytes_of_a_component(rows: int, columns: int) -> int:
    return COMPONENT_BYTES + (rows + 1) // 2 + (columns + 1) // 2
