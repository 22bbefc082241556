"""Who takes part: names, plans and ways of compiling, as plain data that crosses to the ranks as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ...backend.parallel.plan import Plan, legal_plans
from .networks import StepModel

LABELS: Final = {"off": "eager", "blocks": "compiled", "whole": "compiled whole", "graphs": "compiled with graphs"}
"""A mode of compiling, for people."""
DIFFUSERS_MODES: Final = ("off", "blocks")

Kind = Literal["ours", "diffusers", "context parallel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contestant on one group of ranks."""

    kind: Kind
    plan: str
    mode: str

    @property
    def name(self) -> str:
        """Of its rows in the table."""
        who = {"ours": self.plan, "diffusers": "diffusers", "context parallel": f"diffusers {self.plan}"}[self.kind]
        return f"{who} {LABELS[self.mode]}"


def short(plan: Plan) -> str:
    """``ring=2,ulysses=2``: a plan without its axes of one rank."""
    parts = [part for part in str(plan).split(",") if not part.endswith("=1")]
    return ",".join(parts) or "ulysses=1"


def entries_of(ranks: int, model: StepModel, modes: Sequence[str]) -> list[Entry]:
    """Everybody on a group of this size. diffusers alone is one device's baseline, its context parallelism that of a group."""
    plans = [short(plan) for plan in legal_plans(ranks, model.heads) if plan.cfg == 1]
    ours = [Entry(kind="ours", plan=plan, mode=mode) for plan in plans for mode in modes]
    if ranks == 1:
        return [*(Entry(kind="diffusers", plan="ulysses=1", mode=mode) for mode in DIFFUSERS_MODES), *ours]
    if model.heads % ranks:
        return ours
    return [*(Entry(kind="context parallel", plan=f"ulysses={ranks}", mode=mode) for mode in DIFFUSERS_MODES), *ours]
