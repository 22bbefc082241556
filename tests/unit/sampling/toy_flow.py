"""A small nonlinear flow model and the list of golden cases. Needs torch only: our process and ComfyUI's both load this file."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

SHAPE = (3, 4, 5, 7)
SAMPLERS = ("euler", "heun", "dpmpp_2m")


def shifted(steps: int, *, start: float = 1.0, end: float = 0.0, shift: float = 3.0) -> list[float]:
    """A falling list of ``steps + 1`` sigmas between ``start`` and ``end``, bent towards 1 as flow schedules are. In float32 values."""
    t = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    return (shift * t / (1 + (shift - 1) * t)).float().tolist()


SIGMAS = {
    "whole": shifted(8),
    "many": shifted(24),
    "one_step": shifted(1),
    "starts_below_one": shifted(6, start=0.5),
    "stops_early": shifted(5, end=0.3),
    "middle_part": shifted(4, start=0.8, end=0.2),
    "tiny_last_step": [1.0, 0.6, 0.2, 1e-4, 0.0],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    sampler: str
    sigmas: str
    dtype: str
    cfg: float = 1.0
    masked: bool = False

    @property
    def name(self) -> str:
        """Its key in the file of results."""
        return f"{self.sampler}-{self.sigmas}-{self.dtype}-cfg{self.cfg:g}{'-masked' if self.masked else ''}"


CASES = [
    *(Case(sampler=s, sigmas=k, dtype=d) for s, k, d in itertools.product(SAMPLERS, SIGMAS, ("float32", "float64"))),
    *(
        Case(sampler=s, sigmas=k, dtype=d, cfg=c, masked=m)
        for s, k, d, (c, m) in itertools.product(
            SAMPLERS, ("whole", "middle_part"), ("float32", "float64"), ((4.0, False), (1.0, True), (4.0, True))
        )
    ),
]


def inputs(dtype: str) -> dict[str, Tensor]:
    """Noise, latent and a soft mask, the same numbers in every process."""
    steps = torch.arange(SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3], dtype=torch.float64).reshape(SHAPE)
    mask = ((steps[:, :1] * 0.37).sin() * 1.5).clamp(0, 1)
    made = {"noise": (steps * 12.9898).sin() * 1.7, "latent": (steps * 4.1414).cos() * 0.8, "mask": mask}
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in made.items()}


def velocity(x: Tensor, sigma: float | Tensor, branch: int) -> Tensor:
    """A curved velocity field: every element depends on its neighbours, on sigma and on the branch."""
    mixed = x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) * x.roll(2, 1)
    return (mixed * (0.9 + 0.1 * branch) + 2.0 * sigma).tanh() * (1.2 - sigma) + 0.4 * x * sigma - 0.15 * branch


def write_cases(path: Path) -> None:
    """The cases as JSON, for the other process."""
    path.write_text(json.dumps([asdict(case) for case in CASES]))
