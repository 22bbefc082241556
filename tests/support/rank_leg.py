"""A worker group without a daemon: real ranks, and this process in the broker's place on the real socket.

For what only the ranks do. Whole jobs from a client's message to its answer go through the real daemon (``tests.support.daemon``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zmq
from torch import Tensor
from tutti.backend.supervisor.liveness import Lifeline
from tutti.backend.wire.codec import Received, decode, encode
from tutti.backend.wire.messages import (
    Abort,
    Branch,
    Cancel,
    Done,
    Evaluate,
    Evaluated,
    Failed,
    Go,
    ModelRef,
    Prepare,
    Prepared,
    Preview,
    Progress,
    RankHello,
    Refused,
    Repeat,
    Result,
    Sample,
)  # fmt: skip
from tutti.backend.worker.tensors import to_torch, to_wire

REPOSITORY = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 60.0
JOB_DEADLINE_S = 60.0

MODEL = "diffusion_models/test.safetensors"
"""By the name that jobs give it."""


@dataclass
class Turn:
    """What came of one dispatch."""

    sequence: int
    job_id: str
    answer: Result | Evaluated | Failed | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    refused: dict[int, Refused] = field(default_factory=dict)
    """By rank."""
    prepared: set[int] = field(default_factory=set)
    progress: list[Progress] = field(default_factory=list)
    progress_at_s: list[float] = field(default_factory=list)
    previews: list[tuple[int, Tensor]] = field(default_factory=list)
    done: dict[int, Done] = field(default_factory=dict)
    done_at_s: dict[int, float] = field(default_factory=dict)
    went_at_s: float = 0.0
    cancelled_at_s: float = 0.0


class RankGroup:
    """The broker's side of the rank leg."""

    def __init__(self, world_size: int, folder: Path, socket: zmq.Socket[bytes]) -> None:
        self.world_size = world_size
        self.folder = folder
        self.socket = socket
        self.processes: list[subprocess.Popen[bytes]] = []
        self.hellos: dict[int, RankHello] = {}
        self._identities: dict[int, bytes] = {}
        self._sequence = 0

    @property
    def pids(self) -> list[int]:
        """As the ranks themselves say."""
        return [self.hellos[rank].pid for rank in range(self.world_size)]

    # --- one turn, in pieces ---

    def prepare(
        self,
        job: Sample | Evaluate,
        tensors: Mapping[str, Tensor],
        path: Path,
        *,
        forget: tuple[str, ...] = (),
        plan: str = "auto",
    ) -> Turn:
        """Send Prepare to every rank; the tensors go to rank 0 only."""
        self._sequence += 1
        frames = {name: to_wire(tensor) for name, tensor in tensors.items()}
        prepare = Prepare(
            sequence=self._sequence,
            path=str(path),
            fingerprint="1",
            plan=plan,
            specs=tuple(tensor.spec(name) for name, tensor in frames.items()),
            forget=forget,
            sample=job if isinstance(job, Sample) else None,
            evaluate=job if isinstance(job, Evaluate) else None,
        )
        for rank in range(self.world_size):
            self.send(rank, encode(prepare, frames if rank == 0 else None))
        return Turn(self._sequence, job.job_id)

    def repeat(self, job: Evaluate, tensors: Mapping[str, Tensor]) -> Turn:
        """Send Repeat to every rank, for a turn like the last one; the tensors go to rank 0 only."""
        self._sequence += 1
        frames = {name: to_wire(tensor) for name, tensor in tensors.items()}
        message = Repeat(sequence=self._sequence, turn=job.turn)
        for rank in range(self.world_size):
            self.send(rank, encode(message, frames if rank == 0 else None))
        return Turn(self._sequence, job.job_id)

    def wait_prepared(self, turn: Turn) -> None:
        """Until every rank has answered the Prepare."""
        while len(turn.prepared) + len(turn.refused) < self.world_size:
            self.take(turn)

    def go(self, turn: Turn) -> None:
        """Send Go to every rank."""
        turn.went_at_s = time.monotonic()
        self._send_all(Go(sequence=turn.sequence))

    def abort(self, turn: Turn) -> None:
        """Send Abort to every rank."""
        self._send_all(Abort(sequence=turn.sequence))

    def cancel(self, turn: Turn) -> None:
        """Send Cancel to rank 0."""
        turn.cancelled_at_s = time.monotonic()
        self.send(0, encode(Cancel(job_id=turn.job_id)))

    def wait_done(self, turn: Turn) -> Turn:
        """Until every rank has left the job."""
        while len(turn.done) < self.world_size:
            self.take(turn)
        return turn

    def run(self, job: Sample | Evaluate, tensors: Mapping[str, Tensor], path: Path, **more: Any) -> Turn:
        """A whole turn: three phases, or an Abort if a rank refuses."""
        turn = self.prepare(job, tensors, path, **more)
        self.wait_prepared(turn)
        if turn.refused:
            self.abort(turn)
            return turn
        self.go(turn)
        return self.wait_done(turn)

    def take(self, turn: Turn) -> None:
        """Wait for one message of a rank and put it where it belongs."""
        rank, received = self.receive()
        message, now_s = received.message, time.monotonic()
        tensors = {name: to_torch(tensor) for name, tensor in received.tensors.items()}
        if isinstance(message, Done):
            assert message.sequence == turn.sequence
            turn.done[rank], turn.done_at_s[rank] = message, now_s
        elif isinstance(message, Prepared):
            turn.prepared.add(rank)
        elif isinstance(message, Refused):
            turn.refused[rank] = message
        elif isinstance(message, Progress) and message.phase == "loading" and rank > 0:
            assert rank not in turn.prepared, f"rank {rank} loads after it was prepared"
        else:
            assert rank == 0, f"rank {rank} spoke for a job: {message}"
            assert getattr(message, "job_id", None) == turn.job_id
            if isinstance(message, Progress):
                turn.progress.append(message)
                turn.progress_at_s.append(now_s)
            elif isinstance(message, Preview):
                turn.previews.append((message.step, tensors["x0"]))
            else:
                assert isinstance(message, Result | Evaluated | Failed)
                assert turn.answer is None
                turn.answer, turn.tensors = message, tensors

    def receive(self, deadline_s: float = JOB_DEADLINE_S) -> tuple[int, Received]:
        """The next message and its rank. Fails with the ranks' logs when none comes or a rank has ended."""
        until_s = time.monotonic() + deadline_s
        while not self.socket.poll(200):
            ended = {
                rank: process.returncode for rank, process in enumerate(self.processes) if process.poll() is not None
            }
            if ended or time.monotonic() > until_s:
                raise AssertionError(f"ranks {ended} ended, or nothing came in {deadline_s:g} s\n{self.logs()}")
        identity, *frames = self.socket.recv_multipart(copy=False)
        received = decode([frame.buffer for frame in frames])
        if isinstance(received.message, RankHello):
            rank = received.message.rank
            self.hellos[rank], self._identities[rank] = received.message, identity.bytes
            return rank, received
        return next(rank for rank, known in self._identities.items() if known == identity.bytes), received

    def logs(self) -> str:
        """What the ranks wrote to stderr."""
        return "\n".join(
            f"--- rank {rank}\n{(self.folder / f'{rank}.log').read_text(errors='replace')[-4000:]}"
            for rank in range(self.world_size)
        )

    def send(self, rank: int, frames: list[Any]) -> None:
        """Anything, to one rank."""
        self.socket.send_multipart([self._identities[rank], *frames], copy=False)

    def _send_all(self, message: Go | Abort) -> None:
        for rank in range(self.world_size):
            self.send(rank, encode(message))


