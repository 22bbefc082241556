"""A client's side of Evaluate trajectories on ranks without a daemon, and what such a client sends."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import Call, Evaluate, ModelRef
from tutti.backend.worker.tensors import to_wire

from tests.support.rank_leg import RankGroup, Turn


def conditioning(seed: int, *, tokens: int = 6, batch: int = 1) -> dict[str, Tensor]:
    """Of the tiny FLUX."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "context": torch.randn(batch, tokens, 64, generator=generator),
        "pooled": torch.randn(batch, 32, generator=generator),
        "guidance": torch.full((batch,), 3.5),
    }


def x_of(seed: int, batch: int = 1) -> Tensor:
    """A latent ``[batch, 16, 8, 12]``."""
    return torch.randn(batch, 16, 8, 12, generator=torch.Generator().manual_seed(seed))


class Loop:
    """A client's side of one trajectory."""

    def __init__(self, group: RankGroup, checkpoint: Path, *, dtype: str = "F32", plan: str = "") -> None:
        self.group, self.checkpoint = group, checkpoint
        self.on = ModelRef(model="diffusion_models/test.safetensors", family="flux", dtype=dtype, plan=plan)  # type: ignore[arg-type]
        self.job_id = secrets.token_hex(16)
        self.turn = 0
        self.sent: set[str] = set()

    def evaluate(
        self, calls: Sequence[tuple[Tensor, float, Mapping[str, Tensor]]], *, forget: tuple[str, ...] = ()
    ) -> Turn:
        """One turn; conditioning goes along only the first time."""
        tensors: dict[str, Tensor] = {}
        wanted = []
        for index, (x, sigma, named) in enumerate(calls):
            digest = content_digest({name: to_wire(tensor) for name, tensor in named.items()})
            wanted.append(Call(branch=f"branch {index}", conditioning=digest))
            tensors |= _inputs(index, x, sigma)
            if digest not in self.sent:
                self.sent.add(digest)
                tensors |= {f"upload.{digest}.{name}": tensor for name, tensor in named.items()}
        return self.group.run(self._next_turn(wanted), tensors, self.checkpoint, forget=forget)

    def begin_repeat(self, calls: Sequence[tuple[Tensor, float]]) -> Turn:
        """Send one more turn like the last one, which must have had no conditioning, and wait for nothing."""
        tensors: dict[str, Tensor] = {}
        for index, (x, sigma) in enumerate(calls):
            tensors |= _inputs(index, x, sigma)
        return self.group.repeat(self._next_turn([]), tensors)

    def repeat(self, calls: Sequence[tuple[Tensor, float]]) -> Turn:
        """One more turn like the last one, to its end."""
        return self.group.wait_done(self.begin_repeat(calls))

    def _next_turn(self, calls: Sequence[Call]) -> Evaluate:
        self.turn += 1
        return Evaluate(job_id=self.job_id, node_id="3", turn=self.turn - 1, on=self.on, calls=tuple(calls))


def _inputs(index: int, x: Tensor, sigma: float) -> dict[str, Tensor]:
    return {f"call.{index}.x": x, f"call.{index}.timestep": torch.full((x.shape[0],), sigma)}
