"""The state machine under everything at once: clients, ranks, deaths and time in any order, with what must hold checked after each step.

The model of the ranks is independent of the broker's: it refuses what a real rank would not understand.
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tutti.backend.broker.actions import Action, ForwardClient, Persist, SendClient, SendRanks
from tutti.backend.broker.digests import OfSubmission
from tutti.backend.broker.settings import BrokerSettings, Quotas
from tutti.backend.wire import codec
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.job_states import JobState
from tutti.backend.wire.messages import (
    Abort,
    Accepted,
    Cancel,
    Done,
    Evaluate,
    Failed,
    Go,
    Prepare,
    Prepared,
    Refused,
    Result,
)

from tests.unit.broker.rig import CONTEXT, CONTEXT_DIGEST, TOO_MANY, Rig, evaluate, evaluate_tensors, job

TOO_MANY_DIGEST = content_digest(TOO_MANY)
PEERS = (b"A", b"B", b"C")
SAMPLES, TRAJECTORIES = range(1, 5), range(5, 9)
peers = st.sampled_from(PEERS)
fills = st.sampled_from([0.0, 1.0])
EXAMPLES = int(os.environ.get("TUTTI_STATE_MODEL_EXAMPLES", "200"))
WALK = int(os.environ.get("TUTTI_STATE_MODEL_WALK", "6000"))
"""Steps of one random walk."""


class Ranks:
    """Two ranks as they see the broker: Prepare, then Go or Abort, then nothing new before all are done."""

    def __init__(self, open_trajectories: Callable[[], set[str]]) -> None:
        self.open_trajectories = open_trajectories
        self.prepare: Prepare | None = None
        self.running = False
        self.prepared: set[int] = set()
        self.done: set[int] = set()
        self.answered = False
        self.sequence = 0
        self.cancelled = False
        self.known: set[str] = set()
        """Uploads that rank 0 has."""

    def hear(self, action: SendRanks) -> None:
        """Raises AssertionError at anything that breaks the protocol."""
        match action.message:
            case Prepare() as message if self.prepare is not message:
                if self.prepare is not None and message.sequence == self.prepare.sequence:
                    return  # the other ranks' copy
                assert self.prepare is None, "a turn was prepared while another one was in flight"
                assert message.sequence == self.sequence + 1
                self.prepare, self.sequence = message, message.sequence
                self.running, self.prepared, self.done, self.answered, self.cancelled = (
                    False,
                    set(),
                    set(),
                    False,
                    False,
                )
                self._check_uploads(message, action)
            case Go() as message:
                assert self.prepare is not None
                assert message.sequence == self.sequence
                assert self.prepared == {0, 1}, "Go before every rank was prepared"
                assert not self.running
                self.running = True
            case Abort() as message:
                assert message.sequence == self.sequence
                assert self.prepare is not None
                assert not self.running, "Abort after Go"
                self.prepare = None
            case Cancel() as message:
                assert len(action.peers) == 1, "only rank 0 hears Cancel"
                assert self.running
                assert self.prepare is not None
                assert message.job_id == self.job_id
                assert not self.cancelled, "Cancel was said twice"
                self.cancelled = True

    def _check_uploads(self, message: Prepare, action: SendRanks) -> None:
        for job_id in message.forget:
            self.known = {name for name in self.known if not name.startswith(job_id)}
        open_now = {name.partition(".")[0] for name in self.known}
        assert open_now <= self.open_trajectories(), "the ranks keep what nobody needs"
        self.pending = set()
        if message.evaluate is None:
            return
        sent = {name.split(".")[1] for name in codec.decode(action.frames).tensors if name.startswith("upload.")}
        for call in message.evaluate.calls:
            name = f"{message.evaluate.job_id}.{call.conditioning}"
            assert call.conditioning in sent or name in self.known, "a turn names conditioning that the ranks lack"
        self.pending = {f"{message.evaluate.job_id}.{digest}" for digest in sent}

    @property
    def job_id(self) -> str:
        assert self.prepare is not None
        message = self.prepare.sample or self.prepare.evaluate
        assert message is not None
        return message.job_id

    pending: set[str]

    def leave(self) -> None:
        """Every rank is done."""
        if self.prepare is not None and self.prepare.evaluate is not None:
            self.known |= self.pending
        self.prepare, self.running = None, False


class BrokerModel(RuleBasedStateMachine):
    """Rules are events; invariants are what the daemon promises."""

    def __init__(self) -> None:
        super().__init__()
        quotas = Quotas(client_jobs=3, total_jobs=6)
        self.rig = Rig(
            BrokerSettings(instance="1" * 32, software="test", world_size=2, quotas=quotas), answer_digests=False
        )
        self.ranks = Ranks(self.open_trajectories)
        self.up = self.failed = False
        self.last_state: dict[tuple[str, int], JobState] = {}
        self.tries: dict[tuple[str, int, int, str], bool] = {}
        self.served: dict[object, int] = {}
        self.turns = self.turns_after_restart = self.forgotten = self.unfit = 0
        self.seen = 0
        self.waiting_before: dict[object, set[str]] = {}

    @initialize()
    def begin(self) -> None:
        for peer in PEERS:
            self.rig.hello(peer)
        self.rig.group_starts()
        self.group_comes_up()
        self.follow()

    # --- clients ----------------------------------------------------------------------------------------------------------------

    @rule(peer=peers, number=st.sampled_from(SAMPLES), fill=fills, keep=st.booleans())
    def submit(self, peer: bytes, number: int, fill: float, keep: bool) -> None:
        self.waiting_before = self.waiting()
        self.rig.submit(peer, number, fill=fill, keep=keep)
        self.follow()

    @rule(peer=peers, number=st.sampled_from(TRAJECTORIES), honest=st.booleans())
    def upload(self, peer: bytes, number: int, honest: bool) -> None:
        self.waiting_before = self.waiting()
        tensors = CONTEXT if honest else {"context": CONTEXT["context"], "extra": CONTEXT["context"]}
        self.rig.upload(peer, number, tensors, digest=CONTEXT_DIGEST)
        self.follow()

    @rule(peer=peers, number=st.sampled_from(TRAJECTORIES), turn=st.integers(0, 3), fill=fills)
    def any_turn(self, peer: bytes, number: int, turn: int, fill: float) -> None:
        self.waiting_before = self.waiting()
        self.rig.evaluate(peer, number, turn, fill=fill)
        self.follow()

    @rule(number=st.sampled_from(TRAJECTORIES))
    def next_turn(self, number: int) -> None:
        known = self.rig.broker.core.jobs.get(job(number))
        if known and known.state is JobState.WAITING:
            self.waiting_before = self.waiting()
            self.rig.client(known.peer, evaluate(job(number), known.turn + 1), evaluate_tensors())
            self.follow()

    @rule(peer=peers, number=st.sampled_from(TRAJECTORIES))
    def open_trajectory(self, peer: bytes, number: int) -> None:
        self.upload(peer, number, honest=True)
        self.digests_come()
        self.any_turn(peer, number, turn=0, fill=0.0)

    @rule(peer=peers, number=st.sampled_from(TRAJECTORIES))
    def turn_that_fits_into_no_prepare(self, peer: bytes, number: int) -> None:
        self.rig.upload(peer, number, TOO_MANY)
        self.follow()
        self.digests_come()
        self.waiting_before = self.waiting()
        self.rig.client(peer, evaluate(job(number), 0, digest=TOO_MANY_DIGEST), evaluate_tensors())
        self.follow()

    @rule(peer=peers, number=st.sampled_from([*SAMPLES, *TRAJECTORIES]))
    def cancel(self, peer: bytes, number: int) -> None:
        self.waiting_before = self.waiting()
        self.rig.cancel(peer, number)
        self.follow()

    @rule(peer=peers, number=st.sampled_from([*SAMPLES, *TRAJECTORIES]))
    def release(self, peer: bytes, number: int) -> None:
        self.waiting_before = self.waiting()
        self.rig.release(peer, number)
        self.follow()

    @rule(peer=peers)
    def ping(self, peer: bytes) -> None:
        self.rig.ping(peer)
        self.follow()

    @rule()
    def digests_come(self) -> None:
        self.waiting_before = self.waiting()
        self.rig.give_digests()
        self.follow()

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 16.0]))
    def time_passes(self, seconds: float) -> None:
        self.waiting_before = self.waiting()
        self.rig.wait(seconds)
        self.follow()

    # --- ranks ------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.up and not self.failed)
    @rule()
    def group_comes_up(self) -> None:
        self.waiting_before = self.waiting()
        self.ranks, self.up = Ranks(self.open_trajectories), True
        if not self.rig.broker.core.group._token:
            self.rig.group_starts()
        for rank in (0, 1):
            self.rig.rank(rank, self.rig.rank_hello(rank))
        self.follow()

    @precondition(lambda self: self.up)
    @rule(for_good=st.integers(0, 9))
    def group_dies(self, for_good: int) -> None:
        self.waiting_before = {}
        self.up, self.failed, self.ranks = False, for_good == 0, Ranks(self.open_trajectories)
        self.rig.group_lost(failed=self.failed)
        self.follow()

    @precondition(lambda self: self.is_preparing())
    @rule(rank=st.sampled_from([0, 1]), refuses=st.integers(0, 5))
    def rank_prepares(self, rank: int, refuses: int) -> None:
        if rank in self.ranks.prepared:
            return
        self.waiting_before = self.waiting()
        if refuses == 0:
            self.rig.rank(rank, Refused(sequence=self.ranks.sequence, code="bad_plan", message="no"))
        else:
            self.ranks.prepared.add(rank)
            self.rig.rank(rank, Prepared(sequence=self.ranks.sequence))
        self.follow()

    @precondition(lambda self: self.is_computing())
    @rule(fails=st.integers(0, 4))
    def rank_0_answers(self, fails: int) -> None:
        self.waiting_before = self.waiting()
        self.ranks.answered = True
        number, prepare = int(self.ranks.job_id, 16), self.ranks.prepare
        assert prepare is not None
        if self.ranks.cancelled and fails:
            self.rig.failed(number, "cancelled")
        elif fails == 0:
            self.rig.failed(number, "out_of_memory")
        elif prepare.evaluate is not None:
            self.rig.evaluated(number, prepare.evaluate.turn)
        else:
            self.rig.result(number)
        self.follow()

    @precondition(lambda self: self.is_leaving())
    @rule(rank=st.sampled_from([0, 1]))
    def rank_is_done(self, rank: int) -> None:
        if rank in self.ranks.done:
            return
        self.waiting_before = self.waiting()
        self.ranks.done.add(rank)
        sequence = self.ranks.sequence
        if len(self.ranks.done) == 2:
            self.ranks.leave()
        self.rig.rank(rank, Done(sequence=sequence, memory_bytes=0, resident=()))
        self.follow()

    @precondition(lambda self: self.ranks.prepare is not None)
    @rule()
    def turn_goes_through(self) -> None:
        sequence = self.ranks.sequence
        for rank in (0, 1):
            if not self.ranks.running:
                self.rank_prepares(rank, refuses=1)
        if not self.ranks.answered:
            self.rank_0_answers(fails=1)
        for rank in (0, 1):
            if self.ranks.sequence == sequence and self.ranks.running:  # else the next turn has begun
                self.rank_is_done(rank)

    # --- following what the broker does -----------------------------------------------------------------------------------------

    def open_trajectories(self) -> set[str]:
        """Ids whose state the ranks have to keep."""
        return {known.job_id for known in self.rig.broker.core.jobs.open()}

    def waiting(self) -> dict[object, set[str]]:
        """Runnable queued jobs by owner."""
        core, found = self.rig.broker.core, defaultdict(set)
        for known in core.jobs.open():
            ready = not isinstance(known.request, Evaluate) or core.uploads.ready(
                (known.owner, known.job_id), known.request
            )
            if known.state is JobState.QUEUED and ready:
                found[known.owner].add(known.job_id)
        return found

    def follow(self) -> None:
        """Check every action since the last time, in order."""
        for action in self.rig.log[self.seen :]:
            self.check(action)
        self.seen = len(self.rig.log)

    def check(self, action: Action) -> None:
        match action:
            case Persist(record=record):
                key = (record.job_id, record.attempt)
                before = self.last_state.get(key)
                assert before is None or not before.is_terminal, "a job ended twice"
                if before is None:
                    assert record.state is JobState.QUEUED, "the first thing written down is that it is queued"
                self.last_state[key] = record.state
            case SendClient(message=Failed(code="bad_request", message=text), peer=peer) if text.startswith(
                "Send less with one job"
            ):
                self.unfit += 1
                self.note_turn(self.rig.broker.core.connections.owner(peer))
            case SendClient(message=Accepted(job_id=job_id, state=state)):
                states = [last for (known, _), last in self.last_state.items() if known == job_id]
                assert states, "accepted before it was written down"
                assert state != "done" or JobState.DONE in states
            case ForwardClient(frames=frames):
                message = codec.decode(frames).message
                if isinstance(message, Result):
                    assert (message.job_id, JobState.DONE) in {
                        (name, last) for (name, _), last in self.last_state.items()
                    }
            case SendRanks(message=message):
                new = isinstance(message, Prepare) and self.ranks.sequence != message.sequence
                self.ranks.hear(action)
                if new:
                    self.forgotten += len(message.forget)
                    self.check_fairness()
                    self.check_retries()

    def check_fairness(self) -> None:
        """Nobody who waited all along was served longer ago than the one that is served now, unless a trajectory has the group."""
        served = self.rig.broker.core.jobs.get(self.ranks.job_id)
        assert served is not None
        now = self.waiting()
        for other, ready in self.waiting_before.items():
            if other != served.owner and ready & now.get(other, set()) and served.turn == 0 and not served.requeued:
                assert self.served.get(other, 0) >= self.served.get(served.owner, 0), "a client was passed over"
        self.turns_after_restart += served.turn > 0 and self.rig.broker.core.group.restarts > 0
        self.note_turn(served.owner)

    def note_turn(self, owner: object) -> None:
        """It was somebody's turn, whatever came of it."""
        self.turns += 1
        self.served[owner] = self.turns

    def check_retries(self) -> None:
        """Nobody may kill the group again and again: what died before Go is tried twice at most."""
        prepare, served = self.ranks.prepare, self.rig.broker.core.jobs.get(self.ranks.job_id)
        assert prepare is not None
        assert served is not None
        self.tries[served.job_id, served.attempt, served.turn, self.rig.incarnation] = True
        assert sum(key[:3] == (served.job_id, served.attempt, served.turn) for key in self.tries) <= 2

    def is_preparing(self) -> bool:
        """The ranks were told to prepare."""
        return self.ranks.prepare is not None and not self.ranks.running

    def is_computing(self) -> bool:
        """The ranks were told to go, and rank 0 has not answered."""
        return self.ranks.running and not self.ranks.answered

    def is_leaving(self) -> bool:
        """Rank 0 has answered; the ranks are leaving the job."""
        return self.ranks.running and self.ranks.answered

    def check_all(self) -> None:
        """Every invariant."""
        self.quotas_are_the_sum_of_what_is_there()
        self.every_queued_job_is_in_the_queue_once()
        self.at_most_one_job_has_the_group()
        self.no_job_is_lost()
        self.a_free_group_leaves_nobody_waiting()

    # --- what always holds ------------------------------------------------------------------------------------------------------

    @invariant()
    def quotas_are_the_sum_of_what_is_there(self) -> None:
        core = self.rig.broker.core
        open_jobs = list(core.jobs.open())
        held = sum(p.event.size_bytes for p in core.digests._purposes.values() if isinstance(p, OfSubmission))
        uploads = sum(upload.size_bytes for stored in core.uploads._stored.values() for upload in stored.values())
        successors = sum(known.successor.size_bytes for known in open_jobs if known.successor)
        assert core.accounts.total.jobs == len(open_jobs)
        assert (
            core.accounts.total.bytes == sum(known.payload_bytes for known in open_jobs) + held + uploads + successors
        )

    @invariant()
    def every_queued_job_is_in_the_queue_once(self) -> None:
        core = self.rig.broker.core
        queued = sorted(known.job_id for known in core.jobs.open() if known.state is JobState.QUEUED)
        assert sorted(core.queue.order()) == queued

    @invariant()
    def at_most_one_job_has_the_group(self) -> None:
        core = self.rig.broker.core
        active = [known for known in core.jobs.open() if known.state in (JobState.PREPARING, JobState.RUNNING)]
        assert len(active) <= 1
        if active:
            assert core.turn is not None
            assert core.turn.job is active[0]
        assert (core.turn is None) == (self.ranks.prepare is None)

    @invariant()
    def no_job_is_lost(self) -> None:
        open_now = {known.job_id for known in self.rig.broker.core.jobs.open()}
        latest: dict[str, tuple[int, JobState]] = {}
        for (job_id, attempt), state in self.last_state.items():
            latest[job_id] = max(latest.get(job_id, (0, state)), (attempt, state), key=lambda pair: pair[0])
        assert {job_id for job_id, (_, state) in latest.items() if not state.is_terminal} == open_now

    @invariant()
    def a_free_group_leaves_nobody_waiting(self) -> None:
        core = self.rig.broker.core
        if self.up and core.turn is None and core.queue.held_until_s() is None:
            assert not self.waiting()


