"""The three phases: Prepare to every rank, Go when all of them are prepared, and what they say until all of them are done."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import (
    ERRORS_BY_CODE,
    BadCheckpoint,
    BadRequest,
    Draining,
    InternalError,
    LocalProtocolError,
    TuttiError,
    WorkerDied,
    from_wire,
)
from ..wire import codec
from ..wire.codec import Frame
from ..wire.job_states import JobState
from ..wire.messages import (
    Done,
    Evaluate,
    Evaluated,
    Failed,
    Go,
    LoraFile,
    Message,
    Prepare,
    Prepared,
    Preview,
    Progress,
    Refused,
    Repeat,
    Result,
    Sample,
)  # fmt: skip
from ..wire.tensors import Tensors
from .actions import ForwardClient, ForwardPreview, RestartGroup, SendRanks
from .admission import group_failed
from .core import Core, why_cancelled
from .endings import Endings
from .events import GroupLost, GroupStarting, RankSent
from .group import Rank, ReadyFor, Turn
from .jobs import Job

log = logging.getLogger(__name__)


class Dispatch:
    """Gives turns to the group and follows them."""

    def __init__(self, core: Core, endings: Endings) -> None:
        self._core = core
        self._endings = endings

    # --- giving turns ---------------------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> None:
        """Give the group its next turn, if it is free and somebody waits."""
        core = self._core
        while core.turn is None and core.group.ready:
            chosen = core.queue.choose(now_s, self._may_run)
            if chosen is None:
                return
            job = core.jobs.get(chosen)
            if job is None:
                raise InternalError("a job that is not known was queued")
            self._prepare(job, now_s)

    def _may_run(self, job_id: str) -> bool:
        """A turn whose uploads are still being checked waits; nobody waits behind it."""
        job = self._core.jobs.get(job_id)
        if job is None or not isinstance(job.request, Evaluate):
            return True
        return self._core.uploads.ready((job.owner, job_id), job.request)

    def _prepare(self, job: Job, now_s: float) -> None:
        core = self._core
        job.move(JobState.PREPARING)
        tensors, forget = self._tensors_of(job), core.next_forget_list()
        specs = tuple(tensor.spec(name) for name, tensor in tensors.items())
        ready_for, core.group.ready_for = core.group.ready_for, None
        core.group.runs = ReadyFor.turn_of(job.request, specs)
        if isinstance(job.request, Evaluate) and core.group.runs == ready_for and not forget:
            self._repeat(job, job.request, tensors)
            return
        message = Prepare(
            sequence=core.group.sequence + 1,
            path=job.model.path,
            fingerprint=job.model.fingerprint,
            plan=core.settings.plan,
            specs=specs,
            forget=forget,
            sample=job.request if isinstance(job.request, Sample) else None,
            evaluate=job.request if isinstance(job.request, Evaluate) else None,
            loras=_lora_files(job),
        )
        if self._give(job, message, tensors):
            core.group.asked(now_s)
            core.forgotten(forget)

    def _repeat(self, job: Job, request: Evaluate, tensors: Tensors) -> None:
        """The ranks are ready for exactly this turn since the last one: it begins at once."""
        message = Repeat(sequence=self._core.group.sequence + 1, turn=request.turn)
        if self._give(job, message, tensors):
            job.move(JobState.RUNNING)

    def _give(self, job: Job, message: Prepare | Repeat, tensors: Tensors) -> bool:
        """Send a job's turn to the ranks, and count it; False if it does not fit into a message: then the job has failed."""
        core = self._core
        try:
            actions = self._to_ranks(message, tensors)
        except LocalProtocolError as error:
            # Nothing was spent on it: the ranks count the numbers, and hear about the trajectories with the next job.
            log.warning("a job does not fit into a %s: %s", type(message).__name__, error)
            core.end(job, JobState.FAILED, BadRequest("Send less with one job: its tensors are too many or too large."))
            return False
        core.group.sequence = message.sequence
        core.turn = Turn(message.sequence, job, _size_bytes(actions), running=isinstance(message, Repeat))
        for action in actions:
            core.emit(action)
        return True

    def _to_ranks(self, message: Prepare | Repeat, tensors: Tensors) -> list[SendRanks]:
        """Tensors go to rank 0 only: one copy crosses the socket, and the group's own transport is faster than this one."""
        first, *others = self._core.group.peers
        actions = [SendRanks(peers=(first,), message=message, frames=codec.encode(message, tensors))]
        if others:
            actions.append(SendRanks(peers=tuple(others), message=message, frames=codec.encode(message)))
        return actions

    def _tensors_of(self, job: Job) -> Tensors:
        if not isinstance(job.request, Evaluate):
            return job.tensors
        return {**job.tensors, **self._core.uploads.missing_on_ranks((job.owner, job.job_id), job.request)}

    def _go(self, turn: Turn, job: Job) -> None:
        core, message = self._core, Go(sequence=turn.sequence)
        core.emit(SendRanks(peers=core.group.peers, message=message, frames=codec.encode(message)))
        turn.running = True
        job.move(JobState.RUNNING)
        if isinstance(job.request, Evaluate):
            job.known_to_ranks = True
            core.uploads.delivered((job.owner, job.job_id), job.request)
        else:
            core.persist(job)

    # --- what ranks say -------------------------------------------------------------------------------------------------------

    def rank_said(self, event: RankSent, rank: Rank, now_s: float) -> None:
        """A message of a rank that said hello. What belongs to an aborted turn is ignored."""
        turn, message = self._core.turn, event.received.message
        self._core.group.heard(rank, message, now_s)
        self._core.unread.read_until(self._core.group.answered_by_all)
        if turn is None:
            return
        job = turn.job
        match message:
            case Prepared() if message.sequence == turn.sequence:
                self._prepared(turn, job, rank, message)
            case Refused() if message.sequence == turn.sequence and not turn.running:
                self._endings.abort_turn()
                self._core.end(job, JobState.FAILED, _reported(message.code, message.message, job))
            case Done() if message.sequence == turn.sequence:
                self._done(turn, job, rank, message)
            case Progress() | Preview() | Result() | Evaluated() | Failed() if message.job_id == job.job_id:
                self._rank_0_said(message, event.frames, rank, turn, job, now_s)
            case _:
                log.debug(
                    "ignored a %s of rank %d that is not about the turn in flight", type(message).__name__, rank.rank
                )

    def _prepared(self, turn: Turn, job: Job, rank: Rank, message: Prepared) -> None:
        turn.prepared[rank.rank] = message.changed
        if len(turn.prepared) < self._core.group.world_size or turn.running:
            return
        if len(set(turn.prepared.values())) == 1:
            self._go(turn, job)
            return
        self._endings.abort_turn()
        differ = BadCheckpoint(
            "Copy the same LoRA and model files to every host: the ranks' changed weights are not the same."
        )
        self._core.end(job, JobState.FAILED, differ)

    def _rank_0_said(
        self, message: Message, frames: Sequence[Frame], rank: Rank, turn: Turn, job: Job, now_s: float
    ) -> None:
        if rank.rank != 0:
            if not isinstance(message, Progress) or message.phase != "loading" or turn.running:
                self._distrust(rank, message)
        elif isinstance(message, Progress):
            job.phase, job.step, job.steps = message.phase, message.step, message.steps
            if message.phase == "sampling":
                turn.note_step(now_s)
            self._core.emit(ForwardClient(peer=job.peer, frames=frames, job_id=job.job_id, droppable=True))
        elif not turn.running or job.state is not JobState.RUNNING:
            self._distrust(rank, message)
        elif isinstance(message, Preview):
            if isinstance(job.request, Sample) and job.request.previews and job.cancelling is None:
                self._core.emit(ForwardPreview(peer=job.peer, frames=frames, job_id=job.job_id))
        elif isinstance(message, Failed) and message.code == Draining.code and not self._core.draining:
            # It ends soon, and the group with it; nobody shall wait for that, or be told that the daemon goes.
            self._core.emit(RestartGroup(cause="somebody other than the daemon told a rank to stop"))
        elif isinstance(message, Failed):
            turn.failure = _reported(message.code, message.message, job)
        elif isinstance(message, Result) and isinstance(job.request, Sample):
            self._core.complete(job, frames, now_s)
        elif isinstance(message, Evaluated) and isinstance(job.request, Evaluate) and message.turn == job.turn:
            self._evaluated(turn, job, frames, now_s)
        else:
            self._distrust(rank, message)

    def _evaluated(self, turn: Turn, job: Job, frames: Sequence[Frame], now_s: float) -> None:
        if job.cancelling:
            return  # it ended before rank 0 heard the Cancel; the trajectory ends with this turn all the same
        turn.answered = True
        job.answer = frames
        job.move(JobState.WAITING)
        self._core.queue.hold_for(job.owner, job.job_id, now_s)
        self._core.emit(ForwardClient(peer=job.peer, frames=frames, job_id=job.job_id, droppable=False))
        self._core.ask_digest(job)
        self._core.drop_payload(job)

    def _done(self, turn: Turn, job: Job, rank: Rank, message: Done) -> None:
        self._core.group.note(rank, message)
        if not turn.running:
            self._distrust(rank, message)
            return
        turn.done.add(rank.rank)
        if len(turn.done) < self._core.group.world_size:
            return
        self._core.turn = None
        if turn.answered:
            self._core.group.ready_for = self._core.group.runs
        if job.state is JobState.RUNNING:
            self._end_of_turn(job, turn.failure)

    def _end_of_turn(self, job: Job, failure: TuttiError | None) -> None:
        """Every rank has left a job that got no answer."""
        if job.cancelling:
            self._core.end(job, JobState.CANCELLED, why_cancelled(job.cancelling))
        else:
            missing = InternalError("Look at the daemon's log: the ranks left the job without an answer.")
            self._core.end(job, JobState.FAILED, failure or missing)

    def _distrust(self, rank: Rank, message: Message) -> None:
        """A rank broke the protocol. Nothing it says can be relied on any more, nor can the group."""
        self._core.emit(
            RestartGroup(cause=f"rank {rank.rank} sent a {type(message).__name__} that it may not send now")
        )

    # --- the group comes and goes ---------------------------------------------------------------------------------------------

    def group_starting(self, event: GroupStarting) -> None:
        """The supervisor started an incarnation."""
        self._core.group.start(event.group_id, event.incarnation, event.token)

    def group_lost(self, event: GroupLost) -> None:
        """Every rank is gone, and what they kept with them."""
        core, turn = self._core, self._core.turn
        if event.incarnation != core.group.incarnation:
            return
        core.turn = None
        core.group.lose(event.cause, failed=event.failed)
        core.forget.clear()
        core.unread.clear()
        core.uploads.forget_delivery()
        for known in core.jobs.open():
            known.known_to_ranks = False
        if turn:
            self._lost_in_flight(turn.job, event)
        if event.failed:
            for waiting in list(core.jobs.open()):
                core.end(waiting, JobState.FAILED, group_failed(event.cause))

    def _lost_in_flight(self, job: Job, event: GroupLost) -> None:
        if job.state is JobState.RUNNING and job.cancelling:
            self._core.end(job, JobState.CANCELLED, why_cancelled(job.cancelling))
        elif job.state is JobState.RUNNING or (job.state is JobState.PREPARING and job.requeued):
            at = f" at step {job.step} of {job.steps}" if job.steps and job.phase == "sampling" else ""
            self._core.end(job, JobState.FAILED, _died(f"{event.cause}{at}", comes_back=not event.failed))
        elif job.state is JobState.PREPARING:
            # Nothing was computed yet: the turn is given again, once.
            job.requeued = True
            job.move(JobState.QUEUED)
            self._core.queue.push(job.owner, job.job_id, first=True)


def _size_bytes(actions: Sequence[SendRanks]) -> int:
    return sum(memoryview(frame).nbytes for frame in actions[0].frames)


def _died(cause: str, *, comes_back: bool) -> WorkerDied:
    if comes_back:
        return WorkerDied(f"Run it again when the worker group is back: {cause}. It is being restarted.")
    return WorkerDied(
        f"Look at the daemon's log and start it again: {cause}. The worker group does not come up any more."
    )


def _lora_files(job: Job) -> tuple[LoraFile, ...] | None:
    files = tuple(
        LoraFile(path=file.path, fingerprint=file.fingerprint, strength=asked.strength)
        for file, asked in zip(job.model.loras, job.on.loras or (), strict=True)
    )
    return files or None


def _reported(code: str, message: str, job: Job) -> TuttiError:
    """A rank's error as the client may see it: with a code we know, and without any file's path."""
    text = message.replace(job.model.path, job.on.model)
    for file, asked in zip(job.model.loras, job.on.loras or (), strict=True):
        text = text.replace(file.path, asked.name)
    return from_wire(code if code in ERRORS_BY_CODE else InternalError.code, text)
