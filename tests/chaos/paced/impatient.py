"""``tutti`` with short deadlines for ranks that hang, for tests that do not want to wait: ``python impatient.py serve ...``."""

from __future__ import annotations

import sys
from dataclasses import replace

from tutti.backend.broker.settings import BrokerSettings
from tutti.backend.cli.daemon import Daemon
from tutti.backend.cli.main import main

LEAVE_S, PREPARE_S = 2.0, 5.0
patient = Daemon._broker_settings


def impatient(daemon: Daemon) -> BrokerSettings:
    """What the daemon would use, with less patience."""
    return replace(patient(daemon), leave_s=LEAVE_S, prepare_s=PREPARE_S)


if __name__ == "__main__":
    Daemon._broker_settings = impatient  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
