"""Looking a model up holds one connection, in order, and nobody else. On a table: no thread, no socket."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tutti.backend.broker.clients import ClientKey, Connections
from tutti.backend.broker.events import ClientGarbled, ClientSent, ModelFile
from tutti.backend.broker.lookups import FRESH_S, HELD_MESSAGES, LONGEST_S, Arrived, LookUp, Lookups, Refusal, Step
from tutti.backend.broker.quotas import Accounts
from tutti.backend.broker.settings import Quotas
from tutti.backend.errors import Busy, Draining, QueueFull, RemoteProtocolError, UnknownModel
from tutti.backend.wire import codec
from tutti.backend.wire.messages import Cancel, Describe, Hello, Message, Ping, Release, Upload
from tutti.backend.wire.tensors import Tensors

from tests.unit.broker.rig import (
    CONTEXT,
    CONTEXT_DIGEST,
    FILE,
    MODEL,
    A,
    B,
    evaluate,
    evaluate_tensors,
    job,
    sample,
    sample_tensors,
)

PING = Ping(nonce=7)
MISSING = UnknownModel("Choose another model: there is none of this name.")


def sent(peer: bytes, message: Message, tensors: Tensors | None = None) -> ClientSent:
    """A client's message as the server reads it."""
    frames = codec.encode(message, tensors)
    return ClientSent(peer=peer, user=owner_of(peer)[0], received=codec.decode(frames), frames=frames[1:])


def a_sample(peer: bytes, number: int) -> ClientSent:
    return sent(peer, sample(job(number)), sample_tensors())


def a_table(quotas: Quotas | None = None) -> Lookups:
    """Two clients, each with a connection and a key of its own."""
    connections = Connections(lease_s=15.0)
    for peer in (A, B):
        connections.hello(peer, owner_of(peer), "test", 0.0)
    return Lookups(Accounts(quotas or Quotas()), connections)


def owner_of(peer: bytes) -> ClientKey:
    return (f"key of {peer!r}", job(1))


def messages(steps: list[Step]) -> list[Message]:
    """What the broker gets to see, in order."""
    return [step.received.message for step in steps if isinstance(step, ClientSent)]


def only_lookup(steps: list[Step]) -> LookUp:
    """The one step there is."""
    (step,) = steps
    assert isinstance(step, LookUp)
    return step


def test_a_message_that_names_no_model_goes_on_at_once() -> None:
    table = a_table()
    for message in (
        Hello(client_id=job(1), software="t"),
        PING,
        Cancel(job_id=job(1)),
        Describe(request=1, model=MODEL),
    ):
        event = sent(A, message)
        assert table.arrived(event, 0.0) == [event]
    garbled = ClientGarbled(peer=A, error=RemoteProtocolError("x"))
    assert table.arrived(garbled, 0.0) == [garbled]


def test_only_the_first_turn_of_a_trajectory_is_looked_up() -> None:
    table = a_table()
    later = sent(A, evaluate(job(1), 1), evaluate_tensors())
    assert table.arrived(later, 0.0) == [later]
    assert only_lookup(table.arrived(sent(A, evaluate(job(1), 0), evaluate_tensors()), 0.0)).wanted == (MODEL,)


def test_nothing_of_its_connection_overtakes_a_submission_whose_model_is_looked_up() -> None:
    table = a_table()
    first = evaluate(job(1), 0)
    asked = only_lookup(table.arrived(sent(A, first, evaluate_tensors()), 0.0))
    behind = [
        Upload(job_id=job(1), digest=CONTEXT_DIGEST),
        evaluate(job(1), 1),
        Cancel(job_id=job(1)),
        Release(job_id=job(1)),
        Describe(request=1, model=MODEL),
    ]
    tensors: list[Tensors | None] = [CONTEXT, evaluate_tensors(), None, None, None]
    for message, carried in zip(behind, tensors, strict=True):
        assert table.arrived(sent(A, message, carried), 1.0) == []
    steps = table.found(asked, FILE, 2.0)
    assert messages(steps) == [first, *behind]
    assert [step.model for step in steps if isinstance(step, ClientSent)] == [FILE, *[None] * 5]
    after = sent(A, Cancel(job_id=job(1)))
    assert table.arrived(after, 2.0) == [after], "the connection is held no longer"


def test_what_is_no_message_keeps_its_place_too() -> None:
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    garbled = ClientGarbled(peer=A, error=RemoteProtocolError("x"))
    table.arrived(garbled, 0.0)
    table.arrived(sent(A, Cancel(job_id=job(1))), 0.0)
    assert [type(step).__name__ for step in table.found(asked, FILE, 0.0)] == [
        "ClientSent",
        "ClientGarbled",
        "ClientSent",
    ]


