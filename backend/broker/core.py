"""What admission, dispatch and endings share: the broker's memory, and the few moves that touch several parts of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..errors import Draining, JobCancelled, TuttiError
from ..wire.codec import Frame
from ..wire.job_states import JobState
from ..wire.limits import ARRAY_LENGTH, TEXT_LENGTH
from ..wire.messages import Ended, Failed, GroupState, Message
from .actions import Action, Digest, EndPreviews, ForwardClient, Persist, SendClient
from .clients import ClientKey, Connections
from .describes import PendingDescribes
from .digests import OfJob, PendingDigests
from .events import ClientSent
from .group import Group, Turn
from .jobs import CancelReason, Job, JobTable
from .quotas import Accounts
from .results import KeptResults, Shelf
from .settings import BrokerSettings
from .turns import TurnQueue
from .unread import UnreadPrepares
from .uploads import Key, UploadStore


class Core:
    """The memory of the state machine. Every part keeps its own rules; this class keeps them in step with each other."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.connections = Connections(settings.lease_s)
        self.jobs = JobTable()
        self.queue = TurnQueue(settings.hold_s, settings.hold_longest_s)
        self.uploads = UploadStore()
        self.accounts = Accounts(settings.quotas)
        self.results = KeptResults(settings.kept_s, Shelf(settings.kept_bytes), Shelf(settings.kept_for_absent_bytes))
        self.group = Group(settings.world_size)
        self.turn: Turn | None = None
        self.unread = UnreadPrepares(self.accounts)
        self.digests = PendingDigests(self.accounts)
        self.describes = PendingDescribes(settings.quotas)
        self.forget: dict[str, None] = {}
        """Trajectories that the ranks shall drop with the next Prepare, in order."""
        self.again: deque[ClientSent] = deque()
        """Submissions that waited for the attempt before them to end."""
        self.draining = False
        self.finished = 0
        self.failed = 0
        self._actions: list[Action] = []

    # --- saying things --------------------------------------------------------------------------------------------------------

    def emit(self, action: Action) -> None:
        """Ask for an action."""
        self._actions.append(action)

    def take_actions(self) -> list[Action]:
        """What was asked for since the last time."""
        actions, self._actions = self._actions, []
        return actions

    def tell(self, peer: bytes, message: Message) -> None:
        """Send a client a message of ours."""
        self.emit(SendClient(peer=peer, message=message))

    def refuse(self, peer: bytes, error: TuttiError, *, request: int | None = None, job_id: str | None = None) -> None:
        """Tell a client that something cannot be done, or went wrong."""
        self.tell(peer, Failed(code=error.code, message=error.message[:TEXT_LENGTH], request=request, job_id=job_id))

    # --- the state of everything ----------------------------------------------------------------------------------------------

    def group_state(self) -> GroupState:
        """The one word for Welcome, Pong and Status."""
        if self.draining:
            return "draining"
        if self.group.condition != "ready":
            return self.group.condition
        return "busy" if self.turn else "ready"

    def ahead_of(self, job_id: str) -> int:
        """How many turns come before a queued job's, if nothing else arrives."""
        return self.queue.order().index(job_id) + (self.turn is not None)

    # --- moves ----------------------------------------------------------------------------------------------------------------

    def persist(self, job: Job, reason: str = "") -> None:
        """Put the job's present state into the ledger."""
        self.emit(Persist(record=job.record(reason)))

    def ask_digest(self, job: Job) -> None:
        """Have the digest of a job's request computed, once: when it has been answered, or when its id comes again before that.

        Not at Go: hashing 5 MiB would take a core from the first step.
        """
        if job.digest_token is None:
            job.digest_token = self.digests.ask(OfJob(job.job_id, job.attempt), job.owner, job.payload_bytes)
            self.emit(Digest(token=job.digest_token, frames=job.frames))

    def drop_payload(self, job: Job) -> None:
        """The request has been answered (or never will be): let go of it."""
        self.accounts.give_back(job.owner, size_bytes=job.drop_payload())
        self.digests.outlive(job.digest_token)

    def drop_uploads(self, key: Key) -> None:
        """A trajectory is over, or was never opened: let go of its conditioning."""
        for upload in self.uploads.drop(key):
            self.accounts.give_back(key[0], size_bytes=upload.size_bytes)
            self.digests.outlive(upload.digest_token)

    def end(self, job: Job, state: JobState, error: TuttiError | None = None) -> None:
        """A job failed or was cancelled (``error``), or a trajectory was released (none): tell the client, free what the job had."""
        if job.state is JobState.QUEUED:
            self.queue.remove(job.owner, job.job_id)
        job.move(state)
        self.persist(job, error.code if error else "")
        self.emit(EndPreviews(job_id=job.job_id))
        if error:
            self.refuse(job.peer, error, job_id=job.job_id)
        else:
            self.tell(job.peer, Ended(job_id=job.job_id))
        self.failed += state is JobState.FAILED
        self.finished += state is JobState.DONE
        self._free(job)
        self.jobs.remove(job.job_id)
        self._let_successor_go(job)

    def complete(self, job: Job, frames: Sequence[Frame], now_s: float) -> None:
        """A Sample is done: keep its Result, and hand it to the client if it is there."""
        job.move(JobState.DONE)
        self.persist(job)
        self.emit(EndPreviews(job_id=job.job_id))
        self.finished += 1
        present = not self.connections.vanished(job.peer, now_s)
        if present:
            self.emit(ForwardClient(peer=job.peer, frames=frames, job_id=job.job_id, droppable=False))
        self.ask_digest(job)
        self._free(job)
        self.give_up(self.results.put(job.job_id, frames, now_s, delivered=present))
        self._let_successor_go(job)

    def undelivered(self, job_id: str) -> None:
        """The Result that was handed over found nobody: keep it like those of absent clients."""
        kept = self.results.delivered.take(job_id)
        if kept:
            self.give_up(self.results.undelivered.put(job_id, kept))

    def give_up(self, job_ids: list[str]) -> None:
        """These results are not kept any more: an id that is submitted again is a new job."""
        for job_id in job_ids:
            self.jobs.remove(job_id)

    def _free(self, job: Job) -> None:
        self.drop_payload(job)
        self.accounts.give_back(job.owner, jobs=1)
        self.queue.release(job.job_id)
        key = (job.owner, job.job_id)
        if job.successor:
            self.uploads.forget_delivery(key)  # the next attempt names the same conditioning
        else:
            self.drop_uploads(key)
        if job.known_to_ranks:
            self.forget[job.job_id] = None

    # --- submissions that wait ------------------------------------------------------------------------------------------------

    def set_successor(self, job: Job, event: ClientSent) -> None:
        """The same id was submitted again while this attempt is being cancelled: it is answered when that has ended.

        Raises:
            QueueFull: its client has too much waiting. What waited before it waits on.
        """
        freed = job.successor.size_bytes if job.successor else 0
        self.accounts.check(job.owner, jobs=0, size_bytes=event.size_bytes - freed)
        self.take_successor(job)
        job.successor = event
        self.accounts.take(job.owner, size_bytes=event.size_bytes)

    def take_successor(self, job: Job) -> ClientSent | None:
        """The submission that waits for the end of this job, which waits no longer."""
        event, job.successor = job.successor, None
        if event:
            self.accounts.give_back(job.owner, size_bytes=event.size_bytes)
        return event

    def _let_successor_go(self, job: Job) -> None:
        event = self.take_successor(job)
        if event:
            self.again.append(event)

    def drop_held_submissions(self, owner: ClientKey, job_id: str) -> None:
        """A Cancel is about submissions too whose bytes are still being compared. They count until that is over."""
        self.digests.discard_submissions(owner, job_id)

    def next_forget_list(self) -> tuple[str, ...]:
        """What the next Prepare tells the ranks to drop."""
        return tuple(self.forget)[:ARRAY_LENGTH]

    def forgotten(self, job_ids: tuple[str, ...]) -> None:
        """The ranks have been told."""
        for job_id in job_ids:
            del self.forget[job_id]


def why_cancelled(reason: CancelReason) -> TuttiError | None:
    """What the owner of a cancelled job is told; None if it asked for the end itself, by Release."""
    texts: dict[CancelReason, TuttiError | None] = {
        "client": JobCancelled("Run it again if you want it after all: the job was cancelled."),
        "vanished": JobCancelled("Run it again: the client was silent for so long that its job was given up."),
        "superseded": JobCancelled(
            "Nothing to do: the same trajectory was begun again, and took the place of this one."
        ),
        "draining": Draining("Run it again when the daemon is back: it is being stopped."),
        "released": None,
    }
    return texts[reason]
