"""The models a user may pick: the daemon's list united with ComfyUI's own folders.

The page asks for the list on ComfyUI's event loop, so the daemon is asked from a thread of its own and the last known list is given
when it takes longer than a moment.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from ..backend.errors import TuttiError
from ..backend.wire.connection import client_id, find_connection
from . import host

if TYPE_CHECKING:
    from ..backend.wire.codec import Received

log = logging.getLogger("tutti")

FRESH_S: Final = 3.0
"""A list that is younger than this is not asked for again."""
WAIT_S: Final = 0.4
"""How long the page is kept waiting for the daemon's list."""
PREFIX: Final = host.MODEL_FOLDER + "/"
"""The daemon names a model by ComfyUI's kind of folder and its path in it."""


class Catalog:
    """The daemon's model names, as last heard."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._asked_s = float("-inf")
        self._thread: threading.Thread | None = None

    def names(self) -> list[str]:
        """Every model name, for the loader's list. Asks the daemon only once ComfyUI serves: importing a pack touches no network."""
        if host.is_serving():
            self._refresh()
        return sorted({*host.local_models(), *self._names}, key=str.lower)

    def _refresh(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            if time.monotonic() - self._asked_s < FRESH_S:
                return
            self._asked_s = time.monotonic()
            self._thread = threading.Thread(target=self._ask, name="tutti-catalog", daemon=True)
            self._thread.start()
        self._thread.join(WAIT_S)

    def _ask(self) -> None:
        """A connection of its own: the session's may be waiting for a picture."""
        try:
            connection = find_connection()
        except (FileNotFoundError, TuttiError):
            return
        from ..backend.client import Client

        try:
            with Client(connection, client_id=client_id(), software=host.software()) as client:
                client.connect(timeout_s=2.0)
                self.learn(client.describe())
        except TuttiError as error:
            log.debug("tutti: no model list from the daemon: %s", error)

    def learn(self, described: Received) -> None:
        """Remember a list of models that the daemon gave."""
        entries = described.manifest or ()
        self._names = tuple(entry.name.removeprefix(PREFIX) for entry in entries if entry.name.startswith(PREFIX))


CATALOG: Final = Catalog()
"""The one of this process."""