TestBrokerModel = BrokerModel.TestCase
TestBrokerModel.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


Move = tuple[int, Callable[[], object], bool]
"""(weight, what happens, whether it can happen now)"""


def client_moves(model: BrokerModel, dice: random.Random) -> list[Move]:
    """What clients may do, some sensible and some not."""
    peer, trajectory = dice.choice(PEERS), dice.choice(TRAJECTORIES)
    sample, number = dice.choice(SAMPLES), dice.choice([*SAMPLES, *TRAJECTORIES])
    fill, keep, honest, turn = dice.choice([0.0, 1.0]), dice.random() < 0.5, dice.random() < 0.8, dice.randrange(3)
    return [
        (6, lambda: model.submit(peer, sample, fill, keep), True),
        (2, lambda: model.upload(peer, trajectory, honest), True),
        (2, lambda: model.any_turn(peer, trajectory, turn, 0.0), True),
        (4, lambda: model.open_trajectory(peer, trajectory), True),
        (10, lambda: model.next_turn(trajectory), True),
        (1, lambda: model.turn_that_fits_into_no_prepare(peer, trajectory), True),
        (2, lambda: model.cancel(peer, number), True),
        (1, lambda: model.release(peer, number), True),
        (6, lambda: model.ping(peer), True),
    ]


