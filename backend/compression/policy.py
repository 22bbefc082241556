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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How the transfers of a trajectory are encoded."""

    name: str
    key: str
    """Codec of key frames: of the first call of a branch, and wherever bases cannot be trusted."""
    residual: str
    """Codec of all other calls."""
    form: StateForm = field(default_factory=StateForm)

    def __post_init__(self) -> None:
        for name, is_key in ((self.key, True), (self.residual, False)):
            if CODECS[name].is_key != is_key:
                raise ValueError(f"Take a codec of {'key frames' if is_key else 'residuals'}: {name} is none.")

    def codec(self, *, is_key: bool) -> Codec:
        """Of one call."""
        return CODECS[self.key if is_key else self.residual]


PRESETS: Final = {
    preset.name: preset
    for preset in (
        Preset(name="fast", key="key-int8", residual="int4"),
        Preset(name="balanced", key="key-int4", residual="quaternary", form=StateForm(order=2)),
        Preset(name="small", key="key-int4", residual="low-rank"),
    )
}
"""Name -> preset."""