def test_a_ping_of_a_held_connection_passes() -> None:
    """A client that hears nothing for ten seconds takes the daemon for dead, and the daemon a silent client."""
    table = a_table()
    table.arrived(a_sample(A, 1), 0.0)
    assert messages(table.arrived(sent(A, PING), 1.0)) == [PING]


def test_other_connections_are_not_held() -> None:
    table = a_table()
    table.arrived(a_sample(A, 1), 0.0)
    event = sent(B, Cancel(job_id=job(2)))
    assert table.arrived(event, 0.0) == [event]


def test_a_fresh_answer_is_taken_at_once_and_an_older_one_is_asked_for_again() -> None:
    table = a_table()
    table.found(only_lookup(table.arrived(a_sample(A, 1), 0.0)), FILE, 10.0)
    (step,) = table.arrived(a_sample(B, 2), 10.0 + FRESH_S - 0.01)
    assert isinstance(step, ClientSent)
    assert step.model == FILE
    replaced = ModelFile(path=FILE.path, fingerprint="f2")
    (again,) = table.found(only_lookup(table.arrived(a_sample(B, 3), 10.0 + FRESH_S)), replaced, 12.0)
    assert isinstance(again, ClientSent)
    assert again.model == replaced


def test_a_refusal_is_told_and_not_remembered() -> None:
    table = a_table()
    (step,) = table.found(only_lookup(table.arrived(a_sample(A, 1), 0.0)), MISSING, 0.0)
    assert isinstance(step, ClientSent)
    assert step.model is MISSING
    assert only_lookup(table.arrived(a_sample(A, 2), 0.0)).wanted == (MODEL,)


def test_a_second_submission_behind_the_first_is_looked_up_in_its_turn() -> None:
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    for event in (sent(A, Cancel(job_id=job(1))), a_sample(A, 2), sent(A, Cancel(job_id=job(2)))):
        table.arrived(event, 0.0)
    *went, second = table.found(asked, MISSING, 0.0)
    assert messages(went) == [sample(job(1)), Cancel(job_id=job(1))]
    assert table.arrived(sent(A, Release(job_id=job(9))), 0.0) == [], "it is held again"
    assert isinstance(second, LookUp)
    assert messages(table.found(second, FILE, 0.0)) == [
        sample(job(2)), Cancel(job_id=job(2)), Release(job_id=job(9)),
    ]  # fmt: skip


def test_a_second_submission_of_the_model_that_was_just_found_goes_with_the_first() -> None:
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    table.arrived(a_sample(A, 2), 0.0)
    assert messages(table.found(asked, FILE, 0.0)) == [sample(job(1)), sample(job(2))]


