"""The state machine under everything at once: clients, ranks, deaths and time in any order, with what must hold checked after each step.

Rules are what can happen, invariants are what the daemon promises. test_state_model.py lets Hypothesis choose, and walks far at random.
"""

from __future__ import annotations

from collections import defaultdict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tutti.backend.broker.actions import (
    Action,
    ForwardClient,
    Persist,
    RestartGroup,
    SendClient,
    SendRanks,
)
from tutti.backend.broker.clients import ClientKey
from tutti.backend.broker.settings import BrokerSettings, Quotas
from tutti.backend.wire import codec
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.job_states import JobState
from tutti.backend.wire.messages import (
    Accepted,
    Done,
    Evaluate,
    Failed,
    Prepare,
    Prepared,
    Refused,
    Repeat,
    Result,
)

from tests.unit.broker.rank_model import Ranks
from tests.unit.broker.rig import CONTEXT, CONTEXT_DIGEST, TOO_MANY, Rig, evaluate, evaluate_tensors, job

TOO_MANY_DIGEST = content_digest(TOO_MANY)
PEERS = (b"A", b"B", b"C")
SAMPLES, TRAJECTORIES = range(1, 5), range(5, 9)
USERS = {b"A": "local", b"B": "local", b"C": "another key"}
peers = st.sampled_from(PEERS)
fills = st.sampled_from([0.0, 1.0])


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
        self.turns = self.turns_after_restart = self.forgotten = self.unfit = self.repeats = self.hung = 0
        self.is_given_up = False
        self.seen = 0
        self.waiting_before: dict[ClientKey, set[str]] = {}

    @initialize()
    def begin(self) -> None:
        for peer in PEERS:
            self.rig.hello(peer, user=USERS[peer])
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

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 16.0, 125.0]))
    def time_passes(self, seconds: float) -> None:
        self.waiting_before = self.waiting()
        self.rig.wait(seconds)
        self.follow()
        if self.is_given_up:
            self.hung += 1
            self.group_dies(for_good=1)

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
        self.is_given_up = False
        self.rig.group_lost(failed=self.failed)
        self.follow()

    @precondition(lambda self: self.is_preparing())
    @rule(rank=st.sampled_from([0, 1]), refuses=st.integers(0, 5))
    def rank_prepares(self, rank: int, refuses: int) -> None:
        if rank in self.ranks.prepared:
            return
        self.waiting_before = self.waiting()
        self.ranks.answers[rank] = self.ranks.sequence
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
            self.ranks.answered_well = True
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

    def wind_down(self) -> None:
        """Everything comes to its end: jobs are cancelled, digests come, the ranks read what lies before them, results grow old."""
        for number in (*SAMPLES, *TRAJECTORIES):
            for peer in PEERS:
                self.cancel(peer, number)
        if self.ranks.prepare is not None:
            self.turn_goes_through()
        self.digests_come()
        for rank in (0, 1):
            self.rig.rank(rank, Prepared(sequence=max(1, self.ranks.sequence)))
        self.time_passes(1000.0)

    # --- following what the broker does -----------------------------------------------------------------------------------------

    def open_trajectories(self) -> set[str]:
        """Ids whose state the ranks have to keep."""
        return {known.job_id for known in self.rig.broker.core.jobs.open()}

    def waiting(self) -> dict[ClientKey, set[str]]:
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
            case RestartGroup(cause=cause):
                assert self.ranks.may_be_given_up(), f"the ranks did nothing wrong: {cause}"
                assert not self.is_given_up, "one restart is enough"
                self.is_given_up = True
            case SendRanks(message=message):
                new = isinstance(message, Prepare | Repeat) and self.ranks.sequence != message.sequence
                self.repeats += new and isinstance(message, Repeat)
                self.ranks.hear(action)
                if new:
                    self.forgotten += len(message.forget) if isinstance(message, Prepare) else 0
                    self.check_fairness()
                    self.check_retries()

    def check_fairness(self) -> None:
        """Nobody who waited all along was served longer ago than the one that is served now, unless a client holds the group."""
        served = self.rig.broker.core.jobs.get(self.ranks.job_id)
        assert served is not None
        now, hold = self.waiting(), self.rig.broker.core.queue._hold
        is_held = hold is not None and hold.owner == served.owner
        for other, ready in self.waiting_before.items():
            if other == served.owner or not ready & now.get(other, set()) or is_held or served.requeued:
                continue
            if other[0] == served.owner[0]:
                assert self.served.get(other, 0) >= self.served.get(served.owner, 0), "a client was passed over"
            else:
                assert self.served.get(other[0], 0) >= self.served.get(served.owner[0], 0), "a key was passed over"
        self.turns_after_restart += served.turn > 0 and self.rig.broker.core.group.restarts > 0
        self.note_turn(served.owner)

    def note_turn(self, owner: ClientKey | None) -> None:
        """It was somebody's turn, whatever came of it."""
        self.turns += 1
        if owner:
            self.served[owner] = self.served[owner[0]] = self.turns

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
        uploads = sum(upload.size_bytes for stored in core.uploads._stored.values() for upload in stored.values())
        successors = sum(known.successor.size_bytes for known in open_jobs if known.successor)
        waiting = sum(known.payload_bytes for known in open_jobs) + uploads + successors
        assert core.accounts.total.jobs == len(open_jobs) + len(core.unread)
        assert core.accounts.total.bytes == waiting + core.digests.size_bytes + core.unread.size_bytes

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
