"""The parity rows of every family: what is announced in the documents is what stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tutti.backend.models.families.flux2 import Flux2
from tutti.backend.models.families.hunyuan_video import HunyuanVideo
from tutti.backend.models.families.ltx_video import LtxVideo
from tutti.backend.models.families.qwen_image import QwenImage
from tutti.backend.models.families.sd3 import Sd3
from tutti.backend.models.families.wan import Wan
from tutti.backend.models.families.z_image import ZImage
from tutti.backend.models.family import Family

from tests.support.family_parity import FamilyRow

from . import flux2, hunyuan_video, ltx_video, qwen_image, sd3, wan, z_image

ROWS: Final[Mapping[str, tuple[Family[Any], Sequence[FamilyRow]]]] = {
    "flux2": (Flux2(), flux2.ROWS),
    "wan": (Wan(), wan.ROWS),
    "sd3": (Sd3(), sd3.ROWS),
    "z_image": (ZImage(), z_image.ROWS),
    "qwen_image": (QwenImage(), qwen_image.ROWS),
    "ltx_video": (LtxVideo(), ltx_video.ROWS),
    "hunyuan_video": (HunyuanVideo(), hunyuan_video.ROWS),
}
"""FLUX.1, the first family, has a test module of its own."""
