"""Real ranks for a test: one process each, joined through a file store, results back as JSON and safetensors.

:func:`run_ranks` starts ``python -m <module>`` once per rank and waits. The module calls :func:`this_rank`, which joins the group,
and :meth:`Rank.finish`. Nothing listens beyond the loopback, and no process survives the call.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.parallel.group import WorkerGroup

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class RankResult:
    """What one rank handed back."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class Rank:
    """A rank's own view, inside its process."""

    rank: int
    world_size: int
    folder: Path
    arguments: dict[str, Any]
    group: WorkerGroup
    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def finish(self) -> None:
        """Write the results and leave the group."""
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in self.tensors.items()},
            self.folder / f"{self.rank}.safetensors",
        )
        (self.folder / f"{self.rank}.json").write_text(json.dumps(self.facts))
        self.group.close()


def this_rank() -> Rank:
    """Join the group that :func:`run_ranks` started this process for."""
    torch.set_num_threads(1)
    folder = Path(os.environ["TEST_RANKS_FOLDER"])
    arguments = json.loads((folder / "arguments.json").read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group = WorkerGroup.start(
        rank=rank,
        world_size=world_size,
        init_method=f"file://{folder / 'store'}",
        device=torch.device(arguments.get("device", "cpu")),
        transport=arguments.get("transport"),
    )
    return Rank(rank, world_size, folder, arguments, group)


def run_ranks(
    module: str, world_size: int, folder: Path, arguments: Mapping[str, Any], *, timeout_s: float = 100
) -> list[RankResult]:
    """Run ``module`` on ``world_size`` ranks in an empty ``folder``; raises with the ranks' stderr when one fails or time is up."""
    folder.mkdir(parents=True)
    (folder / "arguments.json").write_text(json.dumps(dict(arguments)))
    with _processes(module, world_size, folder) as ranks:
        deadline = time.monotonic() + timeout_s
        for rank, process in enumerate(ranks):
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"rank {rank} of {module} ran longer than {timeout_s} s\n{_stderr(folder, world_size)}"
                ) from None
            if code:
                raise AssertionError(f"rank {rank} of {module} ended with {code}\n{_stderr(folder, world_size)}")
    return [
        RankResult(json.loads((folder / f"{rank}.json").read_text()), load_file(folder / f"{rank}.safetensors"))
        for rank in range(world_size)
    ]


@contextlib.contextmanager
def _processes(module: str, world_size: int, folder: Path) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(world_size),
        "TEST_RANKS_FOLDER": str(folder),
        "PYTHONWARNINGS": "error",
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(world_size):
            with (folder / f"{rank}.stderr").open("wb") as stderr:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module],
                        cwd=REPOSITORY,
                        env={**environment, "RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=stderr,
                        stderr=stderr,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _stderr(folder: Path, world_size: int) -> str:
    tails = (
        f"--- rank {rank}\n{(folder / f'{rank}.stderr').read_text(errors='replace')[-3000:]}"
        for rank in range(world_size)
    )
    return "\n".join(tails)