def other_moves(model: BrokerModel, dice: random.Random) -> list[Move]:
    """What ranks, the helper thread and the clock may do."""
    rank, chance, seconds = dice.randrange(2), dice.randrange(6), dice.choice([0.1, 0.6, 3.0, 16.0])
    return [
        (4, model.digests_come, True),
        (3, lambda: model.time_passes(seconds), True),
        (9, model.group_comes_up, not model.up),
        (1, lambda: model.group_dies(1), model.up),
        (4, lambda: model.rank_prepares(rank, chance), model.is_preparing()),
        (4, lambda: model.rank_0_answers(chance), model.is_computing()),
        (8, lambda: model.rank_is_done(rank), model.is_leaving()),
        (9, model.turn_goes_through, model.ranks.prepare is not None),
    ]


def random_walk(seed: int, steps: int) -> BrokerModel:
    """Hypothesis finds short stories; this walks far, with the weights of a busy daemon."""
    dice, model = random.Random(seed), BrokerModel()
    model.begin()
    for _ in range(steps):
        possible = [(weight, move) for weight, move, now in client_moves(model, dice) + other_moves(model, dice) if now]
        dice.choices([move for _, move in possible], [weight for weight, _ in possible])[0]()
        model.check_all()
    return model


@pytest.mark.parametrize("seed", range(4))
def test_a_long_busy_life_breaks_no_promise(seed: int) -> None:
    model = random_walk(seed, WALK)
    states = Counter(model.last_state.values())
    assert model.turns > WALK / 20, "a walk that gives no turns proves nothing"
    assert model.turns_after_restart > 0
    assert model.forgotten > 0
    assert model.unfit > 0
    assert min(states[state] for state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)) > 0
