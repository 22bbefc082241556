"""The exception tree, drawn once. A leaf: imports nothing of ours.

TuttiError
├── LocalProtocolError            we broke the protocol (a bug on this side)
├── RemoteProtocolError           the peer's bytes are not a message of ours
│   └── VersionMismatch           the peer speaks another major version
├── ConnectionProblem             the daemon could not be talked to
│   ├── DaemonUnreachable         nothing answers at the address
│   ├── AuthFailed                the daemon refused our key
│   └── ConnectionFileProblem     the connection file is missing, damaged or readable by others
├── RequestRefused                the request is understood and cannot be done; retrying it unchanged is useless
│   ├── UnknownModel              no such name in the daemon's folders
│   ├── BadCheckpoint             the file is damaged, incomplete, or of a format we do not read
│   ├── UnsupportedFamily         the file is of a family we do not run
│   ├── WrongFamily               the latent or the conditioning belongs to another family
│   ├── BadPlan                   the plan cannot work on this group or this model
│   ├── BadRequest                a field is out of its range
│   ├── UnsupportedInput          an input that changes the picture and that we cannot honour
│   ├── JobConflict               the same job id with other bytes
│   ├── UnknownJob                no such job or trajectory (any more)
│   └── OutOfMemory               the model or the call does not fit
├── Busy                          try again later
│   ├── QueueFull                 the client's or the daemon's quota is used up
│   ├── NotReady                  the worker group is starting, or restarting
│   └── Draining                  the daemon is stopping
├── JobCancelled                  the job was cancelled by its owner
├── WorkerDied                    a rank died while the job ran
├── GroupFailed                   the worker group does not come up any more
└── InternalError                 a bug of ours; the details are in the daemon's log

Every class has a stable wire ``code``. Text that crosses the wire holds no path, host name or key. The first sentence
of a message says what to do.
"""

from __future__ import annotations

from typing import ClassVar


class TuttiError(Exception):
    """Base of everything Tutti raises on purpose."""

    code: ClassVar[str] = "error"
    __module__ = "tutti"

    def __init_subclass__(cls) -> None:
        """Every class says ``tutti.Name`` of itself, wherever the pack lies: inside ComfyUI the module's own name is a path of the user's disk."""
        super().__init_subclass__()
        cls.__module__ = "tutti"

    @property
    def message(self) -> str:
        """The text for people, without the class name."""
        return str(self.args[0]) if self.args else self.code


class LocalProtocolError(TuttiError):
    """We tried to send something that is not a legal message."""

    code = "local_protocol"


class RemoteProtocolError(TuttiError):
    """The peer sent something that is not a legal message. Parsing any bytes raises this or nothing."""

    code = "remote_protocol"


class VersionMismatch(RemoteProtocolError):
    """The peer speaks another major version of the protocol."""

    code = "version_mismatch"


class ConnectionProblem(TuttiError):
    """The daemon could not be talked to."""

    code = "connection"


class DaemonUnreachable(ConnectionProblem):
    """Nothing answers at the daemon's address."""

    code = "daemon_unreachable"


class AuthFailed(ConnectionProblem):
    """The daemon refused our key."""

    code = "auth_failed"


class ConnectionFileProblem(ConnectionProblem):
    """The connection file is missing, damaged, or readable by others."""

    code = "connection_file"


class RequestRefused(TuttiError):
    """The request is understood and cannot be done; sending it again unchanged is useless."""

    code = "refused"


class UnknownModel(RequestRefused):
    """No such model name in the daemon's folders."""

    code = "unknown_model"


class BadCheckpoint(RequestRefused):
    """The checkpoint is damaged, incomplete, or of a format we do not read."""

    code = "bad_checkpoint"


class UnsupportedFamily(RequestRefused):
    """The checkpoint is of a family we do not run."""

    code = "unsupported_family"


class WrongFamily(RequestRefused):
    """The latent or the conditioning belongs to another family than the model."""

    code = "wrong_family"


class BadPlan(RequestRefused):
    """The plan cannot work on this worker group or with this model."""

    code = "bad_plan"


class BadRequest(RequestRefused):
    """A field is out of its range."""

    code = "bad_request"


class UnsupportedInput(RequestRefused):
    """An input that changes the picture and that we cannot honour."""

    code = "unsupported_input"


class JobConflict(RequestRefused):
    """The same job id was submitted with other bytes."""

    code = "job_conflict"


class UnknownJob(RequestRefused):
    """No such job or trajectory, or not any more."""

    code = "unknown_job"


class OutOfMemory(RequestRefused):
    """The model or the call does not fit into memory."""

    code = "out_of_memory"


class Busy(TuttiError):
    """Not now; the same request may work later."""

    code = "busy"


class QueueFull(Busy):
    """The client's or the daemon's quota is used up."""

    code = "queue_full"


class NotReady(Busy):
    """The worker group is starting or restarting."""

    code = "not_ready"


class Draining(Busy):
    """The daemon is stopping and takes no new work."""

    code = "draining"


class JobCancelled(TuttiError):
    """The job was cancelled by its owner."""

    code = "cancelled"


class WorkerDied(TuttiError):
    """A rank died while the job ran."""

    code = "worker_died"


class GroupFailed(TuttiError):
    """The worker group does not come up any more: its restart budget is used up."""

    code = "group_failed"


class InternalError(TuttiError):
    """A bug of ours; the details are in the daemon's log."""

    code = "internal"


def _tree(cls: type[TuttiError]) -> dict[str, type[TuttiError]]:
    codes = {cls.code: cls}
    for child in cls.__subclasses__():
        codes |= _tree(child)
    return codes


ERRORS_BY_CODE: dict[str, type[TuttiError]] = _tree(TuttiError)
"""Wire code -> exception class."""


def from_wire(code: str, message: str) -> TuttiError:
    """The exception that a peer reported. An unknown code becomes an :class:`InternalError` that quotes it."""
    cls = ERRORS_BY_CODE.get(code)
    return cls(message) if cls else InternalError(f"{message} [{code}]")
