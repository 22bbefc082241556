"""One model call: through the gate, cast as ComfyUI casts, into the family's adapter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.registry import ResidentModel
from ..parallel.branches import compute_branches
from ..parallel.mesh import SequenceMesh
from ..sampling.guidance import Conditioning, Options, repeat_to_batch
from .control import CallGate
from .residuals import TrajectoryResiduals

CONCAT = "concat"
"""Conditioning of this name joins x along the channels, before the network."""

Shapes = tuple[tuple[int, ...], ...]

_KEPT_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchCall:
    """One branch of one step, conditioning from :meth:`GatedNetwork.prepare`."""

    x: Tensor
    timestep: Tensor
    conditioning: Conditioning
    options: Options
    branch: Hashable
    """Which of the trajectory's branches it is: the same in every step."""


class GatedNetwork:
    """The model behind the control exchange. Every model call of a job is one call of this object, on all ranks in the same order."""

    def __init__(
        self,
        model: ResidentModel,
        gate: CallGate,
        mesh: SequenceMesh,
        when_launched: Callable[[], None] = lambda: None,
        residuals: TrajectoryResiduals | None = None,
    ) -> None:
        """``residuals``: where calls exchange differences, what the trajectory knows of earlier ones."""
        self._residuals = residuals
        self._model = model
        self._gate = gate
        self._mesh = mesh
        self._when_launched = when_launched

    @property
    def splits_branches(self) -> bool:
        """Whether branches are computed side by side, on different ranks."""
        return self._mesh.cfg.size > 1

    def each(self, calls: Sequence[BranchCall]) -> list[Tensor]:
        """The velocities of several branches, float32, on all ranks; side by side where the plan splits branches.

        Raises:
            JobCancelled, Draining: on every rank alike, between two calls.
        """

        shapes = tuple(
            sorted(tuple(call.x.shape) for call in calls)
        )  # of all: on other ranks it may be another one's turn

        def compute(index: int) -> Tensor:
            call = calls[index]
            return self(call.x, call.timestep, call.conditioning, call.options, branch=call.branch, shapes=shapes)

        return compute_branches(
            self._mesh, [self._model.adapter.answer_shape(tuple(call.x.shape)) for call in calls], compute
        )

    def prepare(self, conditioning: Conditioning, batch: int) -> dict[str, Tensor]:
        """Conditioning as the network takes it: cast to the compute dtype, repeated to the batch. Once per trajectory.

        Integers stay what they are; masks of truth values do not, as in ComfyUI.

        Raises:
            BadRequest, UnsupportedInput: the network cannot follow its masks; on every rank alike, whichever of them would compute with it.
        """
        dtype = self._model.dtype
        cast = {name: t if t.dtype in _KEPT_DTYPES else t.to(dtype) for name, t in conditioning.items()}
        repeated = {name: repeat_to_batch(tensor, batch) for name, tensor in cast.items()}
        self._model.adapter.check_values(repeated)
        return repeated

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        options: Options,
        *,
        branch: Hashable,
        shapes: Shapes | None = None,
    ) -> Tensor:
        """The velocity at ``x`` ``[batch, channels, height, width]`` as float32, for ``timestep`` float32 ``[batch]``.

        ``conditioning`` comes from :meth:`prepare`; ``x`` and concatenated channels are cast to the compute dtype, the timestep is
        not, as in ComfyUI's ``BaseModel._apply_model``. ``branch``: which of the trajectory's it is. ``shapes``: of every x that ranks are
        computing with at this time, where that may not be this one.

        Raises:
            JobCancelled, Draining: on every rank alike, instead of the call.
        """
        inputs: Mapping[str, Tensor] = conditioning
        x = x.to(self._model.dtype)
        if CONCAT in conditioning:
            x = torch.cat((x, conditioning[CONCAT]), dim=1)
            inputs = {name: tensor for name, tensor in conditioning.items() if name != CONCAT}
        self._gate.enter()
        residuals = None
        if self._residuals is not None:
            kind = self._model.family, self._model.num_heads, self._model.dtype, shapes or (tuple(x.shape),)
            residuals = self._residuals.of_call(branch, self._gate.residuals, kind)
        velocity = self._model.adapter.velocity(x, timestep, inputs, options, residuals)
        self._when_launched()
        return velocity.float()
