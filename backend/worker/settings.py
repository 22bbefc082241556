"""What the supervisor and torchrun tell a rank through its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import LocalProtocolError
from ..parallel.compile_modes import AUTO, COMPILE_MODES


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """One rank's place in the world."""

    rank: int
    """``RANK``: 0 to ``world_size - 1``."""
    local_rank: int
    """``LOCAL_RANK``: the rank's number on its host, which picks its GPU."""
    world_size: int
    """``WORLD_SIZE``"""
    local_world_size: int
    """``LOCAL_WORLD_SIZE``: ranks on this host."""
    token: str = field(repr=False)
    """``TUTTI_TOKEN``: the incarnation's secret, shown to the broker once."""
    incarnation: str
    """``TUTTI_INCARNATION``: changes with every start of the group."""
    group_id: int
    """``TUTTI_GROUP_ID``"""
    endpoint: str
    """``TUTTI_RANK_ENDPOINT``: the broker's socket for ranks."""
    shared_folder: Path
    """``TUTTI_SHARED_FOLDER``: where all ranks of this host, and nobody else, keep what they share. It goes with the incarnation."""
    init_method: str
    """``TUTTI_INIT_METHOD``: where the ranks meet, such as ``file:///...``."""
    device_type: str
    """``TUTTI_DEVICE``: ``cpu`` or ``cuda``."""
    transport: str | None
    """``TUTTI_TRANSPORT``: how activations travel; empty leaves it to the group."""
    compile: str = AUTO
    """``TUTTI_COMPILE``: one of ``COMPILE_MODES``."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise LocalProtocolError(
                f"Start ranks with torchrun: RANK is {self.rank} and WORLD_SIZE {self.world_size}."
            )
        if self.device_type not in ("cpu", "cuda"):
            raise LocalProtocolError(f"Set TUTTI_DEVICE to cpu or cuda: it is {self.device_type!r}.")
        if self.compile not in COMPILE_MODES:
            raise LocalProtocolError(f"Set TUTTI_COMPILE to {', '.join(COMPILE_MODES)}: it is {self.compile[:40]!r}.")

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> RankSettings:
        """Read the environment, and remove the token from it, so that no child process inherits it.

        Raises:
            LocalProtocolError: a variable is missing or no number.
        """
        settings = cls(
            rank=_number(environment, "RANK"),
            local_rank=_number(environment, "LOCAL_RANK"),
            world_size=_number(environment, "WORLD_SIZE"),
            local_world_size=_number(environment, "LOCAL_WORLD_SIZE"),
            token=_text(environment, "TUTTI_TOKEN"),
            incarnation=_text(environment, "TUTTI_INCARNATION"),
            group_id=_number(environment, "TUTTI_GROUP_ID"),
            endpoint=_text(environment, "TUTTI_RANK_ENDPOINT"),
            shared_folder=Path(_text(environment, "TUTTI_SHARED_FOLDER")),
            init_method=_text(environment, "TUTTI_INIT_METHOD"),
            device_type=_text(environment, "TUTTI_DEVICE"),
            transport=environment.get("TUTTI_TRANSPORT") or None,
            compile=environment.get("TUTTI_COMPILE") or AUTO,
        )
        del environment["TUTTI_TOKEN"]
        return settings

    @property
    def device(self) -> torch.device:
        """Where this rank computes. More ranks than GPUs share the GPUs in turn."""
        if self.device_type == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % max(1, torch.cuda.device_count()))

    @property
    def ranks_on_device(self) -> int:
        """How many ranks keep weights of their own in this rank's memory: usually one on a GPU; on a CPU all map the same pages."""
        if self.device_type == "cpu":
            return 1
        devices = max(1, torch.cuda.device_count())
        return -(-self.local_world_size // devices)


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise LocalProtocolError(f"Start the daemon with `tutti serve`, which starts the ranks: {name} is not set.")
    return value


def _number(environment: Mapping[str, str], name: str) -> int:
    value = _text(environment, name)
    if not value.isdecimal():
        raise LocalProtocolError(f"{name} must be a whole number, got {value[:40]!r}.")
    return int(value)
