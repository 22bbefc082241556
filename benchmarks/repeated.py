"""The command line of a benchmark that repeats one FLUX.1 job on a daemon of its own, from its options to its exit code."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backend.client import Client
from .daemon import daemon
from .flux_job import FluxJob
from .report import Figure, argument_parser, finish


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedJob:
    """What such a benchmark is."""

    benchmark: str
    job: FluxJob
    ranks: int
    measure: Callable[[Client, int], list[Figure]]
    """All figures, from a client of the daemon and how often to repeat."""
    option: str
    """``--repeats``"""
    default: int
    counts: str
    """What the option counts: ``cancels to measure``."""

    def run(self, module_doc: str | None, arguments: Sequence[str] | None) -> int:
        """Read the options, measure, and report; returns the exit code."""
        parser = argument_parser(module_doc)
        parser.add_argument(
            self.option, dest="times", type=int, default=self.default, help=f"{self.counts} (default: {self.default})"
        )
        options = parser.parse_args(arguments)
        with tempfile.TemporaryDirectory(prefix="tutti-models-") as folder:
            self.job.write_checkpoint(Path(folder))
            with daemon(Path(folder), ranks=self.ranks) as client:
                figures = self.measure(client, options.times)
        return finish(self.benchmark, figures, options)
