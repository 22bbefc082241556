"""Reads the command line, runs one subcommand, and turns its errors into one clear sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ... import __version__
from ..errors import TuttiError
from .commands import COMMANDS


class CommandError(Exception):
    """Something that the person at the terminal can put right. The text says how, in its first sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``tutti`` command. Returns its exit status: 0 done, 1 it could not be done, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((command for command in COMMANDS if words and words[0] == command.name), None)
    parser, subparsers = _parser()
    module = None
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help.capitalize() + ".")
        if command is chosen:
            module = command.load()
            module.add_arguments(subparser)
    options = parser.parse_args(words)
    if module is None:
        parser.print_help()
        return 2
    try:
        return module.run(options)
    except (CommandError, TuttiError) as error:
        print(f"tutti: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has read enough; Python must not complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="tutti", description="All your GPUs play one image.")
    parser.add_argument("--version", action="version", version=f"tutti {__version__}")
    return parser, parser.add_subparsers(title="commands", metavar="COMMAND")
