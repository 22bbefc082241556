"""One daemon, put together: lock, keys, sockets, broker, supervisor; and taken apart again, whatever happened in between."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import zmq

from ... import __version__
from ..assets import files
from ..broker.auth import HAS_PEER_CREDENTIALS, Gate, ZapHandler
from ..broker.catalog import Catalog
from ..broker.keys import AuthorizedKeys, KeyPair, server_key
from ..broker.ledger import MemoryLedger
from ..broker.names import STORED
from ..broker.server import Server
from ..broker.settings import BrokerSettings
from ..broker.sockets import IO_THREADS, ClientSocket, RankSocket
from ..broker.state import Broker
from ..broker.store import FileStore
from ..supervisor.incarnation import GroupSettings
from ..supervisor.runtime_dir import make_runtime_dir
from ..supervisor.supervisor import Supervisor
from ..wire.connection import CONNECTION_FILE, FOLDERS_FILE, Connection, write_connection
from .listening import DEFAULT, Address
from .main import CommandError
from .settings import ServeSettings
from .state_directory import LOGS_FOLDER, DaemonLock, compiled_code_folder, remove_other_versions

log = logging.getLogger(__name__)

SOFTWARE = f"tutti {__version__}"
LOCAL_SOCKET = "clients"
"""Name of the Unix socket for clients of this user, in the runtime folder."""


class Daemon:
    """Everything that one ``tutti serve`` runs. Use it as a context manager, from the main thread."""

    def __init__(self, settings: ServeSettings, on_ready: Callable[[float], None]) -> None:
        """``on_ready`` is called with the seconds since the start, every time the group has come up.

        Raises:
            CommandError: it cannot be started; nothing is left behind.
        """
        self._settings = settings
        self._started_s = time.monotonic()
        self._on_ready = on_ready
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._server = self._build(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def failure(self) -> str | None:
        """Why the group never came up; None if it did."""
        return self._server.failure

    def run(self) -> None:
        """Serve until stopped by a signal, or until it is clear that the group does not come up."""
        with _signals(self._server.ask_drain):
            self._server.run()

    def _build(self, stack: ExitStack) -> Server:
        settings = self._settings
        lock = DaemonLock(settings.state_dir)
        lock.take()
        stack.callback(lock.release)
        runtime = make_runtime_dir(settings.state_dir)
        stack.callback(shutil.rmtree, runtime, ignore_errors=True)
        key, local = server_key(settings.state_dir), KeyPair.make()
        authorized = AuthorizedKeys(settings.state_dir)
        self._check_listening(authorized)
        context = zmq.Context(IO_THREADS)
        stack.callback(context.term)
        gate = Gate(local, authorized)
        zap = ZapHandler(context, gate)
        stack.callback(zap.close)
        local_socket = runtime / LOCAL_SOCKET if HAS_PEER_CREDENTIALS else None
        clients = ClientSocket(context, key, local_socket)
        stack.callback(clients.close)
        ranks = RankSocket(context)
        stack.callback(ranks.close)
        self.catalog = Catalog(
            settings.models, settings.state_dir / FOLDERS_FILE, files.FOLDER, settings.state_dir / STORED
        )
        self.endpoints = self._bind(clients)
        group = self._group_settings(runtime)
        ranks.bind(group.rank_endpoint)
        server = Server(
            broker=Broker(self._broker_settings(), time.monotonic()), clients=clients, ranks=ranks, zap=zap, gate=gate,
            catalog=self.catalog, store=FileStore(settings.state_dir / STORED), ledger=MemoryLedger(), group=Supervisor(group),
            on_ready=self._ready,
        )  # fmt: skip
        stack.callback(server.close)
        stack.enter_context(self._connection_file(key, local, local_socket))
        return server

    def _ready(self) -> None:
        self._on_ready(time.monotonic() - self._started_s)

    def _broker_settings(self) -> BrokerSettings:
        settings = self._settings
        return BrokerSettings(
            instance=secrets.token_hex(16),
            software=SOFTWARE,
            world_size=settings.ranks,
            plan=settings.plan,
            device=settings.device,
            compile=settings.compile,
        )

    def _group_settings(self, runtime: Path) -> GroupSettings:
        settings = self._settings
        compiled = compiled_code_folder(settings.state_dir)
        remove_other_versions(compiled)
        return GroupSettings(
            world_size=settings.ranks,
            device=settings.device,
            transport=settings.transport,
            runtime_dir=runtime,
            logs_dir=settings.state_dir / LOGS_FOLDER,
            rank_module=settings.rank_module,
            compile=settings.compile,
            compiled_dir=compiled,
            environment=dict(os.environ),
        )

    def _check_listening(self, authorized: AuthorizedKeys) -> None:
        if not self._settings.listen.is_loopback and not authorized.names():
            raise CommandError(
                "Make a key for the other machine first (`tutti keys add NAME --address HOST:PORT`): "
                "a daemon that listens beyond this machine lets nobody in who has none."
            )

    def _bind(self, clients: ClientSocket) -> list[str]:
        """Listen where it was asked for, and on this machine in any case; the first address is this machine's."""
        listen = self._settings.listen
        endpoints = [_bind(clients, listen)]
        if not listen.is_loopback:
            endpoints.insert(0, _bind(clients, Address(DEFAULT, 0)))
        return endpoints

    @contextmanager
    def _connection_file(self, key: KeyPair, local: KeyPair, local_socket: Path | None) -> Iterator[None]:
        """Tell this machine's clients how to reach us. Written last: whoever finds it finds a daemon that listens."""
        path = self._settings.state_dir / CONNECTION_FILE
        connection = Connection(
            endpoint=self.endpoints[0],
            server_public_key=key.public,
            client_public_key=local.public,
            client_secret_key=local.secret,
            pid=os.getpid(),
            local_socket=None if local_socket is None else str(local_socket),
        )
        write_connection(path, connection)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _bind(clients: ClientSocket, address: Address) -> str:
    try:
        return clients.bind(address.endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise CommandError(f"Choose another port with --listen: {address.endpoint} is in use.") from error
        raise CommandError(
            f"Choose an address of this machine with --listen: {address.endpoint} cannot be used ({error.strerror})."
        ) from error


@contextmanager
def _signals(drain: Callable[[], None]) -> Iterator[None]:
    def on_signal(number: int, _frame: FrameType | None) -> None:
        drain()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):
                signal.signal(number, handler)
