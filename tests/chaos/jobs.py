"""Jobs for daemons that are about to suffer: requests that can be made again, and clients that wait in a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from tutti.backend.client import Client, job_id_for
from tutti.backend.errors import TuttiError
from tutti.backend.wire.codec import Received
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import Accepted, Call, Evaluate, Message, ModelRef, Progress, Sample
from tutti.backend.wire.tensors import Tensors
from tutti.backend.worker.tensors import to_wire

from tests.support.daemon import CLIENT_ID, Daemon
from tests.support.samples import random_sample

MODEL = "diffusion_models/tiny.safetensors"
OTHER_MODEL = "diffusion_models/twin.safetensors"
ENDLESS = 5000
"""Steps that take longer than any test."""
PROGRESS_S = 60.0


def sample(
    steps: int = 4, *, seed: int = 7, model: str = MODEL, node_id: str | None = None, keep: bool = True
) -> tuple[Sample, Tensors]:
    """A Sample. Without a ``node_id`` every call makes another job, though one with the same picture."""
    message, tensors = random_sample(
        model, cells=8, steps=steps, context_width=64, pooled_width=32, client_id=CLIENT_ID, seed=seed
    )
    message = replace(message, node_id=node_id or message.node_id, keep_if_client_gone=keep)
    return replace(message, job_id=job_id_for(message, tensors, CLIENT_ID)), tensors


def picture(daemon: Daemon, steps: int = 4, seed: int = 7) -> bytes:
    """The final latent of a job that nobody disturbs, bit for bit."""
    with daemon.client() as client:
        return latent_of(client.sample(*sample(steps, seed=seed), lambda _: None))


def latent_of(received: Received) -> bytes:
    """The bits of a Result's latent."""
    return bytes(received.tensors["latent"].data)


def open_trajectory(client: Client, job_id: str) -> None:
    """Begin an Evaluate trajectory: its conditioning and turn 0."""
    client.upload(job_id, *_conditioning())
    take_turn(client, job_id, 0)


def take_turn(client: Client, job_id: str, turn: int) -> None:
    """One turn of a trajectory: one call."""
    digest, _ = _conditioning()
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(turn))
    message = Evaluate(
        job_id=job_id,
        node_id="9",
        turn=turn,
        on=ModelRef(model=MODEL, family="flux", dtype="F32"),
        calls=(Call(branch="positive", conditioning=digest),),
    )
    tensors = {"call.0.x": to_wire(x), "call.0.timestep": to_wire(torch.full((1,), 0.5))}
    client.evaluate(message, tensors, lambda _: None)


def _conditioning() -> tuple[str, Tensors]:
    tensors = {"context": to_wire(torch.ones(1, 5, 64)), "pooled": to_wire(torch.ones(1, 32))}
    return content_digest(tensors), tensors


class GivenUp(BaseException):
    """The test does not wait any longer."""


class Waiting:
    """A client that has submitted a Sample and waits for its end, in a thread. A job that is still open at the end is cancelled."""

    def __init__(self, daemon: Daemon, message: Sample, tensors: Tensors) -> None:
        self.seen: list[Received] = []
        """What was told on the way."""
        self.ended_at_s = 0.0
        self._news = threading.Condition()
        self._answer: Received | None = None
        self._error: BaseException | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(daemon, message, tensors), name="waiting-client")

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._given_up.set()
        self._thread.join()

    def _run(self, daemon: Daemon, message: Sample, tensors: Tensors) -> None:
        answer, error = None, None
        try:
            with daemon.client() as client:
                answer = client.sample(message, tensors, self._take, self._go_on)
        except (TuttiError, GivenUp) as problem:
            error = problem
        with self._news:
            self._answer, self._error, self.ended_at_s = answer, error, time.monotonic()
            self._news.notify_all()

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise GivenUp

    def _take(self, received: Received) -> None:
        with self._news:
            self.seen.append(received)
            self._news.notify_all()

    def wait_until_accepted(self) -> None:
        """The daemon has it."""
        self._wait_for(lambda: any(isinstance(item.message, Accepted) for item in self.seen))

    def wait_until(self, phase: str, step: int = 0) -> None:
        """The job has come so far."""
        self._wait_for(lambda: any(_has_come(item.message, phase, step) for item in self.seen))

    def result(self, timeout_s: float = PROGRESS_S) -> Received:
        """Its Result; raises the error that it ended with instead."""
        with self._news:
            ended = self._news.wait_for(lambda: self.ended_at_s, timeout_s)
        assert ended, f"the client still waits after {timeout_s} s"
        if self._error:
            raise self._error
        assert self._answer
        return self._answer

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        with self._news:
            self._news.wait_for(lambda: bool(self.ended_at_s) or happened(), PROGRESS_S)
            assert not self.ended_at_s, f"the job has ended: {self._error or self._answer}"
            assert happened(), f"nothing of the kind within {PROGRESS_S} s: {[item.message for item in self.seen]}"


def _has_come(message: Message, phase: str, step: int) -> bool:
    return isinstance(message, Progress) and message.phase == phase and message.step >= step
