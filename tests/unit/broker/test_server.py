"""The server's loop with real sockets and a catalog on a drive that does not answer: only who asked for it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zmq
from tutti.backend.broker import lookups, sockets
from tutti.backend.broker.auth import Gate, ZapHandler
from tutti.backend.broker.catalog import Catalog
from tutti.backend.broker.events import GroupLost, GroupStarting, ModelFile
from tutti.backend.broker.keys import AuthorizedKeys, KeyPair
from tutti.backend.broker.ledger import MemoryLedger
from tutti.backend.broker.server import Server
from tutti.backend.broker.settings import BrokerSettings
from tutti.backend.broker.sockets import ClientSocket, RankSocket
from tutti.backend.broker.state import Broker
from tutti.backend.broker.store import FileStore
from tutti.backend.client.link import Link
from tutti.backend.errors import AuthFailed, BadRequest, Busy, Draining, InternalError, JobCancelled, UnknownJob
from tutti.backend.wire.connection import Connection
from tutti.backend.wire.messages import (
    Accepted,
    Cancel,
    Describe,
    Described,
    Failed,
    Hello,
    ManifestEntry,
    Message,
    Ping,
    Pong,
    Status,
    StatusRequest,
    Upload,
    Welcome,
)
from zmq.utils.garbage import gc as garbage

from tests.unit.broker.rig import (
    CONTEXT,
    CONTEXT_DIGEST,
    FILE,
    evaluate,
    evaluate_tensors,
    job,
    on,
    sample,
    sample_tensors,
)

DEADLINE_S = 20.0
SOON_S = 2.0
"""A client that is not held is answered within milliseconds; a loaded machine gets this long."""


class BlockingCatalog(Catalog):
    """Stands for one whose drive answers only when the test lets it."""

    def __init__(self) -> None:
        super().__init__([], Path("/nonexistent"))
        self.answers = threading.Event()
        self.asked = threading.Event()

    def resolve(self, name: str) -> ModelFile:
        self.asked.set()
        assert self.answers.wait(DEADLINE_S)
        return FILE


class ListingCatalog(BlockingCatalog):
    """Stands for one whose files are found at once, and whose folders take for ever to list."""

    def resolve(self, name: str) -> ModelFile:
        return FILE

    def list_models(self) -> tuple[ManifestEntry, ...]:
        self.asked.set()
        assert self.answers.wait(DEADLINE_S)
        return ()


class BrokenCatalog(BlockingCatalog):
    """Stands for one with a bug in it."""

    def resolve(self, name: str) -> ModelFile:
        raise RuntimeError("a bug")


class NoRanks:
    """Stands for the supervisor: its ranks are always about to come up, so that jobs stay in the queue."""

    def start(self, now_s: float) -> None: ...
    def fds(self) -> Sequence[int]:
        return ()

    def step(self, now_s: float) -> list[GroupStarting | GroupLost]:
        return []

    def next_step_s(self) -> float | None:
        return None

    def note_ready(self, now_s: float) -> None: ...
    def note_work(self) -> None: ...
    def restart(self, cause: str, now_s: float) -> list[GroupStarting | GroupLost]:
        return []

    def stop(self) -> None: ...


@dataclass
class Stage:
    """A server in a thread, and how to reach it."""

    server: Server
    catalog: BlockingCatalog
    connection: Connection
    links: list[Link] = field(default_factory=list)

    def link(self, number: int) -> Link:
        """A client that has said hello."""
        link = Link(self.connection)
        self.links.append(link)
        link.send(Hello(client_id=job(number), software="test"))
        assert isinstance(heard(link), Welcome)
        return link


@contextmanager
def serving(state_dir: Path, catalog: BlockingCatalog) -> Iterator[Stage]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    key, local = KeyPair.make(), KeyPair.make()
    gate = Gate(local, AuthorizedKeys(state_dir))
    clients = ClientSocket(context, key)
    endpoint = clients.bind("tcp://127.0.0.1:*")
    server = Server(
        broker=Broker(BrokerSettings(instance="1" * 32, software="test", world_size=2), time.monotonic()),
        clients=clients, ranks=RankSocket(context), zap=ZapHandler(context, gate), gate=gate, catalog=catalog,
        store=FileStore(state_dir / "stored"), ledger=MemoryLedger(), group=NoRanks(),
    )  # fmt: skip
    connection = Connection(
        endpoint=endpoint, server_public_key=key.public, client_public_key=local.public, client_secret_key=local.secret
    )
    stage = Stage(server, catalog, connection)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield stage
    finally:
        catalog.answers.set()
        for link in stage.links:
            link.close()
        server.ask_drain()
        server.ask_drain()
        thread.join()
        server.close()
        context.term()
        garbage.stop()


@pytest.fixture
def stage(state_dir: Path) -> Iterator[Stage]:
    with serving(state_dir, BlockingCatalog()) as started:
        yield started


def heard(link: Link, within_s: float = DEADLINE_S) -> Message | None:
    received = link.receive(within_s)
    return received.message if received else None


def words(link: Link, count: int) -> list[str]:
    """The next messages in short: their type, or the code of a failure."""
    found = [heard(link) for _ in range(count)]
    return [message.code if isinstance(message, Failed) else type(message).__name__ for message in found]


def test_other_clients_are_served_while_the_catalog_looks_for_one_clients_model(stage: Stage) -> None:
    held, other = stage.link(1), stage.link(2)
    held.send(sample(job(1)), sample_tensors())
    assert stage.catalog.asked.wait(DEADLINE_S)
    began_s = time.monotonic()
    for number in range(20):
        other.send(StatusRequest(request=number))
        assert isinstance(heard(other), Status)
    assert time.monotonic() - began_s < SOON_S
    assert heard(held, 0.05) is None
    stage.catalog.answers.set()
    assert isinstance(heard(held), Accepted)


def test_a_client_whose_model_was_found_just_now_gets_its_job_in_while_another_waits(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "FRESH_S", DEADLINE_S)
    held, other = stage.link(1), stage.link(2)
    stage.catalog.answers.set()
    other.send(sample(job(1)), sample_tensors())
    assert isinstance(heard(other), Accepted)
    stage.catalog.answers.clear()
    stage.catalog.asked.clear()
    of_another_model = replace(sample(job(2)), on=replace(on(), model="diffusion_models/slow.safetensors"))
    held.send(of_another_model, sample_tensors())
    assert stage.catalog.asked.wait(DEADLINE_S)
    other.send(sample(job(3)), sample_tensors())
    assert isinstance(heard(other, SOON_S), Accepted)


def test_a_held_client_is_answered_in_the_order_it_asked(stage: Stage) -> None:
    client = stage.link(1)
    client.send(sample(job(1)), sample_tensors())
    client.send(Cancel(job_id=job(1)))
    client.send(Upload(job_id=job(2), digest=CONTEXT_DIGEST), CONTEXT)
    client.send(evaluate(job(2), 0), evaluate_tensors())
    client.send(evaluate(job(2), 1), evaluate_tensors())
    client.send(StatusRequest(request=1))
    assert stage.catalog.asked.wait(DEADLINE_S)
    assert heard(client, 0.05) is None
    stage.catalog.answers.set()
    # Turn 1 is refused as too early, by a trajectory that is open: overtaking turn 0 it would be of an unknown job.
    assert words(client, 5) == ["Accepted", JobCancelled.code, "Accepted", BadRequest.code, "Status"]


def test_the_answers_tell_the_orders_apart(stage: Stage) -> None:
    """Negative control: what overtakes its job is answered otherwise."""
    client = stage.link(1)
    stage.catalog.answers.set()
    client.send(Cancel(job_id=job(1)))
    client.send(sample(job(1)), sample_tensors())
    client.send(evaluate(job(2), 1), evaluate_tensors())
    client.send(evaluate(job(2), 0), evaluate_tensors())
    assert words(client, 4) == [UnknownJob.code, "Accepted", UnknownJob.code, BadRequest.code]


def test_a_held_client_knows_that_the_daemon_lives(stage: Stage) -> None:
    client = stage.link(1)
    client.send(sample(job(1)), sample_tensors())
    assert stage.catalog.asked.wait(DEADLINE_S)
    client.send(Ping(nonce=5))
    assert heard(client, SOON_S) == Pong(nonce=5, state="starting")


def test_a_drive_that_never_answers_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "LONGEST_S", 0.1)
    client = stage.link(1)
    client.send(sample(job(1)), sample_tensors())
    client.send(StatusRequest(request=1))
    assert words(client, 2) == [Busy.code, "Status"]


@contextmanager
def nothing_is_taken(stage: Stage, monkeypatch: pytest.MonkeyPatch, asked: int) -> Iterator[None]:
    """Stands for clients that do not read, until ``asked`` of their messages have been answered into the outbox."""
    answered = threading.Semaphore(0)
    put = sockets.Outbox.put

    def put_noted(outbox: sockets.Outbox, frames: list[object], **rest: str | None) -> list[str]:
        lost = put(outbox, frames, **rest)  # type: ignore[arg-type]
        answered.release()
        return lost

    with monkeypatch.context() as patched:
        patched.setattr(sockets, "OUTBOX_MESSAGES", 3)
        patched.setattr(sockets.Outbox, "put", put_noted)
        patched.setattr(sockets.ClientSocket, "_try", lambda *_: None)
        yield
        for _ in range(asked):
            assert answered.acquire(timeout=DEADLINE_S)


def test_a_client_that_did_not_read_is_told_that_its_answers_were_dropped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = stage.link(1)
    with nothing_is_taken(stage, monkeypatch, asked=4):
        for number in range(4):
            client.send(StatusRequest(request=number))
    dropped = heard(client)
    assert isinstance(dropped, Failed)
    assert (dropped.code, dropped.request, dropped.job_id) == (Busy.code, None, None)
    client.send(StatusRequest(request=9))
    assert isinstance(heard(client), Status)


def test_a_client_that_pings_for_an_hour_and_reads_nothing_has_missed_nothing_but_pongs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = stage.link(1)
    with nothing_is_taken(stage, monkeypatch, asked=22):
        client.send(StatusRequest(request=1))
        for nonce in range(20):
            client.send(Ping(nonce=nonce))
        client.send(StatusRequest(request=2))
    assert words(client, 3) == ["Status", "Pong", "Status"]


@pytest.mark.parametrize("signals", [1, 2])
def test_a_client_whose_model_is_looked_up_is_told_that_the_daemon_stops(stage: Stage, signals: int) -> None:
    client, other = stage.link(1), stage.link(2)
    for link, number in ((client, 1), (other, 2)):
        link.send(sample(job(number)), sample_tensors())
        link.send(Cancel(job_id=job(number)))
        link.send(Ping(nonce=number))
        assert isinstance(heard(link), Pong), "its job is held: what passes it is answered"
    assert stage.catalog.asked.wait(DEADLINE_S)
    for _ in range(signals):
        stage.server.ask_drain()
    for link in (client, other):
        assert words(link, 2) == [Draining.code, UnknownJob.code]


def test_a_key_that_is_revoked_while_its_messages_are_kept_gets_nothing_in(stage: Stage, state_dir: Path) -> None:
    keys, other = AuthorizedKeys(state_dir), KeyPair.make()
    keys.add("box", other.public)
    stage.connection = replace(stage.connection, client_public_key=other.public, client_secret_key=other.secret)
    client = stage.link(1)
    client.send(sample(job(1)), sample_tensors())
    client.send(Cancel(job_id=job(1)))
    assert stage.catalog.asked.wait(DEADLINE_S)
    keys.revoke("box")
    stage.catalog.answers.set()
    assert words(client, 2) == [AuthFailed.code, AuthFailed.code]


def test_a_submission_does_not_wait_for_a_listing_of_the_models(state_dir: Path) -> None:
    with serving(state_dir, ListingCatalog()) as stage:
        lists, submits = stage.link(1), stage.link(2)
        for number in range(5):
            lists.send(Describe(request=number, model=""))
        assert stage.catalog.asked.wait(DEADLINE_S)
        submits.send(sample(job(1)), sample_tensors())
        assert isinstance(heard(submits, SOON_S), Accepted)
        assert heard(lists, 0.05) is None, "negative control: the listing was at work all the time"
        stage.catalog.answers.set()
        assert isinstance(heard(lists), Described)


def test_a_catalog_that_fails_holds_nobody(state_dir: Path) -> None:
    with serving(state_dir, BrokenCatalog()) as stage:
        client = stage.link(1)
        client.send(sample(job(1)), sample_tensors())
        client.send(StatusRequest(request=1))
        assert words(client, 2) == [InternalError.code, "Status"]
