"""A real rank that also keeps a diary, and has a model that fails on demand: what test_worker_* and test_cancel start.

``TEST_DROPPING_RANK`` names a rank that throws away what it receives from the others.
Diary: one JSON line per model call and per finished Sample in ``$TEST_RANKS_FOLDER/<rank>.diary``, with the SHA-256 of what this rank holds.
Calls: start and end of every model call in ``<rank>.calls``, on the clock that all processes of a machine share.
A checkpoint called ``fault.safetensors`` is not read; its options say how a call ends: ``call_s`` (how long it takes), ``fail``
(``memory``, ``bug`` or ``exit``), ``fail_rank`` (-1: every rank), ``meet`` (the other ranks wait for it in a collective) and ``fail_call`` (counted from 0 within the process).
Whatever the checkpoint: ``$TEST_RANKS_FOLDER/armed``, a JSON ``{"place", "rank"}``, makes that rank (-1: every rank) fail where the tensors are
shared (``share``), between that and the gate of a call (``network``) or, as the JSON's ``fail`` says, in the local attention of its first
step (``attention``), or makes its calls last until the broker has spoken (``call``).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tutti.backend.compression.store import ResidualCall
from tutti.backend.models.adapter import Option
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.parallel import usp
from tutti.backend.parallel.exchange import Label, RawCodec
from tutti.backend.parallel.mesh import SequenceMesh
from tutti.backend.supervisor.liveness import watch
from tutti.backend.worker import loop, rank
from tutti.backend.worker.link import BrokerLink
from tutti.backend.worker.network import GatedNetwork
from tutti.backend.worker.null_rank import NullAdapter

RANK = int(os.environ["RANK"])
FOLDER = Path(os.environ["TEST_RANKS_FOLDER"])
DIARY = FOLDER / f"{RANK}.diary"
CALLS = FOLDER / f"{RANK}.calls"
HELD_MS = 30_000


def write(**facts: Any) -> None:
    """One line of the diary."""
    with DIARY.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bits."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def armed(place: str) -> str:
    """How this rank is to misbehave at this place now; empty: not at all."""
    try:
        told = json.loads((FOLDER / "armed").read_text())
    except FileNotFoundError:
        return ""
    return str(told.get("fail", "bug")) if told["place"] == place and told["rank"] in (-1, RANK) else ""


class WatchedLink(BrokerLink):
    """Lets a call wait for the broker's next message, without taking it."""

    current: WatchedLink

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        WatchedLink.current = self

    def wait_for_word(self) -> None:
        if not self._socket.poll(HELD_MS):
            raise RuntimeError("the broker said nothing")


class FaultAdapter(NullAdapter):
    """Takes time, and fails when it is told to."""

    calls = 0
    mesh: SequenceMesh

    def bind(self, mesh: SequenceMesh, compiler: object = None) -> None:
        self.mesh = mesh

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        conditioning: Mapping[str, Tensor],
        options: Mapping[str, Option],
        residuals: ResidualCall | None = None,
    ) -> Tensor:
        call, FaultAdapter.calls = FaultAdapter.calls, FaultAdapter.calls + 1
        time.sleep(float(options.get("call_s", 0)))
        failing_rank = int(options.get("fail_rank", -1))
        if "fail" in options and options.get("fail_call", call) == call:
            if failing_rank in (-1, RANK):
                fail(str(options["fail"]))
            elif options.get("meet"):
                self.mesh.transport.broadcast(torch.zeros(1), failing_rank, self.mesh.sequence.process_group)
        return x.float() * 0.5 + conditioning["context"].float().mean()


def fail(how: str) -> None:
    if how == "memory":
        torch.empty(2**46, dtype=torch.uint8)  # 64 TiB
    elif how == "exit":
        os._exit(3)
    raise RuntimeError("failed on demand in /secret/place")


def load(path: Path, *, dtype: torch.dtype, device: torch.device, **how: Any) -> ResidentModel:
    """The product's loader, with the fault model and the diary."""
    write(event="load", name=path.name)
    if path.name == "fault.safetensors":
        adapter = FaultAdapter()
        model = ResidentModel(family="fault", num_heads=4, dtype=dtype, device=device, size_bytes=0, adapter=adapter)
    else:
        model = load_model(path, dtype=dtype, device=device, **how)
    whole = model.adapter.velocity

    def velocity(
        x: Tensor,
        timestep: Tensor,
        conditioning: Mapping[str, Tensor],
        options: Mapping[str, Option],
        residuals: ResidualCall | None = None,
    ) -> Tensor:
        is_held = bool(armed("call"))  # before the diary says that the call has begun
        held = {"x": x, "timestep": timestep}
        write(event="call", x=digest(held), inputs=digest({**held, **conditioning}), shape=list(x.shape))
        start_s = time.monotonic()
        if is_held:
            WatchedLink.current.wait_for_word()
        answer = whole(x, timestep, conditioning, options, residuals)
        with CALLS.open("a") as file:
            file.write(f"{start_s} {time.monotonic()}\n")
        return answer

    model.adapter.velocity = velocity  # type: ignore[method-assign]
    return model


def drop(codec: RawCodec, payload: Tensor, landing: Tensor, label: Label) -> Tensor:
    """What a rank does that throws away what it receives."""
    return landing.zero_()


run_sample = loop.run_sample
share, prepare, provider_for = loop.share, GatedNetwork.prepare, usp.provider_for


def share_unless_armed(*arguments: Any) -> Any:
    if armed("share"):
        fail("bug")
    return share(*arguments)


def prepare_unless_armed(*arguments: Any) -> Any:
    if armed("network"):
        fail("bug")
    return prepare(*arguments)


def provider_unless_armed(*arguments: Any) -> Any:
    """One that fails when it is called: in a ring, with the first hop under way."""
    how = armed("attention")
    return (lambda *_: fail(how)) if how else provider_for(*arguments)


def run_sample_with_diary(*arguments: Any) -> Any:
    outcome = run_sample(*arguments)
    write(event="sampled", latent=digest({"latent": outcome.latent, "x0": outcome.x0}))
    return outcome


if __name__ == "__main__":
    if os.environ.get("TEST_DROPPING_RANK") == str(RANK):
        RawCodec.decode = drop  # type: ignore[method-assign]
    loop.run_sample = run_sample_with_diary
    loop.share = share_unless_armed
    GatedNetwork.prepare = prepare_unless_armed  # type: ignore[method-assign]
    usp.provider_for = provider_unless_armed
    rank.BrokerLink = WatchedLink  # type: ignore[misc]
    watch()
    rank.run_rank(load)
