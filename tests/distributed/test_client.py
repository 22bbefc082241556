"""The client against a real daemon with real ranks: results, repetition, interruption, trajectories, a daemon that dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tutti.backend.client import Client, job_id_for
from tutti.backend.errors import DaemonUnreachable, JobConflict, UnknownJob, UnknownModel
from tutti.backend.wire.codec import Received
from tutti.backend.wire.connection import find_connection
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import Accepted, Call, Evaluate, Preview, Progress, Result, Sample
from tutti.backend.wire.tensors import Tensors
from tutti.backend.worker.tensors import to_wire

from tests.support.checkpoints import write_tiny_flux
from tests.support.daemon import CLIENT_ID, Daemon, private_state_dir, running
from tests.support.relay import Relay, relay_to
from tests.support.samples import random_sample

MODEL = "diffusion_models/tiny.safetensors"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "diffusion_models").mkdir()
    write_tiny_flux(folder / MODEL, hidden=256, context_dim=64, pooled_dim=32)
    return folder


def sample(steps: int = 3, seed: int = 7, cells: int = 8) -> tuple[Sample, Tensors]:
    return random_sample(
        MODEL, cells=cells, steps=steps, context_width=64, pooled_width=32, client_id=CLIENT_ID, seed=seed
    )


class Interrupted(BaseException):
    """What ComfyUI raises into a wait, under another name."""


def test_a_sample_is_accepted_reports_its_steps_and_gives_a_result(client: Client) -> None:
    seen: list[Received] = []
    message, tensors = sample(steps=4)
    received = client.sample(message, tensors, seen.append)
    assert isinstance(received.message, Result)
    assert received.tensors["latent"].shape == (1, 16, 8, 8)
    assert received.tensors["x0"].shape == (1, 16, 8, 8)
    kinds = [type(item.message) for item in seen]
    assert kinds[0] is Accepted
    assert Preview in kinds
    steps = [m.step for item in seen if isinstance(m := item.message, Progress) and m.phase == "sampling"]
    assert steps == sorted(steps)
    assert steps[-1] <= 4


def test_the_same_request_has_the_same_id_and_another_one_has_not() -> None:
    message, tensors = sample()
    assert job_id_for(message, tensors, CLIENT_ID) == message.job_id
    assert job_id_for(message, tensors, "0" * 32) != message.job_id
    assert job_id_for(replace(message, sampler="heun"), tensors, CLIENT_ID) != message.job_id
    _, others = sample(seed=8)
    assert job_id_for(message, others, CLIENT_ID) != message.job_id


def test_a_job_that_is_done_is_answered_again_without_running_again(client: Client, daemon: Daemon) -> None:
    message, tensors = sample(seed=21)
    first = client.sample(message, tensors, lambda _: None)
    finished = daemon.status().finished
    again = client.sample(message, tensors, lambda _: None)
    assert bytes(again.tensors["latent"].data) == bytes(first.tensors["latent"].data)
    assert daemon.status().finished == finished


def test_the_same_id_with_other_bytes_is_a_conflict(client: Client) -> None:
    message, tensors = sample(seed=22)
    client.sample(message, tensors, lambda _: None)
    with pytest.raises(JobConflict):
        client.sample(replace(message, sampler="heun"), tensors, lambda _: None)


def test_an_unknown_model_is_refused_and_the_next_request_is_fine(client: Client) -> None:
    message, tensors = sample(seed=23)
    with pytest.raises(UnknownModel):
        client.sample(replace(message, on=replace(message.on, model="diffusion_models/no.safetensors")), tensors, print)
    assert isinstance(client.sample(message, tensors, lambda _: None).message, Result)


def test_an_interrupted_job_is_cancelled_and_the_next_one_is_fine(client: Client, daemon: Daemon) -> None:
    message, tensors = sample(steps=2000, seed=24)
    running_since_s: list[float] = []

    def watch(received: Received) -> None:
        if isinstance(received.message, Progress) and received.message.step >= 2:
            running_since_s.append(time.monotonic())

    def interrupt() -> None:
        if running_since_s:
            raise Interrupted

    with pytest.raises(Interrupted):
        client.sample(message, tensors, watch, interrupt)
    assert time.monotonic() - running_since_s[0] < 3
    assert daemon.status().state == "ready"
    message, tensors = sample(seed=25)
    assert isinstance(client.sample(message, tensors, lambda _: None).message, Result)


def _evaluate(job_id: str, turn: int, digest: str, x: torch.Tensor) -> tuple[Evaluate, Tensors]:
    on = sample()[0].on
    calls = (Call(branch="positive", conditioning=digest),)
    tensors = {"call.0.x": to_wire(x), "call.0.timestep": to_wire(torch.full((x.shape[0],), 0.5))}
    return Evaluate(job_id=job_id, node_id="9", turn=turn, on=on, calls=calls), tensors


def test_a_trajectory_uploads_once_evaluates_often_and_is_unknown_after_its_release(client: Client) -> None:
    conditioning = {"context": to_wire(torch.ones(1, 5, 64)), "pooled": to_wire(torch.ones(1, 32))}
    digest, job_id = content_digest(conditioning), "5" * 32
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    client.upload(job_id, digest, conditioning)
    outputs = []
    for turn in range(3):
        message, tensors = _evaluate(job_id, turn, digest, x)
        outputs.append(bytes(client.evaluate(message, tensors, lambda _: None).tensors["call.0.out"].data))
    assert outputs[0] == outputs[1] == outputs[2]
    client.release(job_id)
    client.release(job_id)  # an end that has already come is no error
    message, tensors = _evaluate(job_id, 3, digest, x)
    with pytest.raises(UnknownJob):
        client.evaluate(message, tensors, lambda _: None)


@pytest.fixture
def relayed(daemon: Daemon) -> Iterator[tuple[Client, Relay]]:
    """A client whose connection can be cut."""
    connection = find_connection(daemon.state_dir)
    with relay_to(connection.endpoint) as relay:
        through = replace(connection, endpoint=relay.endpoint, local_socket=None)
        with Client(through, client_id=CLIENT_ID, software="tests") as client:
            client.connect(timeout_s=10.0)
            yield client, relay


def test_a_connection_that_is_cut_in_a_sample_costs_no_result(relayed: tuple[Client, Relay]) -> None:
    client, relay = relayed
    message, tensors = sample(steps=60, seed=31)

    def cut_once(received: Received) -> None:
        if isinstance(received.message, Progress) and received.message.step >= 3 and not relay.cuts:
            relay.cut()

    assert isinstance(client.sample(message, tensors, cut_once).message, Result)
    assert relay.cuts == 1


def test_a_connection_that_is_cut_between_turns_costs_no_turn(relayed: tuple[Client, Relay]) -> None:
    client, relay = relayed
    conditioning = {"context": to_wire(torch.ones(1, 5, 64)), "pooled": to_wire(torch.ones(1, 32))}
    digest, job_id = content_digest(conditioning), "6" * 32
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    client.upload(job_id, digest, conditioning)
    for turn in range(4):
        message, tensors = _evaluate(job_id, turn, digest, x)
        received = client.evaluate(message, tensors, lambda _: None)
        assert received.tensors["call.0.out"].shape == (1, 16, 8, 8)
        relay.cut()
    assert client.status().state in ("ready", "busy")
    client.release(job_id)
    assert relay.cuts == 4


def test_a_daemon_that_dies_in_a_job_is_named_unreachable(models: Path) -> None:
    with private_state_dir() as state_dir, running(models, state_dir, ranks=1) as daemon, daemon.client() as client:
        message, tensors = sample(steps=5000, seed=26)

        def kill_once_running(received: Received) -> None:
            if isinstance(received.message, Progress) and received.message.step >= 1:
                daemon.process.kill()

        with pytest.raises(DaemonUnreachable, match="tutti serve"):
            client.sample(message, tensors, kill_once_running)
