"""Every bound of the wire format, in one place. A bound is checked before anything is allocated for what it bounds."""

from __future__ import annotations

from typing import Final

HEADER_BYTES: Final = 64 * 1024
"""Largest msgpack header."""

TENSOR_FRAMES: Final = 64
"""Most tensor frames in one message."""

TENSOR_BYTES: Final = 256 * 1024**2
"""Largest single tensor."""

MESSAGE_BYTES: Final = 512 * 1024**2
"""Largest sum of a message's tensors."""

TENSOR_DIMS: Final = 6
"""Most dimensions of a tensor."""

LATENT_DIMS: Final = 3
"""Fewest dimensions of a latent: batch, channels, and at least one more."""

DIM_SIZE: Final = 2**31 - 1
"""Largest size of one dimension."""

MANIFEST_BYTES: Final = 4 * 1024**2
"""Largest manifest frame."""

MANIFEST_ENTRIES: Final = 16_384
"""Most entries of a manifest."""

KIND_LENGTH: Final = 32
"""Longest kind of a manifest entry, in characters."""

MANIFEST_NUMBERS: Final = 8
"""Most numbers of a manifest entry."""

ARRAY_LENGTH: Final = 1_024
"""Longest array in a header."""

MAP_LENGTH: Final = 64
"""Most fields of a map in a header, most options of one part."""

STRING_BYTES: Final = HEADER_BYTES
"""Longest string in a header, in bytes; fields have tighter bounds of their own."""

NAME_LENGTH: Final = 512
"""Longest model or tensor name, in characters."""

OPTION_NAME_LENGTH: Final = 64
"""Longest name of an option, in characters."""

TEXT_LENGTH: Final = 4_096
"""Longest text for people (an error, a progress line), in characters."""

LISTED: Final = 64
"""Most jobs, and most resident models, that one message lists."""

SIGMAS: Final = 10_001
"""Most sigmas of one trajectory."""

BRANCHES: Final = 8
"""Most conditioning branches of one Sample, and most calls of one Evaluate."""

LORAS: Final = 64
"""Most LoRAs of one job."""

STORED_BYTES: Final = 8 * 1024**3
"""Largest file that a client may store in pieces."""

STORE_PIECE_BYTES: Final = 8 * 1024**2
"""Of a file that is stored in pieces: what the broker may have to hold for each Store that it has not answered."""
