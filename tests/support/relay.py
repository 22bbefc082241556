"""A TCP relay on the loopback whose connections a test can cut: what a sleeping laptop or a flaky network does."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Passes bytes both ways between whoever connects and one address."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake, self._woken = socket.socketpair()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name="relay")
        self.cuts = 0
        """Connections cut so far."""
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Close every connection; new ones are taken at once."""
        self._wake.send(b"c")

    def close(self) -> None:
        """End the relay."""
        self._wake.send(b"q")
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for readable in (self._listener, self._woken):
                selector.register(readable, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    if ready is self._woken:
                        quits = self._woken.recv(1) == b"q"
                        self._drop_all(selector)
                        if quits:
                            for own in (self._listener, self._wake, self._woken):
                                own.close()
                            return
                    elif ready is self._listener:
                        self._accept(selector)
                    elif isinstance(ready, socket.socket) and ready in self._pairs:
                        self._pass(ready, selector)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        for one, other in ((near, far), (far, near)):
            self._pairs[one] = other
            selector.register(one, selectors.EVENT_READ)

    def _pass(self, source: socket.socket, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            data = source.recv(65536)
            if data:
                self._pairs[source].sendall(data)
                return
        self._drop(source, selector)

    def _drop_all(self, selector: selectors.BaseSelector) -> None:
        while self._pairs:
            self.cuts += 1
            self._drop(next(iter(self._pairs)), selector)

    def _drop(self, one: socket.socket, selector: selectors.BaseSelector) -> None:
        other = self._pairs.pop(one)
        del self._pairs[other]
        for end in (one, other):
            selector.unregister(end)
            end.close()


@contextlib.contextmanager
def relay_to(endpoint: str) -> Iterator[Relay]:
    """A relay to ``tcp://host:port``."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    relay = Relay(host, int(port))
    try:
        yield relay
    finally:
        relay.close()
