"""The ranks behind the real daemon: a client's Sample, Evaluate loop, cancel and refusals, all on the same processes."""

from __future__ import annotations

import itertools
import secrets
import time

import pytest
import torch
from tutti.backend.client import Client
from tutti.backend.errors import BadPlan, UnknownJob, WrongFamily
from tutti.backend.wire.codec import Received
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import Call, Evaluate, ModelRef, Preview, Progress
from tutti.backend.worker.tensors import to_torch, to_wire

from tests.support.rank_leg import MODEL, sample_of, sample_tensors

pytestmark = pytest.mark.timeout(240)


def pids(client: Client) -> list[int]:
    return [rank.pid for rank in client.status().ranks]


def latent_of(client: Client, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    wire = {name: to_wire(tensor) for name, tensor in inputs.items()}
    return to_torch(client.sample(sample_of(inputs), wire, lambda received: None).tensors["latent"]).clone()


def test_a_loop_in_the_client_gives_the_latent_of_a_sample_with_other_work_in_between(client: Client) -> None:
    inputs = sample_tensors()
    whole = latent_of(client, inputs)
    named = {name.removeprefix("branch.0."): t for name, t in inputs.items() if name.startswith("branch.0.")}
    wire = {name: to_wire(tensor) for name, tensor in named.items()}
    job_id, digest = secrets.token_hex(16), content_digest(wire)
    client.upload(job_id, digest, wire)
    x, sigmas = inputs["noise"], inputs["sigmas"].tolist()
    for turn, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        message = Evaluate(
            job_id=job_id,
            node_id="3",
            turn=turn,
            on=ModelRef(model=MODEL, family="flux", dtype="F32"),
            calls=(Call(branch="positive", conditioning=digest),),
        )
        tensors = {"call.0.x": to_wire(x), "call.0.timestep": to_wire(torch.tensor([sigma]))}
        velocity = to_torch(client.evaluate(message, tensors, lambda received: None).tensors["call.0.out"])
        x = x + (x - (x - velocity * sigma)) / sigma * (sigma_next - sigma)
        assert torch.equal(latent_of(client, inputs), whole)
    client.release(job_id)
    assert torch.equal(x, whole)
    with pytest.raises(UnknownJob):
        client.evaluate(message, tensors, lambda received: None)


class PressedCancel(Exception):
    """What the client's idle hook raises."""


def test_a_cancelled_sample_ends_soon_and_the_next_one_is_right_on_the_same_processes(client: Client) -> None:
    inputs = sample_tensors()
    expected, before = latent_of(client, inputs), pids(client)
    long = sample_tensors(sigmas=tuple(1 - step / 2000 for step in range(2001)))
    wire, progress = {name: to_wire(tensor) for name, tensor in long.items()}, list[Progress]()

    def listen(received: Received) -> None:
        if isinstance(received.message, Progress):
            progress.append(received.message)

    def idle() -> None:
        if progress and progress[-1].step > 3:
            raise PressedCancel

    started_s = time.monotonic()
    with pytest.raises(PressedCancel):
        client.sample(sample_of(long), wire, listen, idle)
    assert progress[-1].step < 2000
    assert time.monotonic() - started_s < 60
    assert torch.equal(latent_of(client, inputs), expected)
    assert pids(client) == before


def test_refused_jobs_leave_the_group_as_it_was(client: Client) -> None:
    inputs, before = sample_tensors(), pids(client)
    expected = latent_of(client, inputs)
    wire = {name: to_wire(tensor) for name, tensor in inputs.items()}
    with pytest.raises(BadPlan, match="Legal plans"):
        client.sample(sample_of(inputs, plan="ulysses=4,ring=4"), wire, lambda received: None)
    narrow = inputs | {"branch.0.context": torch.zeros(1, 6, 63)}
    with pytest.raises(WrongFamily):
        client.sample(sample_of(narrow), {k: to_wire(t) for k, t in narrow.items()}, lambda received: None)
    assert torch.equal(latent_of(client, inputs), expected)
    assert pids(client) == before


def test_previews_and_progress_reach_the_client_while_it_samples(client: Client) -> None:
    inputs = sample_tensors(sigmas=tuple(1 - step / 60 for step in range(61)))
    received: list[Received] = []
    client.sample(sample_of(inputs, previews=True), {k: to_wire(t) for k, t in inputs.items()}, received.append)
    steps = [r.message.step for r in received if isinstance(r.message, Progress) and r.message.phase == "sampling"]
    assert steps == list(range(61))
    previews = [r for r in received if isinstance(r.message, Preview)]
    assert previews
    assert all(r.tensors["x0"].shape == tuple(inputs["noise"].shape) for r in previews)
    first = next(index for index, r in enumerate(received) if isinstance(r.message, Preview))
    assert first < len(received) - 10
