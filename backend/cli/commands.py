"""The table of subcommands.

A subcommand is a module with ``add_arguments(parser)`` and ``run(options) -> int`` (the exit status). To add one, write the module and
add its row. Modules may import heavy things inside ``run`` only.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Final, Protocol, cast


class CommandModule(Protocol):
    """What a subcommand's module has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it; returns the exit status."""


@dataclass(frozen=True, slots=True)
class Command:
    """One row."""

    name: str
    help: str
    module: str
    """Relative to this package."""

    def load(self) -> CommandModule:
        """Import the module."""
        return cast(CommandModule, importlib.import_module(self.module, __package__))


COMMANDS: Final = (
    Command("serve", "start the daemon and its ranks, and stay in the foreground", ".serve"),
    Command("status", "show what the daemon is doing", ".status"),
    Command("stop", "let the daemon finish what has begun, and stop it", ".stop"),
    Command("connect", "use a daemon on another machine, from its connection file", ".connect"),
    Command("keys", "let other machines use this daemon: list, add, revoke", ".keys"),
    Command("doctor", "check this machine and say what is missing", ".doctor"),
    Command("demo", "draw a sheet of pictures with the model that ships, and time every part", ".demo"),
)
