"""The parity rows of every family: what is announced in the documents is what stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tutti.backend.models.families.qwen_image import QwenImage
from tutti.backend.models.families.wan import Wan
from tutti.backend.models.family import Family

from tests.support.family_parity import FamilyRow

from . import qwen_image, wan

ROWS: Final[Mapping[str, tuple[Family[Any], Sequence[FamilyRow]]]] = {
    "wan": (Wan(), wan.ROWS),
    "qwen_image": (QwenImage(), qwen_image.ROWS),
}
"""FLUX.1, the first family, has a test module of its own."""
