"""What can happen to the broker: the input of its state machine. Nothing here holds a socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RemoteProtocolError, TuttiError
from ..wire.codec import Frame, Received


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model name that the catalog found."""

    path: str
    """Where the file is. Never crosses the client leg."""
    fingerprint: str
    """Changes when the file changes."""
    loras: tuple[ModelFile, ...] = ()
    """The LoRAs that a job names beside it, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSent:
    """A client's message."""

    peer: bytes
    """Routing identity of the connection."""
    user: str
    """Its public key."""
    received: Received
    frames: Sequence[Frame]
    """The message as it came, without the preamble: header and tensors. Its digest is what "the same bytes" means."""
    model: ModelFile | TuttiError | None = None
    """What the catalog says about the model that a Sample or an Evaluate names."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the header and the tensors."""
        return sum(memoryview(frame).nbytes for frame in self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientGarbled:
    """Bytes from a client's connection that are no message."""

    peer: bytes
    error: RemoteProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """An answer of a job found nobody: the connection is gone, or its client reads nothing."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeAnswered:
    """What a :class:`~.actions.DescribeModel` asked for was looked up, and its client answered."""

    peer: bytes
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSent:
    """A rank's message."""

    peer: bytes
    received: Received
    frames: Sequence[Frame]
    """The whole message as it came, ready to be handed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGarbled:
    """Bytes from a rank's connection that are no message."""

    peer: bytes
    error: RemoteProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStarting:
    """The supervisor started the ranks; their RankHello will come."""

    group_id: int
    incarnation: str
    token: str
    """What the ranks of this incarnation know and nobody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLost:
    """The ranks of an incarnation are gone, all of them."""

    incarnation: str
    cause: str
    """What happened, as the middle of a sentence: ``rank 1 was killed by signal 9 (SIGKILL)``."""
    failed: bool
    """The restart budget is used up: there will be no other incarnation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested:
    """A digest that was asked for is ready."""

    token: int
    """The token of the :class:`~.actions.Digest` action."""
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take no new work; finish, or end, what is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The daemon ends now, whatever is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed."""


Event = (
    ClientSent
    | ClientGarbled
    | Undelivered
    | DescribeAnswered
    | RankSent
    | RankGarbled
    | GroupStarting
    | GroupLost
    | Digested
    | Drain
    | Stop
    | Tick
)
