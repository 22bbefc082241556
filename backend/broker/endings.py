"""How jobs end before their time: cancel, release, a vanished client, a failure. In every state, so that nothing is left over."""

from __future__ import annotations

from ..errors import TuttiError, UnknownJob
from ..wire import codec
from ..wire.job_states import JobState
from ..wire.messages import Abort, Cancel, Ended, Release
from .actions import ForgetClient, SendRanks
from .clients import ClientKey
from .core import Core, why_cancelled
from .jobs import CancelReason, Job


class Endings:
    """Ends jobs."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def cancel(self, job: Job, reason: CancelReason) -> None:
        """End an open job as soon as that is possible: at once, or when every rank has left it."""
        if job.state is JobState.RUNNING:
            self._leave(job, reason)
            return
        if job.state is JobState.PREPARING:
            self.abort_turn()
        error = why_cancelled(reason)
        self._core.end(
            job, JobState.DONE if reason == "released" and job.state is JobState.WAITING else JobState.CANCELLED, error
        )

    def _leave(self, job: Job, reason: CancelReason) -> None:
        """The ranks are at it: rank 0 is told, and says so in the control vector before the next call."""
        if job.cancelling is None:
            message = Cancel(job_id=job.job_id)
            self._core.emit(SendRanks(peers=self._core.group.peers[:1], message=message, frames=codec.encode(message)))
            job.cancelling = reason

    def fail(self, job: Job, error: TuttiError) -> None:
        """End a job that no rank computes."""
        if job.state is JobState.PREPARING:
            self.abort_turn()
        self._core.end(job, JobState.FAILED, error)

    def abort_turn(self) -> None:
        """Tell the ranks to forget what they prepare. They do not answer; the next Prepare may follow at once."""
        core, turn = self._core, self._core.turn
        if turn:
            message = Abort(sequence=turn.sequence)
            core.emit(SendRanks(peers=core.group.peers, message=message, frames=codec.encode(message)))
            if core.group.answered_by_all < turn.sequence:
                core.unread.hold(turn.sequence, turn.job.owner, turn.size_bytes)
            core.turn = None

    # --- what clients ask for -------------------------------------------------------------------------------------------------

    def cancel_asked(self, peer: bytes, message: Cancel, owner: ClientKey) -> None:
        """A client's Cancel."""
        job = self._core.jobs.get(message.job_id)
        self._core.drop_held_submissions(owner, message.job_id)
        if job is None or job.owner != owner or job.state.is_terminal:
            gone = UnknownJob("Nothing to do: the job has ended, or was never here.")
            self._core.refuse(peer, gone, job_id=message.job_id)
            return
        job.peer = peer
        self._core.take_successor(job)
        self.cancel(job, "client")

    def release_asked(self, peer: bytes, message: Release, owner: ClientKey) -> None:
        """A client's Release. The end of something that is not there is reached already."""
        job = self._core.jobs.get(message.job_id)
        if job is None or job.owner != owner or job.kind != "evaluate":
            self._core.tell(peer, Ended(job_id=message.job_id))
            return
        job.peer = peer
        self.cancel(job, "released")

    # --- clients that vanish --------------------------------------------------------------------------------------------------

    def give_up_vanished(self, now_s: float) -> None:
        """End what belongs to connections whose lease ran out, except Samples that shall be finished all the same."""
        core = self._core
        gone: set[bytes] = set()
        for job in list(core.jobs.open()):
            if not core.connections.vanished(job.peer, now_s):
                continue
            gone.add(job.peer)
            keeps = getattr(job.request, "keep_if_client_gone", False)
            if not keeps and job.cancelling is None:
                self.cancel(job, "vanished")
        for peer in gone:
            core.emit(ForgetClient(peer=peer))
        self._drop_stale_uploads(now_s)
        core.give_up(core.results.expire(now_s))
        core.connections.trim({job.peer for job in core.jobs.open()})

    def _drop_stale_uploads(self, now_s: float) -> None:
        core = self._core
        open_keys = {(job.owner, job.job_id) for job in core.jobs.open()}
        for key in core.uploads.stale(open_keys, now_s - core.settings.lease_s):
            core.drop_uploads(key)
