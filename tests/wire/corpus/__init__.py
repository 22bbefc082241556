"""Hostile messages, made by hand: each is refused, and each for the reason that stands beside it."""

from __future__ import annotations

from .fields import FIELDS
from .framing import FRAMING
from .headers import HEADERS
from .manifests import MANIFESTS
from .row import Row
from .semantics import SEMANTICS
from .tensor_rows import TENSOR_ROWS

CORPUS: tuple[Row, ...] = (*FRAMING, *HEADERS, *FIELDS, *TENSOR_ROWS, *MANIFESTS, *SEMANTICS)
