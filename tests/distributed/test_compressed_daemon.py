"""A client's job with compression, behind the real daemon: everybody is told that it is approximate and by how much, and without it nothing is."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from tutti.backend.client import Client
from tutti.backend.wire.codec import Received
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import Call, Evaluate, ModelRef, Progress, Result
from tutti.backend.worker.tensors import to_torch, to_wire

from tests.support.parity import relative_error
from tests.support.rank_leg import MODEL, sample_of, sample_tensors

STEPS = tuple(1 - step / 12 for step in range(13))
FULL = "cfg=1,ring=1,ulysses=2"
SHOWN = re.compile(
    rf"{FULL},compression=balanced \(approximate\) on 2 ranks(, compressed ([\d.]+)x(, error [\d.]+ %)?)?"
)
SUMMARY = re.compile(r"balanced: ([\d.]+)x fewer bytes, error ([\d.]+) %, ([\d.]+) (kB|MB) of state")

pytestmark = pytest.mark.timeout(240)


def sampled(client: Client, plan: str, inputs: Mapping[str, Tensor]) -> tuple[Result, Tensor, list[str]]:
    """The Result, its latent, and the texts of its progress in order."""
    texts: list[str] = []

    def listen(received: Received) -> None:
        if isinstance(received.message, Progress) and received.message.phase == "sampling":
            texts.append(received.message.text)

    wire = {name: to_wire(tensor) for name, tensor in inputs.items()}
    received = client.sample(sample_of(inputs, plan=plan), wire, listen)
    assert isinstance(received.message, Result)
    return received.message, to_torch(received.tensors["latent"]).clone(), texts


def told_by_status(client: Client) -> str:
    """Once every rank has left the job: a Result comes before that."""
    deadline_s = time.monotonic() + 30
    while (status := client.status()).state != "ready":
        assert time.monotonic() < deadline_s, status
        time.sleep(0.02)
    return status.compression


def test_a_compressed_job_says_so_in_progress_result_and_status_and_the_next_one_is_exact_again(client: Client) -> None:
    inputs = sample_tensors(sigmas=STEPS)
    plain, before, texts = sampled(client, "", inputs)
    assert set(texts) == {f"{FULL} on 2 ranks"}
    assert (plain.compression, told_by_status(client)) == ("", "")

    result, latent, texts = sampled(client, "compression=balanced", inputs)
    assert result.plan == f"{FULL},compression=balanced", "the daemon chose the degrees"
    found = [SHOWN.fullmatch(text) for text in texts]
    assert all(found), texts
    ratios = [float(match[2]) for match in found if match and match[2]]
    assert len(ratios) == len(texts) - 2, "a call is looked at before the next one: nobody waits for a device to tell"
    first, last = ratios[0], ratios[-1]
    assert 1 < first < last, "the key frames weigh less and less"
    assert texts[-1].endswith(" %"), "and how much was lost, once it was measured"
    summary = SUMMARY.fullmatch(result.compression)
    assert summary, result.compression
    assert float(summary[1]) >= last
    assert 0 < float(summary[2]) < 50
    assert float(summary[3]) > 0
    assert told_by_status(client) == result.compression
    assert plain.exchanged_bytes is not None
    assert result.exchanged_bytes is not None
    assert result.exchanged_bytes < plain.exchanged_bytes / 2
    # Loses something, and little: what was sent wrongly altogether would be of order 1.
    assert 1e-6 < relative_error(latent, before) < 0.1

    again, after, texts = sampled(client, "", inputs)
    assert torch.equal(after, before), "bit for bit as before"
    assert set(texts) == {f"{FULL} on 2 ranks"}
    assert (again.compression, told_by_status(client)) == ("", "")


def test_auto_tries_compression_and_leaves_it_where_calls_are_faster_without(client: Client) -> None:
    """On one machine the links do not decide: encoding costs more than it saves. All ranks must come to that in the same call."""
    inputs = sample_tensors(sigmas=STEPS)
    _, exact, _ = sampled(client, "", inputs)
    first, tried, texts = sampled(client, "compression=auto", inputs)
    assert first.plan == f"{FULL},compression=auto"
    assert "not compressed yet: calls are timed without it first" in texts[0 + 1]
    assert texts[-1].endswith("not compressed: calls are faster without it")
    assert re.match(r"auto: [\d.]+x fewer bytes in 4 of 12 calls", first.compression), first.compression
    assert 0 < relative_error(tried, exact) < 0.1, "some calls were compressed"
    second, latent, _ = sampled(client, "compression=auto", inputs)
    assert torch.equal(latent, exact), "the next job knows"
    assert second.compression.startswith("auto: nothing was compressed")
    assert "calls are faster without it" in told_by_status(client)


def test_where_nothing_is_exchanged_the_job_runs_exactly_and_says_why(client: Client) -> None:
    """Two branches on two ranks: ``auto`` gives each its own."""
    inputs = sample_tensors(tokens=(6, 6))
    wire = {name: to_wire(tensor) for name, tensor in inputs.items()}
    latents, said = [], []

    def listen(received: Received) -> None:
        if isinstance(received.message, Progress) and received.message.phase == "sampling":
            said.append(received.message.text)

    for plan in ("", "compression=small"):
        said.clear()
        received = client.sample(sample_of(inputs, cfg=4.0, plan=plan), wire, listen)
        latents.append(to_torch(received.tensors["latent"]).clone())
    assert torch.equal(*latents)
    why = "one rank for each branch: nothing to compress"
    assert set(said) == {f"cfg=2,ring=1,ulysses=1 on 2 ranks, {why}"}
    assert isinstance(received.message, Result)
    assert (received.message.plan, received.message.compression) == ("cfg=2,ring=1,ulysses=1", why)
    assert told_by_status(client) == why


@pytest.mark.parametrize("plan", ["", "compression=balanced"])
def test_a_loop_in_the_client_is_told_how_its_calls_run_where_they_are_approximate(client: Client, plan: str) -> None:
    inputs = sample_tensors()
    wire = {name.removeprefix("branch.0."): to_wire(t) for name, t in inputs.items() if name.startswith("branch.0.")}
    job_id, digest = secrets.token_hex(16), content_digest(wire)
    client.upload(job_id, digest, wire)
    told: list[Progress] = []

    def listen(received: Received) -> None:
        if isinstance(received.message, Progress) and received.message.phase == "sampling":
            told.append(received.message)

    for turn in range(4):
        message = Evaluate(
            job_id=job_id, node_id="3", turn=turn, on=ModelRef(model=MODEL, family="flux", dtype="F32", plan=plan),
            calls=(Call(branch="positive", conditioning=digest),),
        )  # fmt: skip
        tensors = {"call.0.x": to_wire(inputs["noise"] * (1 - turn / 100)), "call.0.timestep": to_wire(torch.ones(1))}
        client.evaluate(message, tensors, listen)
    status = told_by_status(client)
    client.release(job_id)
    if not plan:
        assert (told, status) == ([], "")
        return
    assert [(message.step, message.steps) for message in told] == [(turn, 0) for turn in range(4)]
    found = [SHOWN.fullmatch(message.text) for message in told]
    assert all(found), told
    assert found[-1] is not None
    assert float(found[-1][2]) > 1
    assert SUMMARY.fullmatch(status), "of all turns so far"
