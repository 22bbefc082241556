"""What a phase of training needs to go on where it was stopped: parameters and optimizer state in one safetensors file.

Randomness needs no state: every step draws from generators seeded with its own number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer


class TrainingState:
    """One file of one phase."""

    def __init__(self, path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
        self._path = path
        self._modules = modules
        self._optimizers = optimizers

    def save(self, step: int, steps: int, curve: list[tuple[int, float]]) -> None:
        """Write everything after ``step`` of ``steps``; a reader sees the old file or the new one."""
        tensors: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            tensors |= {f"{name}/{key}": value.detach() for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for index, state in enumerate(self._states(optimizer)):
                tensors |= {f"{name}/{index}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        temporary = self._path.with_suffix(".part")
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
            temporary,
            metadata={"step": str(step), "steps": str(steps), "curve": json.dumps(curve)},
        )
        temporary.replace(self._path)

    def load(self, steps: int) -> tuple[int, list[tuple[int, float]]]:
        """Read everything back; returns the steps done and the curve so far. (0, []) if nothing was saved.

        Raises:
            ValueError: what was saved is of a training of another length, whose learning rates were others.
        """
        if not self._path.exists():
            return 0, []
        with safe_open(self._path, framework="pt") as file:
            metadata = file.metadata()
            if metadata.get("steps") != str(steps):
                raise ValueError(
                    f"Choose another --work folder: {self._path.name} is of a training that is not {steps} steps long."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        for name, module in self._modules.items():
            module.load_state_dict({key: tensors[f"{name}/{key}"] for key in module.state_dict()})
        for name, optimizer in self._optimizers.items():
            for index, parameter in enumerate(self._parameters(optimizer)):
                prefix = f"{name}/{index}/"
                saved = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                if saved:
                    optimizer.state[parameter] = saved
        return int(metadata["step"]), [(int(step), float(loss)) for step, loss in json.loads(metadata["curve"])]

    @staticmethod
    def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def _states(self, optimizer: Optimizer) -> list[dict[str, object]]:
        return [optimizer.state[parameter] for parameter in self._parameters(optimizer)]


def dice_of(phase: str, step: int) -> random.Random:
    """Python's randomness of one step."""
    return random.Random(f"{phase} {step}")


def generator_of(phase: str, step: int) -> torch.Generator:
    """torch's randomness of one step."""
    return torch.Generator().manual_seed(dice_of(phase, step).getrandbits(62))
