"""FLUX.1 model calls for tests, described by numbers and drawn from a seed: the same on every rank and in every process."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.calls import DrawnCall


@dataclass(frozen=True, kw_only=True)
class FluxCall:
    """One model call; :meth:`tensors` draws its inputs."""

    height: int = 16
    width: int = 16
    tokens: int = 16
    batch: int = 1
    channels: int = 16
    context_dim: int = 64
    pooled_dim: int = 32
    """0: no pooled vector."""
    guidance: float | None = 3.5
    """Of the first row; the second has half of it, the third a third."""
    references: tuple[tuple[int, int], ...] = ()
    method: str | None = None
    seed: int = 1

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, object]) -> FluxCall:
        references = tuple((height, width) for height, width in values.pop("references"))  # type: ignore[attr-defined]
        return cls(references=references, **values)  # type: ignore[arg-type]

    def tensors(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x, timestep, conditioning (flat names), float32."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        x = draw(self.batch, self.channels, self.height, self.width)
        timestep = torch.linspace(0.7, 0.3, self.batch)
        conditioning = {"context": draw(self.batch, self.tokens, self.context_dim)}
        if self.pooled_dim:
            conditioning["pooled"] = draw(self.batch, self.pooled_dim)
        if self.guidance is not None:
            conditioning["guidance"] = self.guidance / torch.arange(1, self.batch + 1)
        for number, (height, width) in enumerate(self.references):
            conditioning[f"ref_latents.{number}"] = draw(1, self.channels, height, width)
        return x, timestep, conditioning

    def drawn(self) -> DrawnCall:
        """The same as files and other families' tests take it."""
        x, timestep, conditioning = self.tensors()
        return DrawnCall(x=x, timestep=timestep, conditioning=conditioning, options=self.options())

    def options(self) -> dict[str, str | int | float | bool]:
        return {} if self.method is None else {"ref_latents_method": self.method}
