"""What the broker's state machine asks for: its output. The server carries actions out in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..wire.codec import Frame
from ..wire.job_states import JobState
from ..wire.messages import Message, Store
from ..wire.tensors import Tensors, WireTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What the ledger keeps of a job."""

    job_id: str
    user: str
    """The public key of its client."""
    client_id: str
    node_id: str
    kind: str
    """``sample`` or ``evaluate``"""
    model: str
    state: JobState
    attempt: int
    """1, then one more for every submission after a failure or a cancel."""
    reason: str = ""
    """Wire code of the error that ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Put a job's state into the ledger. Strictly before the client is told about it."""

    record: JobRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SendClient:
    """Tell a client something that must not be lost."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardClient:
    """Hand a rank's message to a client as it is."""

    peer: bytes
    frames: Sequence[Frame]
    job_id: str
    droppable: bool
    """A newer one of the same job replaces it while it waits (Progress)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPreview:
    """Hand a preview on, if the client keeps up and the last one is long enough ago."""

    peer: bytes
    frames: Sequence[Frame]
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPreviews:
    """The job has ended: no preview of it may come after its result."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetClient:
    """The client vanished: what waits for its connection is waste."""

    peer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRanks:
    """Send the same message to some ranks."""

    peers: tuple[bytes, ...]
    message: Message
    frames: Sequence[Frame]
    """The message, encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeModel:
    """Look into the catalog, away from the main loop, and answer the client with a Described or a Failed; then say DescribeAnswered."""

    peer: bytes
    user: str
    request: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePiece:
    """Write a piece of a file, away from the main loop, and answer the client with a Stored or a Failed; then say DescribeAnswered."""

    peer: bytes
    user: str
    message: Store
    data: WireTensor | None
    """None asks how much is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Compute a digest away from the main loop; the answer is a Digested event. Exactly one of frames and tensors is given."""

    token: int
    frames: Sequence[Frame] = ()
    """Digest of a message's bytes."""
    tensors: Tensors = field(default_factory=dict)
    """Digest of an Upload's content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartGroup:
    """A rank does what no rank may do: the group cannot be trusted any more."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Nothing is open any more; the daemon may stop."""


Action = (
    Persist | SendClient | ForwardClient | ForwardPreview | EndPreviews | ForgetClient | SendRanks | DescribeModel | StorePiece
    | Digest | RestartGroup | Drained
)  # fmt: skip
