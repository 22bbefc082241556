"""How the launchers of a group find each other, and how its ranks do. Descriptions only: launch.py turns them into torch's objects.

On one host nothing listens on a network: torchrun's own stores (c10d, static, even ``--master-addr=127.0.0.1``) open a port on every
interface, without any authentication. Files in the daemon's private directory do the same work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Rendezvous(Protocol):
    """One way to meet."""

    @property
    def init_method(self) -> str:
        """What the ranks give to ``init_process_group``: goes into ``TUTTI_INIT_METHOD``."""

    def arguments(self) -> list[str]:
        """The launcher's arguments."""

    def prepare(self) -> None:
        """Make what has to be there before the launcher starts."""

    def clean_up(self) -> None:
        """Remove what is left when the group is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRendezvous:
    """One host: a FileStore for the launcher and one for the ranks, in a directory of the incarnation."""

    directory: Path

    @property
    def init_method(self) -> str:
        """A file store that the ranks share."""
        return f"file://{self.directory / 'ranks'}"

    def arguments(self) -> list[str]:
        """``--rendezvous file --directory DIR``"""
        return ["--rendezvous", "file", "--directory", str(self.directory)]

    def prepare(self) -> None:
        """Make the directory."""
        self.directory.mkdir(mode=0o700)

    def clean_up(self) -> None:
        """Remove the stores."""
        if self.directory.is_dir():
            for file in self.directory.iterdir():
                file.unlink(missing_ok=True)
            self.directory.rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class C10dRendezvous:
    """Several hosts: torch's TCP store at ``endpoint``. It is neither authenticated nor encrypted: only for an isolated network."""

    endpoint: str
    """``HOST:PORT`` of the first host."""
    run_id: str
    """The same on every host."""
    hosts: int = 2

    @property
    def init_method(self) -> str:
        """torchrun's variables."""
        return "env://"

    def arguments(self) -> list[str]:
        """``--rendezvous c10d --endpoint HOST:PORT --run-id ID --hosts N``"""
        return [
            "--rendezvous",
            "c10d",
            "--endpoint",
            self.endpoint,
            "--run-id",
            self.run_id,
            "--hosts",
            str(self.hosts),
        ]

    def prepare(self) -> None:
        """Nothing to do."""

    def clean_up(self) -> None:
        """Nothing to do."""
