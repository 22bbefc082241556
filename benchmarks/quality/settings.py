"""A setting: how the back end is told to compute the same pictures. On the command line ``NAME:plan=ulysses=2,dtype=BF16``.

Its exchange may be none of the product's: ``NAME:plan=ring=2,dtype=BF16,baseline=cf-2bit``, or any preset that is written out,
``NAME:plan=ring=2,dtype=BF16,preset=order=2,residual=quaternary,key=key-int8,delayed=1,int8base=0``. See :mod:`..baselines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast, get_args

from ...backend.errors import BadPlan
from ...backend.parallel.plan import Plan
from ...backend.wire.dtypes import ComputeDtype
from ..baselines import BASELINES, PRESET_PARTS, exchange_of

_OF_PLAN: Final = ("cfg", "ring", "ulysses", "schedule", "codec", "compression")
_VEHICLE: Final = "balanced"
"""The preset whose place another exchange takes: any would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the comparison."""

    name: str
    plan: Plan = field(default_factory=Plan)
    """Its size is the number of ranks."""
    dtype: ComputeDtype = "F32"
    exchange: str = ""
    """What takes the place of the plan's preset, as :func:`..baselines.exchange_of` reads it; empty: nothing."""

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
        plan: list[str] = []
        exchange: list[str] = []
        dtype = "F32"
        for part in filter(None, (piece.strip() for piece in values.split(","))):
            key, _, value = part.removeprefix("plan=").removeprefix("preset=").partition("=")
            if key in _OF_PLAN:
                plan.append(f"{key}={value}")
            elif key in PRESET_PARTS:
                exchange.append(f"{key}={value}")
            elif key == "baseline" and value in BASELINES:
                exchange.append(value)
            elif key == "dtype":
                dtype = value.upper()
            else:
                raise ValueError(
                    f"Set plan, dtype, preset or baseline ({', '.join(BASELINES)}) in a setting, "
                    f"such as plan=ulysses=2,dtype=BF16: got {part!r}."
                )
        return cls(
            name=name.strip(),
            plan=_plan_of(name, plan, is_compressed=bool(exchange)),
            dtype=cast(ComputeDtype, dtype),
            exchange=_checked(name, exchange),
        )


def _plan_of(name: str, parts: list[str], *, is_compressed: bool) -> Plan:
    try:
        plan = Plan.parse(",".join(parts)) if parts else Plan()
        if not is_compressed:
            return plan
        if plan.compression != Plan().compression:
            raise BadPlan("Set one exchange: take compression off the plan, or the baseline or preset off the setting.")
        return replace(plan, compression=_VEHICLE)
    except BadPlan as error:
        raise ValueError(f"{name}: {error}") from error


def _checked(name: str, parts: list[str]) -> str:
    """An exchange that can be read, or none."""
    text = ",".join(parts)
    if text:
        try:
            exchange_of(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return text


REFERENCE: Final = Setting(name="one rank, fp32")
"""What every other setting is compared with. It always runs, and first."""


EXCHANGES: Final = tuple(
    Setting.parse(f"{name}:plan=ring=2,dtype=F32,{exchange}")
    for name, exchange in (
        ("cf-2bit", "baseline=cf-2bit"),
        ("balanced", "compression=balanced"),
        ("cf-1bit", "baseline=cf-1bit"),
        ("binary, order 2", "preset=residual=binary,order=2"),
        ("naive-1bit", "baseline=naive-1bit"),
        ("small", "compression=small"),
        ("stale", "baseline=stale"),
        ("cf-lowrank", "baseline=cf-lowrank"),
        ("fast", "compression=fast"),
    )
)
"""What ``--exchanges`` compares, in float32: the noise of bfloat16 would hide how they differ."""

PAIRS: Final = (("balanced", "cf-2bit"), ("binary, order 2", "cf-1bit"), ("small", "stale"), ("cf-1bit", "naive-1bit"))
"""Of each, how much nearer to the reference the first is than the second. In the first two, ours takes fewer bytes of a trajectory than what it is
compared with."""


def settings_of(texts: list[str], others: Sequence[Setting] = ()) -> list[Setting]:
    """The reference, ``others`` and the settings of the command line.

    Raises:
        ValueError: one of them cannot be read, or two have one name.
    """
    settings = [REFERENCE, *others, *map(Setting.parse, texts)]
    names = [setting.name for setting in settings]
    if len(set(names)) != len(names):
        raise ValueError(f"Give every setting a name of its own: got {', '.join(names)}.")
    return settings
