"""A setting: how the back end is told to compute the same pictures. On the command line ``NAME:plan=ulysses=2,dtype=BF16``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, cast, get_args

from ...backend.errors import BadPlan
from ...backend.parallel.plan import Plan
from ...backend.wire.dtypes import ComputeDtype

_OF_PLAN: Final = ("cfg", "ring", "ulysses", "schedule", "codec", "compression")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the comparison."""

    name: str
    plan: Plan = field(default_factory=Plan)
    """Its size is the number of ranks."""
    dtype: ComputeDtype = "F32"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("Give every setting a name: NAME:plan=ulysses=2,dtype=BF16.")
        if self.dtype not in get_args(ComputeDtype):
            raise ValueError(f"Choose a dtype of {', '.join(get_args(ComputeDtype))}: {self.name} has {self.dtype!r}.")

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``NAME:plan=ring=2,ulysses=2,codec=fp8,dtype=BF16``. What is left out is one rank, and float32.

        Raises:
            ValueError: it cannot be read.
        """
        name, _, values = text.partition(":")
        parts: list[str] = []
        dtype = "F32"
        for part in filter(None, (piece.strip() for piece in values.split(","))):
            key, _, value = part.removeprefix("plan=").partition("=")
            if key in _OF_PLAN:
                parts.append(f"{key}={value}")
            elif key == "dtype":
                dtype = value.upper()
            else:
                raise ValueError(f"Set plan or dtype in a setting, such as plan=ulysses=2,dtype=BF16: got {part!r}.")
        try:
            plan = Plan.parse(",".join(parts)) if parts else Plan()
        except BadPlan as error:
            raise ValueError(f"{name}: {error}") from error
        return cls(name=name.strip(), plan=plan, dtype=cast(ComputeDtype, dtype))


REFERENCE: Final = Setting(name="one rank, fp32")
"""What every other setting is compared with. It always runs, and first."""


def settings_of(texts: list[str]) -> list[Setting]:
    """The reference and the settings of the command line.

    Raises:
        ValueError: one of them cannot be read, or two have one name.
    """
    settings = [REFERENCE, *map(Setting.parse, texts)]
    names = [setting.name for setting in settings]
    if len(set(names)) != len(names):
        raise ValueError(f"Give every setting a name of its own: got {', '.join(names)}.")
    return settings
