"""Reference latents beside the one that is sampled: how the conditioning names them, and by which methods they take part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from .inputs import Choice

REFERENCE: Final = "ref_latents."
"""Prefix of their names: ``ref_latents.0``, ``ref_latents.1``, ..."""


def references(conditioning: Mapping[str, Tensor]) -> list[Tensor]:
    """The reference latents in their order."""
    count = sum(name.startswith(REFERENCE) for name in conditioning)
    return [conditioning[f"{REFERENCE}{number}"] for number in range(count)]


def reference_method(values: tuple[str, ...]) -> Choice:
    """ComfyUI's option for where references stand among the positions, of a family that knows ``values``."""
    return Choice(name="ref_latents_method", values=values, matters_with=REFERENCE, called="the reference method")
