"""The axes of a plan, as process groups: cfg (outer), ring and ulysses (inner), and the ranks of one sequence for the final gather.

Meshes are built once, right after the process group, in the order of :func:`~.plan.factor_plans` on every rank: creating a
process group is collective, and another order on one rank is a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup

from ..errors import InternalError
from .plan import Plan, factor_plans
from .transport import Transport


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a mesh, seen from this rank."""

    ranks: tuple[int, ...]
    """Global ranks along the axis, in axis order."""
    index: int
    """This rank's place on the axis."""
    group: ProcessGroup | None
    """``None`` on an axis of one rank, which never communicates."""

    @property
    def size(self) -> int:
        """Ranks along the axis."""
        return len(self.ranks)

    @property
    def process_group(self) -> ProcessGroup:
        """The axis' group; an axis of one rank has none, and asking for it is a bug."""
        if self.group is None:
            raise InternalError("An axis of one rank has no process group to communicate over.")
        return self.group


@dataclass(frozen=True, slots=True)
class SequenceMesh:
    """Where this rank stands in a plan, and how it reaches the others."""

    plan: Plan
    device: torch.device
    transport: Transport
    ulysses: Axis
    ring: Axis
    sequence: Axis
    """The ranks over which one sequence is split: ring times ulysses."""
    cfg: Axis
    """The ranks that hold the same part of other branches' sequences."""

    @property
    def rank(self) -> int:
        """This rank's place among those that share its sequence."""
        return self.sequence.index

    @property
    def world_size(self) -> int:
        """Ranks over which a sequence is split."""
        return self.sequence.size


def build_meshes(
    rank: int,
    world_size: int,
    device: torch.device,
    transport: Transport,
    new_group: Callable[[list[int]], ProcessGroup],
) -> dict[Plan, SequenceMesh]:
    """One mesh for every plan of the group. Collective: every rank calls it at the same point.

    ``new_group`` creates a process group over some global ranks (:func:`torch.distributed.new_group`); a set of ranks that
    several plans share gets one group.
    """
    groups: dict[tuple[int, ...], ProcessGroup] = {}

    def axis_with(lines: list[tuple[int, ...]]) -> Axis:
        for line in lines:
            if len(line) > 1 and line not in groups:
                groups[line] = new_group(list(line))
        own = next(line for line in lines if rank in line)
        return Axis(ranks=own, index=own.index(rank), group=groups.get(own))

    return {plan: _mesh(plan, device, transport, axis_with) for plan in factor_plans(world_size)}


def _mesh(
    plan: Plan, device: torch.device, transport: Transport, axis_with: Callable[[list[tuple[int, ...]]], Axis]
) -> SequenceMesh:
    u, r = plan.ulysses, plan.ring
    each = u * r
    starts = range(0, plan.world_size, each)
    return SequenceMesh(
        plan=plan,
        device=device,
        transport=transport,
        sequence=axis_with([tuple(range(start, start + each)) for start in starts]),
        ulysses=axis_with([tuple(range(start + j * u, start + (j + 1) * u)) for start in starts for j in range(r)]),
        ring=axis_with([tuple(range(start + i, start + each, u)) for start in starts for i in range(u)]),
        cfg=axis_with([tuple(range(i, plan.world_size, each)) for i in range(each)]),
    )
