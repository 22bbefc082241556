"""Ulysses (Jacobs et al. 2023, arXiv:2309.14509): one all-to-all turns "my tokens, all heads" into "all tokens, my heads", another one back.

Query, key and value share the first exchange. Shape letters: B batch, n tokens held by this rank, S tokens held by the whole ulysses group,
H heads, h = H / u heads per rank, D head_dim, u ranks of the ulysses axis.

Rows of the exchange are tokens, so that what arrives from the peers lies one after the other in token order, and q, k, v can be *views* of it when
they travel raw: the only copies are one into the send buffer, and one out of the received buffer on the way back. A codec takes the place of
these copies; see :mod:`.codecs`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .exchange import Exchange, Splits


def scatter_heads(
    q_BnHD: Tensor, k_BnHD: Tensor, v_BnHD: Tensor, peers_held: Sequence[int], exchange: Exchange
) -> tuple[Tensor, Tensor, Tensor]:
    """``3 x [B, n, H, D]`` -> ``3 x [B, S, h, D]`` (may be strided views). ``peers_held[i]`` is n on the i-th rank of the ulysses axis."""
    u, n = len(peers_held), q_BnHD.shape[1]
    if u == 1:
        return q_BnHD, k_BnHD, v_BnHD
    splits = Splits(sent=[n] * u, received=peers_held, parts=u, received_parts=1)
    q, k, v = exchange.all_to_all(q_BnHD, k_BnHD, v_BnHD, splits=splits)
    return q, k, v


def gather_heads(out_BShD: Tensor, peers_held: Sequence[int], own: int, exchange: Exchange) -> Tensor:
    """``[B, S, h, D]`` -> ``[B, n, H, D]`` contiguous: the way back. ``own`` is this rank's place on the ulysses axis."""
    u, n = len(peers_held), peers_held[own]
    if u == 1:
        return out_BShD.contiguous()
    splits = Splits(sent=peers_held, received=[n] * u, parts=1, received_parts=u)
    (out,) = exchange.all_to_all(out_BShD, splits=splits)
    return out
