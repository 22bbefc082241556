"""What clients ask for: Samples, Uploads, Evaluates, and the rules by which an id that comes again is answered."""

from __future__ import annotations

from ..errors import BadRequest, Draining, GroupFailed, JobConflict, QueueFull, TuttiError, UnknownJob
from ..wire.job_states import JobState
from ..wire.messages import Accepted, Evaluate, Sample, Upload
from .actions import Digest, ForwardClient
from .clients import ClientKey
from .core import Core
from .digests import OfSubmission, OfUpload
from .endings import Endings
from .events import ClientSent, ModelFile
from .jobs import Job
from .uploads import StoredUpload


class Admission:
    """Takes work in."""

    def __init__(self, core: Core, endings: Endings) -> None:
        self._core = core
        self._endings = endings

    # --- submissions ----------------------------------------------------------------------------------------------------------

    def submit(
        self, event: ClientSent, request: Sample | Evaluate, owner: ClientKey, now_s: float, digest: str | None = None
    ) -> None:
        """A Sample, or turn 0 of an Evaluate. ``digest`` is given when it had to be compared and has been computed."""
        job = self._core.jobs.get(request.job_id)
        if job is None:
            self._admit(event, request, owner, now_s)
        elif job.owner != owner or type(job.request) is not type(request):
            self._refuse(event, request.job_id, _conflict())
        elif job.cancelling:
            self._wait_behind(job, event)
        elif digest is None or job.digest is None:
            self._compare(event, job)
        elif digest != job.digest:
            self._refuse(event, request.job_id, _conflict())
        else:
            self._answer_again(event, job, now_s)

    def _compare(self, event: ClientSent, job: Job) -> None:
        """The id is known: are the bytes the same? Digests come in the order they are asked for, so the job's is there first."""
        owner, size_bytes = job.owner, event.size_bytes
        try:
            self._core.accounts.check(owner, jobs=0, size_bytes=size_bytes)
        except TuttiError as error:
            self._refuse(event, job.job_id, error)
            return
        self._core.ask_digest(job)
        token = self._core.digests.ask(OfSubmission(event, owner, job.job_id), owner, size_bytes)
        self._core.emit(Digest(token=token, frames=event.frames))

    def compared(self, purpose: OfSubmission, digest: str, now_s: float) -> None:
        """The digest that :meth:`_compare` asked for has come."""
        request = purpose.event.received.message
        if isinstance(request, Sample | Evaluate):
            self.submit(purpose.event, request, purpose.owner, now_s, digest)

    def _wait_behind(self, job: Job, event: ClientSent) -> bool:
        """Have a submission wait for the end of the attempt before it; False if it was refused."""
        try:
            self._core.set_successor(job, event)
        except QueueFull as error:
            self._refuse(event, job.job_id, error)
            return False
        return True

    def _answer_again(self, event: ClientSent, job: Job, now_s: float) -> None:
        """The same request again: this connection is the one that is told from now on."""
        if job.state is JobState.DONE and isinstance(event.model, ModelFile) and event.model != job.model:
            # The same bytes, but the checkpoint's file was replaced: what is kept is a picture of other weights.
            self._core.results.discard(job.job_id)
            self._core.jobs.remove(job.job_id)
            self._admit(event, job.request, job.owner, now_s)
            return
        job.peer = event.peer
        if isinstance(job.request, Evaluate) and job.request.turn > 0:
            # A client that begins its loop again while the old one is still open: it was restarted.
            if self._wait_behind(job, event):
                self._endings.cancel(job, "superseded")
            return
        self._accept(job)
        if job.state is JobState.DONE:
            kept = self._core.results.hand_over(job.job_id, now_s)
            if kept:
                frames, given_up = kept
                self._core.emit(ForwardClient(peer=event.peer, frames=frames, job_id=job.job_id, droppable=False))
                self._core.give_up(given_up)
        elif job.answer is not None:
            self._core.emit(ForwardClient(peer=event.peer, frames=job.answer, job_id=job.job_id, droppable=False))

    def _admit(self, event: ClientSent, request: Sample | Evaluate, owner: ClientKey, now_s: float) -> None:
        core, size_bytes = self._core, event.size_bytes
        try:
            model = self._admissible(event, request, owner, size_bytes)
        except TuttiError as error:
            self._refuse(event, request.job_id, error)
            return
        job = Job(
            job_id=request.job_id, owner=owner, peer=event.peer, model=model, request=request, tensors=event.received.tensors,
            frames=event.frames, payload_bytes=size_bytes, attempt=core.jobs.next_attempt(request.job_id),
        )  # fmt: skip
        core.jobs.add(job)
        core.accounts.take(owner, jobs=1, size_bytes=size_bytes)
        core.queue.push(owner, job.job_id)
        core.persist(job)
        self._accept(job)

    def _admissible(
        self, event: ClientSent, request: Sample | Evaluate, owner: ClientKey, size_bytes: int
    ) -> ModelFile:
        """The model to run on. Raises whatever speaks against taking this job."""
        core = self._core
        if core.draining:
            raise Draining("Send it again when the daemon is back: it is being stopped and takes no new work.")
        if core.group.condition == "failed":
            raise group_failed(core.group.reason)
        if not isinstance(event.model, ModelFile):
            raise event.model or BadRequest("Name a model: this job names none.")
        if isinstance(request, Evaluate):
            core.uploads.require((owner, request.job_id), request)
        core.accounts.check(owner, jobs=1, size_bytes=size_bytes)
        return event.model

    def _accept(self, job: Job) -> None:
        ahead = self._core.ahead_of(job.job_id) if job.state is JobState.QUEUED else 0
        # The states that a submission can be answered with are exactly those that Accepted knows.
        self._core.tell(job.peer, Accepted(job_id=job.job_id, state=job.state.value, ahead=ahead))  # type: ignore[arg-type]

    # --- Evaluate -------------------------------------------------------------------------------------------------------------

    def upload(self, event: ClientSent, message: Upload, owner: ClientKey, now_s: float) -> None:
        """Conditioning of a trajectory, before or during it. Answered only if it is refused."""
        core, key, job = self._core, (owner, message.job_id), self._core.jobs.get(message.job_id)
        if core.uploads.get(key, message.digest):
            return
        size_bytes = event.size_bytes
        try:
            if job is not None and (job.owner != owner or job.kind != "evaluate"):
                raise UnknownJob("Upload under the id of an Evaluate trajectory of yours: this is none.")
            if core.draining and job is None:
                raise Draining("Send it again when the daemon is back: it is being stopped and takes no new work.")
            if core.uploads.count(key) >= core.settings.quotas.trajectory_uploads:
                raise BadRequest(
                    f"Upload less: a trajectory has at most {core.settings.quotas.trajectory_uploads} uploads."
                )
            core.accounts.check(owner, jobs=0, size_bytes=size_bytes)
        except TuttiError as error:
            self._refuse(event, message.job_id, error)
            return
        core.accounts.take(owner, size_bytes=size_bytes)
        upload = StoredUpload(event.received.tensors, size_bytes)
        core.uploads.put(key, message.digest, upload, now_s)
        upload.digest_token = core.digests.ask(OfUpload(key, message.digest, event.peer, upload), owner, size_bytes)
        core.emit(Digest(token=upload.digest_token, tensors=event.received.tensors))

    def upload_checked(self, purpose: OfUpload, digest: str) -> None:
        """The digest of an upload has come: turns that wait for it may run, or never will."""
        core, (owner, job_id) = self._core, purpose.key
        if core.uploads.get(purpose.key, purpose.claimed) is not purpose.upload:
            return  # dropped meanwhile; what came again under the same name has a digest of its own on its way
        if digest == purpose.claimed:
            purpose.upload.checked = True
            return
        error = BadRequest("Send the upload again: its content has another digest than it claims.")
        core.accounts.give_back(owner, size_bytes=core.uploads.discard(purpose.key, purpose.claimed))
        job = core.jobs.get(job_id)
        if job and job.owner == owner and job.state is JobState.QUEUED:
            self._endings.fail(job, error)
        else:
            core.refuse(purpose.peer, error, job_id=job_id)

    def next_turn(self, event: ClientSent, request: Evaluate, owner: ClientKey) -> None:
        """Turn 1 or later of a trajectory. A refused turn leaves the trajectory open."""
        core, job = self._core, self._core.jobs.get(request.job_id)
        if job is None or job.owner != owner or not isinstance(job.request, Evaluate) or job.cancelling:
            gone = UnknownJob("Begin the trajectory again with turn 0: it has ended, or was never open.")
            self._refuse(event, request.job_id, gone)
            return
        try:
            if request.turn == job.turn:
                job.peer = event.peer
                if job.answer is not None:
                    core.emit(ForwardClient(peer=event.peer, frames=job.answer, job_id=job.job_id, droppable=False))
                return
            if request.turn != job.turn + 1 or job.state is not JobState.WAITING:
                raise BadRequest(
                    f"Send the turns one after the other: turn {request.turn} came, {job.turn} is the last one."
                )
            if request.on != job.on:
                raise BadRequest(
                    "Begin another trajectory for another model or plan: this one was opened for the first."
                )
            core.uploads.require((owner, job.job_id), request)
            core.accounts.check(owner, jobs=0, size_bytes=event.size_bytes)
        except TuttiError as error:
            self._refuse(event, request.job_id, error)
            return
        self._queue_turn(event, job, request)

    def _queue_turn(self, event: ClientSent, job: Job, request: Evaluate) -> None:
        job.peer, job.request, job.tensors, job.frames = event.peer, request, event.received.tensors, event.frames
        job.payload_bytes, job.answer = event.size_bytes, None
        self._core.accounts.take(job.owner, size_bytes=job.payload_bytes)
        job.move(JobState.QUEUED)
        self._core.queue.push(job.owner, job.job_id)

    def _refuse(self, event: ClientSent, job_id: str, error: TuttiError) -> None:
        self._core.refuse(event.peer, error, job_id=job_id)


def group_failed(reason: str) -> GroupFailed:
    """What every job is told once the group does not come up any more."""
    return GroupFailed(
        f"Look at the daemon's log and start it again: the worker group does not come up any more ({reason})."
    )


def _conflict() -> JobConflict:
    return JobConflict("Give every job an id of its own: this one belongs to another job.")
