"""``tutti demo``: a daemon, a worker group and one picture, from nothing to PNG, with every part timed."""

from __future__ import annotations

from .run import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
