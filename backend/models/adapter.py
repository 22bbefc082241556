"""What every family offers to the rank loop: a check from shapes alone, and the velocity of one model call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..compression.store import ResidualCall
from ..parallel.compile import Compiler
from ..parallel.mesh import SequenceMesh

Option = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpec:
    """The shapes of one model call, known before any tensor arrives."""

    x_shape: tuple[int, ...]
    """The latent as the network gets it, concatenated channels included: ``[batch, channels, height, width]`` for images,
    ``[batch, channels, frames, height, width]`` for videos."""
    timestep_shape: tuple[int, ...] = ()
    """``[batch]``; ``[batch, frames]`` or ``[batch, positions, 1]`` where frames or positions have timesteps of their own. Empty means ``[batch]``."""
    conditioning: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Flat name -> shape."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Everything that is not a tensor."""

    def __post_init__(self) -> None:
        if not self.timestep_shape:
            object.__setattr__(self, "timestep_shape", self.x_shape[:1])


class Adapter(Protocol):
    """One family's network, fed with ComfyUI's transformer inputs."""

    def check(self, request: CallSpec) -> None:
        """Accept a call by its shapes, or raise ``WrongFamily``, ``BadRequest`` or ``UnsupportedInput``.

        Every rank runs it on the same request and comes to the same answer, before any of them enters a collective.
        """

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        """What shapes do not say: accept the conditioning of one branch by its numbers, or raise the same.

        Every rank runs it on every branch of a call, also on those that it will not compute.
        """

    def answer_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The velocity's shape for an x of this one, concatenated channels included or not."""

    def bind(self, mesh: SequenceMesh, compiler: Compiler | None = None) -> None:
        """Run on this mesh from now on, compiled as ``compiler`` decides; cheap, and nothing when it is the current one."""

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        conditioning: Mapping[str, Tensor],
        options: Mapping[str, Option],
        residuals: ResidualCall | None = None,
    ) -> Tensor:
        """The network's output for ``x`` in model space, float32, full size, the same bits on every rank. Collective.

        ``timestep`` is ``[batch]`` (or ``[batch, frames]``, ``[batch, positions, 1]``): sigma times the model's multiplier.
        ``denoised = x - sigma * velocity``. ``residuals``: where ranks exchange differences, what this branch's last call left.
        """
