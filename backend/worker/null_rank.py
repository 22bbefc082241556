"""A rank without any network, for measuring everything around one: ``tutti serve --rank-module tutti.backend.worker.null_rank``.

Whatever checkpoint a job names, it is not read, its family is ``null``, and its velocity is zero. The ordinary rank module knows nothing
of this: no message, workflow or variable leads here, only the daemon's own command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..supervisor.liveness import watch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..compression.store import ResidualCall
    from ..models.adapter import CallSpec, Option
    from ..models.registry import ResidentModel
    from ..parallel.compile import Compiler
    from ..parallel.mesh import SequenceMesh

FAMILY: Final = "null"
NUM_HEADS: Final = 24
"""FLUX's number, so that the same plans are legal."""


class NullAdapter:
    """Accepts every call and answers with zeros."""

    def check(self, request: CallSpec) -> None:
        """Nothing is wrong with any call."""

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        """Nor with any numbers."""

    def answer_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of x."""
        return x_shape

    def bind(self, mesh: SequenceMesh, compiler: Compiler | None = None) -> None:
        """Nothing is split."""

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        conditioning: Mapping[str, Tensor],
        options: Mapping[str, Option],
        residuals: ResidualCall | None = None,
    ) -> Tensor:
        """Zeros like ``x``, float32."""
        return x.new_zeros(x.shape, dtype=timestep.dtype)


def load_null(path: Path, *, dtype: torch.dtype, device: torch.device, **_: Any) -> ResidentModel:
    """The null model, whatever ``path`` is."""
    from ..models.registry import ResidentModel

    return ResidentModel(
        family=FAMILY, num_heads=NUM_HEADS, dtype=dtype, device=device, size_bytes=0, adapter=NullAdapter()
    )


def main() -> None:
    """As the ordinary rank, with another loader."""
    watch()
    from .rank import run_rank

    run_rank(load_null)


if __name__ == "__main__":
    main()
