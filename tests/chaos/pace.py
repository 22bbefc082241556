"""A real daemon whose model calls last as long as the test says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon, private_state_dir, running

MODULE = Path(__file__).with_name("paced") / "paced_rank.py"


class PacedDaemon(Daemon):
    """See :func:`paced`."""

    def set_pace(self, call_s: float) -> None:
        """From the next call on, every model call takes so much longer."""
        path = self.state_dir / "pace"
        path.with_suffix(".new").write_text(str(call_s))
        path.with_suffix(".new").replace(path)


@contextlib.contextmanager
def paced(models: Path) -> Iterator[PacedDaemon]:
    """A daemon with two ranks, at full speed to begin with."""
    with private_state_dir() as state_dir:
        PacedDaemon(None, state_dir).set_pace(0.0)
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(MODULE.parent))))
        environment = {"TEST_PACE": str(state_dir / "pace"), "PYTHONPATH": path}
        arguments = ("--rank-module", MODULE.stem)
        with running(models, state_dir, ranks=2, arguments=arguments, environment=environment) as daemon:
            yield PacedDaemon(daemon.process, state_dir)
