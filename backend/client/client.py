"""The conversations of a client: requests, Samples, Evaluate trajectories, cancel. Blocking, interruptible every 50 ms.

Whoever waits passes ``idle``: it is called at least every 50 ms and may raise to interrupt the wait (ComfyUI's Cancel). An
interrupted job is cancelled and waited for, so that the next one starts clean.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from ..errors import AuthFailed, ConnectionProblem, DaemonUnreachable, NotReady, TuttiError, UnknownJob, from_wire
from ..wire import codec
from ..wire.codec import Received
from ..wire.connection import Connection
from ..wire.digest import job_digest
from ..wire.limits import STORE_PIECE_BYTES
from ..wire.messages import (
    Cancel,
    Describe,
    Described,
    Ended,
    Evaluate,
    Evaluated,
    Failed,
    Hello,
    Message,
    Ping,
    Release,
    Result,
    Sample,
    Status,
    StatusRequest,
    Store,
    Stored,
    Upload,
    Welcome,
)  # fmt: skip
from ..wire.tensors import Tensors, WireTensor
from .keepalive import Keepalive
from .link import Link

T = TypeVar("T")
Idle = Callable[[], None]
Listener = Callable[[Received], None]
"""Told about Accepted, Progress and Preview messages of the job that is waited for."""

POLL_S: Final = 0.05
SILENCE_S: Final = 10.0
"""A daemon that answers nothing, not even a Ping, for so long is gone."""
PING_S: Final = 2.0
CANCEL_S: Final = 5.0
"""How long an interrupted job is waited for before the socket is given up."""
_NO_ID: Final = "0" * 32


def _ignore() -> None:
    """The idle hook of a caller that cannot be interrupted."""


def job_id_for(message: Sample | Evaluate, tensors: Tensors, client_id: str) -> str:
    """The id of a job: the digest of who asks, for which node, and the message itself. The same request has the same id again."""
    frames = codec.encode(replace(message, job_id=_NO_ID), tensors)
    return job_digest(client_id, message.node_id, frames)


class Client:
    """One client process's connection to one daemon. Use it from one thread at a time."""

    def __init__(self, connection: Connection, *, client_id: str, software: str) -> None:
        self.client_id = client_id
        self.welcome: Welcome | None = None
        """What the daemon said when we connected."""
        self._connection = connection
        self._software = software
        self._requests = itertools.count(1)
        self._lock = threading.RLock()
        self._link = Link(connection)
        self._greeted_reconnects = 0
        self._asked: tuple[Message, Tensors] | None = None
        """The request that is waited for. Every request may be sent twice, and is, when the connection was lost on the way."""
        self._unheard = False
        """Whether the request may have overtaken our hello on a connection that came up again."""
        self._last_heard_s = time.monotonic()
        self._last_ping_s = 0.0
        self._keepalive = Keepalive(self._lock, self._ping, PING_S)

    @property
    def leg(self) -> str:
        """How the daemon is reached: ``ipc`` (a Unix socket of this machine) or ``tcp``."""
        return self._link.leg

    # --- connection -----------------------------------------------------------------------------------------------------------

    def connect(self, timeout_s: float = 5.0, idle: Idle = _ignore) -> Welcome:
        """Say hello and wait for the daemon's welcome. Who is refused at the Unix socket tries TCP, once.

        Raises:
            DaemonUnreachable: nothing answers.
            AuthFailed: the daemon refused our key, or this process at its Unix socket and TCP did not help.
        """
        with self._lock:
            deadline = time.monotonic() + timeout_s
            try:
                return self._say_hello(deadline, idle)
            except AuthFailed as refused:
                if self._link.leg == "tcp":
                    raise
                self._renew_link(replace(self._connection, local_socket=None))
                try:
                    return self._say_hello(deadline, idle)
                except ConnectionProblem as error:
                    raise refused from error

    def _say_hello(self, deadline: float, idle: Idle) -> Welcome:
        self._link.send(Hello(client_id=self.client_id, software=self._software))
        while time.monotonic() < deadline:
            idle()
            received = self._link.receive(POLL_S)
            if received and isinstance(received.message, Welcome):
                self.welcome = received.message
                self._last_heard_s = time.monotonic()
                return received.message
            if received and isinstance(received.message, Failed):
                raise from_wire(received.message.code, received.message.message)
        raise DaemonUnreachable("Start the daemon with `tutti serve`: nothing answers at its address.")

    def _renew_link(self, connection: Connection) -> None:
        """Give the socket up and take another one, for as long as this client lives."""
        self._link.close()
        self._connection, self._link = connection, Link(connection)
        self._greeted_reconnects = 0

    def close(self) -> None:
        """Close the connection. Open trajectories are left to their lease: release them first."""
        self._keepalive.stop()
        with self._lock:
            self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- requests -------------------------------------------------------------------------------------------------------------

    def describe(self, model: str = "", idle: Idle = _ignore) -> Received:
        """The daemon's model names (``model`` empty) or one checkpoint's tensors, as a Described with its manifest."""
        return self._ask(Describe(request=next(self._requests), model=model), Described, idle)

    def status(self, idle: Idle = _ignore) -> Status:
        """What ``tutti status`` shows."""
        return cast(Status, self._ask(StatusRequest(request=next(self._requests)), Status, idle).message)

    def store(self, data: bytes | memoryview, idle: Idle = _ignore) -> str:
        """Have the daemon keep a file's bytes, unless it has them; returns the name by which jobs use them.

        Raises:
            TuttiError: it refused, or there is no room.
        """
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        view, size_bytes = memoryview(data), len(data)
        have = self._store_piece(digest, size_bytes, 0, None, idle)
        while have < size_bytes:
            have = self._store_piece(digest, size_bytes, have, view[have : have + STORE_PIECE_BYTES], idle)
        return f"stored/{digest}.safetensors"

    def _store_piece(self, digest: str, size_bytes: int, offset: int, piece: memoryview | None, idle: Idle) -> int:
        message = Store(request=next(self._requests), digest=digest, size_bytes=size_bytes, offset=offset)
        tensors = {} if piece is None else {"bytes": WireTensor(dtype="U8", shape=(len(piece),), data=piece)}
        return cast(Stored, self._ask(message, Stored, idle, tensors).message).have_bytes

    def _ask(
        self, message: Describe | StatusRequest | Store, answer: type[Any], idle: Idle, tensors: Tensors | None = None
    ) -> Received:
        with self._lock:
            self._send(message, tensors or {})
            return self._wait(
                lambda m: isinstance(m, answer) and m.request == message.request,
                lambda failed: failed.request == message.request,
                idle,
            )

    # --- jobs -----------------------------------------------------------------------------------------------------------------

    def sample(self, message: Sample, tensors: Tensors, listener: Listener, idle: Idle = _ignore) -> Received:
        """Run one whole trajectory and return its Result. Interrupting the wait cancels the job.

        Raises:
            TuttiError: whatever the daemon refused or failed with.
        """
        with self._lock:
            self._send(message, tensors)
            return self._wait_for_job(message.job_id, lambda m: isinstance(m, Result), listener, idle)

    def upload(self, job_id: str, digest: str, tensors: Tensors) -> None:
        """Send conditioning of an Evaluate trajectory. A refusal shows at the Evaluate that names it."""
        with self._lock:
            self._greet_again_if_needed()
            self._link.send(Upload(job_id=job_id, digest=digest), tensors)

    def evaluate(self, message: Evaluate, tensors: Tensors, listener: Listener, idle: Idle = _ignore) -> Received:
        """Run one turn of a trajectory and return its Evaluated. Interrupting the wait cancels the trajectory."""
        with self._lock:
            self._send(message, tensors)
            self._keepalive.hold(message.job_id)
            return self._wait_for_job(
                message.job_id, lambda m: isinstance(m, Evaluated) and m.turn == message.turn, listener, idle
            )

    def release(self, job_id: str, idle: Idle = _ignore) -> None:
        """End an Evaluate trajectory. One that already ended is fine."""
        self._keepalive.drop(job_id)
        with self._lock:
            self._send(Release(job_id=job_id))
            with contextlib.suppress(UnknownJob):
                self._wait(lambda m: isinstance(m, Ended) and m.job_id == job_id, lambda f: f.job_id == job_id, idle)

    def cancel(self, job_id: str) -> None:
        """Cancel a job and wait until the daemon says that it ended; give the socket up if that takes longer than 5 s."""
        self._keepalive.drop(job_id)
        with self._lock:
            self._link.send(Cancel(job_id=job_id))
            deadline = time.monotonic() + CANCEL_S
            while time.monotonic() < deadline:
                received = self._link.receive(POLL_S)
                message = received.message if received else None
                if isinstance(message, Failed | Result) and message.job_id == job_id:
                    return
            self._reopen()

    # --- waiting --------------------------------------------------------------------------------------------------------------

    def _wait_for_job(
        self, job_id: str, is_answer: Callable[[Message], bool], listener: Listener, idle: Idle
    ) -> Received:
        def mine(message: Message) -> bool:
            return getattr(message, "job_id", None) == job_id

        try:
            return self._wait(lambda m: mine(m) and is_answer(m), mine, idle, listener)
        except TuttiError:
            self._keepalive.drop(job_id)  # the job has ended, or the daemon is gone
            raise
        except BaseException:
            self.cancel(job_id)
            raise

    def _wait(
        self, is_answer: Callable[[Message], bool], is_failure: Callable[[Any], bool], idle: Idle,
        listener: Listener | None = None,
    ) -> Received:  # fmt: skip
        self._last_heard_s = time.monotonic()
        while True:
            idle()
            received = self._link.receive(POLL_S)
            self._stay_in_touch()
            if received is None:
                continue
            self._last_heard_s = time.monotonic()
            message = received.message
            if is_answer(message):
                return received
            if isinstance(message, Failed) and (is_failure(message) or _is_about_no_job(message)):
                if message.code == NotReady.code and self._ask_again_after_greeting():
                    continue
                raise from_wire(message.code, message.message)
            if listener and not isinstance(message, Failed | Welcome):
                listener(received)

    def _send(self, message: Message, tensors: Tensors | None = None) -> None:
        """Send a request that will be waited for."""
        self._greet_again_if_needed()
        self._asked = (message, tensors or {})
        self._link.send(message, tensors)

    def _stay_in_touch(self) -> None:
        """Ping, notice silence, and ask again after the connection was lost: the answer went to the connection that is gone."""
        now_s = time.monotonic()
        if now_s - self._last_heard_s > SILENCE_S:
            raise DaemonUnreachable(
                f"Look at the daemon's log and start it again with `tutti serve`: it has not answered for {SILENCE_S:.0f} s."
            )
        if now_s - self._last_ping_s > PING_S:
            self._ping()
        if self._greet_again_if_needed() and self._asked:
            self._unheard = True
            self._link.send(*self._asked)

    def _ask_again_after_greeting(self) -> bool:
        """After a reconnect: what libzmq still had queued arrived before our hello and was refused for that. Once per reconnect."""
        if not self._unheard or not self._asked:
            return False
        self._unheard = False
        self._link.send(*self._asked)
        return True

    def _greet_again_if_needed(self) -> bool:
        """Say hello on a connection that came up again; a broker knows nobody who has not."""
        self._link.look_at_connection()
        if self._link.reconnects == self._greeted_reconnects:
            return False
        self._greeted_reconnects = self._link.reconnects
        self._link.send(Hello(client_id=self.client_id, software=self._software))
        return True

    def _ping(self) -> None:
        self._last_ping_s = time.monotonic()
        self._link.send(Ping(nonce=next(self._requests)))

    def _reopen(self) -> None:
        """Give the socket up: what still comes for the old job finds no reader."""
        self._renew_link(self._connection)
        with contextlib.suppress(ConnectionProblem):  # the next job says what is wrong, at a place that can show it
            self.connect(timeout_s=1.0)


def _is_about_no_job(failed: Failed) -> bool:
    return failed.request is None and failed.job_id is None