@contextlib.contextmanager
def running(
    world_size: int, *, module: str = "tutti.backend.worker", environment: Mapping[str, str] | None = None
) -> Iterator[RankGroup]:
    """Start ranks, wait until all of them have said hello, and stop them at the end."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir=tempfile.gettempdir()))
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger, socket.router_mandatory = 0, True
    endpoint = f"ipc://{folder}/s"
    socket.bind(endpoint)
    group = RankGroup(world_size, folder, socket)
    lifeline = Lifeline(folder / "alive")
    token, incarnation = secrets.token_hex(32), secrets.token_hex(16)
    shared = {
        "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "TUTTI_TOKEN": token, "TUTTI_INCARNATION": incarnation,
        "TUTTI_GROUP_ID": "0", "TUTTI_RANK_ENDPOINT": endpoint, "TUTTI_SHARED_FOLDER": f"{folder}/shared", "TUTTI_INIT_METHOD": f"file://{folder}/store", "TUTTI_DEVICE": "cpu",
        "TUTTI_TRANSPORT": "gloo", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "error",
        "TUTTI_LIVENESS": str(lifeline.path), "TEST_RANKS_FOLDER": str(folder),
    }  # fmt: skip
    try:
        for rank in range(world_size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"{rank}.log").open("wb") as log:
                group.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module],
                        cwd=REPOSITORY,
                        env={**os.environ, **shared, **own, **(environment or {})},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        while len(group.hellos) < world_size:
            group.receive(START_DEADLINE_S)
        assert all(hello.token == token and hello.incarnation == incarnation for hello in group.hellos.values())
        yield group
    finally:
        _stop(group.processes)
        lifeline.cut()
        socket.close()
        context.term()
        shutil.rmtree(folder, ignore_errors=True)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline_s = time.monotonic() + 10
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline_s - time.monotonic()))
        process.kill()
        process.wait()


def sample_of(
    tensors: Mapping[str, Tensor],
    *,
    family: str = "flux",
    sampler: str = "euler",
    cfg: float = 1.0,
    dtype: str = "F32",
    plan: str = "",
    previews: bool = False,
    multiplier: float = 1.0,
    options: Mapping[str, Any] | None = None,
    job_id: str | None = None,
) -> Sample:
    """A Sample for the branches that ``tensors`` holds: 0 is the positive one, 1 the negative one."""
    count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("branch."))
    kinds = ("positive", "negative")[:count]
    return Sample(
        job_id=job_id or secrets.token_hex(16),
        node_id="3",
        on=ModelRef(model=MODEL, family=family, dtype=dtype, plan=plan),  # type: ignore[arg-type]
        sampler=sampler,  # type: ignore[arg-type]
        cfg=cfg,
        timestep_multiplier=multiplier,
        branches=tuple(Branch(kind=kind, options=dict(options or {})) for kind in kinds),  # type: ignore[arg-type]
        previews=previews,
    )


def sample_tensors(
    *,
    batch: int = 1,
    height: int = 8,
    width: int = 12,
    tokens: tuple[int, ...] = (6,),
    sigmas: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0),
    latent: bool = False,
    mask: bool = False,
    guidance: bool = True,
    context_dim: int = 64,
    pooled_dim: int = 32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs of a Sample on the tiny FLUX."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"noise": draw(batch, 16, height, width), "sigmas": torch.tensor(sigmas)}
    if latent:
        tensors["latent"] = draw(batch, 16, height, width)
    if mask:
        tensors["mask"] = torch.rand(1, 1, height, width, generator=generator)
    for index, count in enumerate(tokens):
        tensors[f"branch.{index}.context"] = draw(1, count, context_dim)
        tensors[f"branch.{index}.pooled"] = draw(1, pooled_dim)
        if guidance:
            tensors[f"branch.{index}.guidance"] = torch.tensor([3.5])
    return tensors
