"""Model calls of any family for tests, drawn from a seed and handed to other processes as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.models.adapter import CallSpec, Option

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DrawnCall:
    """One model call as the adapter takes it."""

    x: Tensor
    timestep: Tensor
    conditioning: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)

    def spec(self) -> CallSpec:
        """Its shapes."""
        return CallSpec(
            x_shape=tuple(self.x.shape),
            timestep_shape=tuple(self.timestep.shape),
            conditioning={name: tuple(tensor.shape) for name, tensor in self.conditioning.items()},
            options=self.options,
        )


def draw(
    x: Shape,
    conditioning: Mapping[str, Shape],
    *,
    numbers: Mapping[str, float] | None = None,
    valid: Mapping[str, tuple[int, Shape]] | None = None,
    multiplier: float = 1.0,
    frames: bool = False,
    options: Mapping[str, Option] | None = None,
    seed: int = 1,
) -> DrawnCall:
    """A call with normal values.

    ``numbers``: one per picture, the second row has half of it, the third a third. ``valid``: masks, (tokens, valid tokens of each row),
    int64. ``frames``: a timestep per frame, the first of them 0, as image to video has it.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = x[0]
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in {"x": x, **conditioning}.items()}
    tensors = {name: drawn[name] for name in conditioning}
    tensors |= {name: value / torch.arange(1, batch + 1) for name, value in (numbers or {}).items()}
    for name, (tokens, counts) in (valid or {}).items():
        tensors[name] = (torch.arange(tokens)[None] < torch.tensor(counts)[:, None]).long()
    timestep = torch.linspace(0.7, 0.3, batch) * multiplier
    if frames:
        timestep = timestep[:, None] * (torch.arange(x[2]) > 0)
    return DrawnCall(x=drawn["x"], timestep=timestep, conditioning=tensors, options=dict(options or {}))


def write_calls(calls: Mapping[str, DrawnCall], folder: Path) -> None:
    """Two files that :func:`read_calls` reads in another process."""
    tensors: dict[str, Tensor] = {}
    for name, call in calls.items():
        parts = {"x": call.x, "timestep": call.timestep, **call.conditioning}
        # Calls may share tensors, which a file of tensors may not.
        tensors |= {
            f"{name}/{part}": tensor.clone(memory_format=torch.contiguous_format) for part, tensor in parts.items()
        }
    save_file(tensors, folder / "inputs.safetensors")
    (folder / "options.json").write_text(json.dumps({name: dict(call.options) for name, call in calls.items()}))


def read_calls(folder: Path) -> dict[str, DrawnCall]:
    """What :func:`write_calls` wrote."""
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in options}
    for key, tensor in load_file(folder / "inputs.safetensors").items():
        name, _, part = key.rpartition("/")
        parts[name][part] = tensor
    return {
        name: DrawnCall(x=found.pop("x"), timestep=found.pop("timestep"), conditioning=found, options=options[name])
        for name, found in parts.items()
    }