def test_what_is_kept_behind_a_submission_is_bounded_and_the_rest_is_refused_by_name() -> None:
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    for _ in range(HELD_MESSAGES):
        assert table.arrived(sent(A, Cancel(job_id=job(1))), 0.0) == []
    (refusal,) = table.arrived(sent(A, Release(job_id=job(5))), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.peer, refusal.message.code, refusal.message.job_id) == (A, QueueFull.code, job(5))
    (refusal,) = table.arrived(sent(A, Describe(request=3, model="")), 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.message.request == 3
    assert len(messages(table.found(asked, FILE, 0.0))) == 1 + HELD_MESSAGES


def test_what_is_held_counts_in_the_quotas_of_whoever_sent_it_until_it_goes_on() -> None:
    size = a_sample(A, 1).size_bytes
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    upload = sent(A, Upload(job_id=job(2), digest=CONTEXT_DIGEST), CONTEXT)
    table.arrived(upload, 0.0)
    table.arrived(ClientGarbled(peer=A, error=RemoteProtocolError("x")), 0.0)
    table.arrived(a_sample(A, 3), 0.0)
    held = table._accounts.of(owner_of(A))
    assert (held.jobs, held.bytes) == (0, 2 * size + upload.size_bytes)
    *_, again = table.found(asked, MISSING, 0.0)
    assert isinstance(again, LookUp)
    assert table._accounts.of(owner_of(A)).bytes == size, "the second submission is still looked up"
    table.found(again, MISSING, 0.0)
    assert table._accounts == Accounts(Quotas()), "nothing is left over"


def test_one_key_cannot_take_the_room_of_another() -> None:
    size = a_sample(A, 1).size_bytes
    table = a_table(Quotas(user_bytes=2 * size + size // 2, total_bytes=3 * size + size // 2))
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    assert table.arrived(a_sample(A, 2), 0.0) == []
    (refusal,) = table.arrived(a_sample(A, 3), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.message.code, refusal.message.job_id) == (QueueFull.code, job(3))
    assert only_lookup(table.arrived(a_sample(B, 4), 0.0)).peer == B, "the other key has its room"
    assert table.arrived(sent(A, Cancel(job_id=job(1))), 0.0) == [], "what frees bytes is kept"
    table.found(asked, MISSING, 0.0)
    assert table.arrived(a_sample(A, 3), 0.0) == []


def test_without_quotas_of_their_own_one_key_takes_the_room_of_another() -> None:
    """Negative control of the test before."""
    size = a_sample(A, 1).size_bytes
    table = a_table(Quotas(total_bytes=3 * size))
    for number in range(3):
        table.arrived(a_sample(A, number), 0.0)
    (refusal,) = table.arrived(a_sample(B, 4), 0.0)
    assert isinstance(refusal, Refusal)


def test_a_connection_that_took_over_the_name_of_another_pays_for_itself() -> None:
    table = a_table()
    table.arrived(replace(a_sample(A, 1), user="a thief"), 0.0)
    assert table._accounts.of(owner_of(A)).bytes == 0
    assert table._accounts.of(("a thief", "")).bytes > 0


def test_a_drive_that_never_answers_is_given_up_and_its_late_answer_changes_nothing() -> None:
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    table.arrived(sent(A, Cancel(job_id=job(1))), 0.0)
    assert table.overdue(LONGEST_S - 0.1) == []
    steps = table.overdue(LONGEST_S)
    assert messages(steps) == [sample(job(1)), Cancel(job_id=job(1))]
    assert isinstance(steps[0], ClientSent)
    assert isinstance(steps[0].model, Busy)
    assert table.overdue(LONGEST_S) == []
    other = only_lookup(table.arrived(a_sample(A, 2), LONGEST_S))
    assert table.found(asked, MISSING, LONGEST_S) == [], "the answer to the first is none to the second"
    assert messages(table.found(other, MISSING, LONGEST_S)) == [sample(job(2))]


def test_a_daemon_that_drains_holds_nobody_any_longer() -> None:
    table = a_table()
    asked = only_lookup(table.arrived(a_sample(A, 1), 0.0))
    for event in (sent(A, Cancel(job_id=job(1))), a_sample(A, 2)):
        table.arrived(event, 0.0)
    table.arrived(a_sample(B, 3), 0.0)
    steps = table.drain(1.0)
    assert messages(steps) == [sample(job(1)), Cancel(job_id=job(1)), sample(job(2)), sample(job(3))]
    (late,) = table.arrived(a_sample(A, 4), 1.0)
    submissions = [step for step in (*steps, late) if isinstance(step, ClientSent) and step.received.tensors]
    assert [type(step.model) for step in submissions] == [Draining] * 4
    assert table.found(asked, FILE, 2.0) == []
    assert table._accounts == Accounts(Quotas())


def out_of_order(seed: int, *, hold: bool) -> int:
    """How many connections see their messages change places while the catalog answers at random."""
    chance, table, now_s = random.Random(seed), a_table(), 0.0
    given: dict[bytes, list[Arrived]] = {A: [], B: []}
    seen: dict[bytes, list[Message]] = {A: [], B: []}
    asked: list[LookUp] = []
    for number in range(400):
        peer, now_s = chance.choice((A, B)), now_s + 0.1
        event = a_sample(peer, number) if chance.random() < 0.3 else sent(peer, Cancel(job_id=job(number)))
        given[peer].append(event)
        names_none = isinstance(event.received.message, Cancel)
        steps: list[Step] = [event] if names_none and not hold else table.arrived(event, now_s)
        while steps:
            step = steps.pop(0)
            if isinstance(step, LookUp):
                asked.append(step)
            elif isinstance(step, ClientSent):
                seen[step.peer].append(step.received.message)
            if not steps and asked and (chance.random() < 0.5 or len(asked) > 1 or number == 399):
                steps = table.found(asked.pop(0), chance.choice((FILE, MISSING)), now_s)
    for lookup in asked:
        for step in table.found(lookup, FILE, now_s):
            if isinstance(step, ClientSent):
                seen[step.peer].append(step.received.message)
    return sum(
        [event.received.message for event in given[peer] if isinstance(event, ClientSent)] != seen[peer]
        for peer in (A, B)
    )


@pytest.mark.parametrize("seed", range(20))
def test_whenever_the_catalog_answers_every_connection_keeps_its_order(seed: int) -> None:
    assert out_of_order(seed, hold=True) == 0
    assert out_of_order(seed, hold=False) == 2, "negative control: what is not held overtakes"
