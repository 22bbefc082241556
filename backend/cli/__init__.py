"""The ``tutti`` command. Each subcommand is a module of this package (commands.py has the table); none is imported before it is asked for."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
