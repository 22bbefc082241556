"""Presets: which codec a call uses, and how much a state keeps. ``off`` is the default, because none of the others is exact.

What is measured of them, and how: ``docs/compression.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .codecs import CODECS, Codec
from .state import StateForm

OFF: Final = "off"
AUTO: Final = "auto"
"""See :mod:`.auto`."""
AUTO_BEGINS: Final = "balanced"
"""The preset that ``auto`` begins with."""
LAYER_GROUPS: Final = 64
"""Layers that are measured, and may have a codec, apart: more than FLUX.1 (57 attentions) and Qwen-Image (60) have. Further ones share, see :func:`layer_group`."""


def layer_group(layer: int) -> int:
    """The group of a layer, which is counted from 1 as the running call counts its attentions: where there are more layers than groups,
    the 65th shares that of the first, and so on, so that no group has more than one layer more than another."""
    return (layer - 1) % LAYER_GROUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How the transfers of a trajectory are encoded."""

    name: str
    key: str
    """Codec of key frames: of the first call of a branch, and wherever bases cannot be trusted."""
    residual: str
    """Codec of all other calls."""
    residual_by_group: tuple[str, ...] = ()
    """The same for each of :data:`LAYER_GROUPS`, in place of ``residual``; empty: it is of all."""
    form: StateForm = field(default_factory=StateForm)

    def __post_init__(self) -> None:
        if len(self.residual_by_group) not in (0, LAYER_GROUPS):
            raise ValueError(
                f"Name a codec for each of {LAYER_GROUPS} groups, or none: not {len(self.residual_by_group)}."
            )
        residuals = {self.residual, *self.residual_by_group}
        for name, is_key in ((self.key, True), *((name, False) for name in sorted(residuals))):
            if CODECS[name].is_key != is_key:
                raise ValueError(f"Take a codec of {'key frames' if is_key else 'residuals'}: {name} is none.")

    def residual_of(self, group: int) -> str:
        """The codec of a layer group's residuals."""
        return self.residual_by_group[group] if self.residual_by_group else self.residual

    def codec(self, *, is_key: bool, group: int = 0) -> Codec:
        """Of one call, in one layer group."""
        return CODECS[self.key if is_key else self.residual_of(group)]


PRESETS: Final = {
    preset.name: preset
    for preset in (
        Preset(name="fast", key="key-int8", residual="int4"),
        Preset(name="balanced", key="key-int4", residual="quaternary", form=StateForm(order=2)),
        Preset(name="small", key="key-int4", residual="low-rank"),
    )
}
"""Name -> preset."""
