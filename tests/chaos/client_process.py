"""A client in a process of its own, to be killed: ``python -m tests.chaos.client_process STATE_DIR sample|trajectory NODE_OR_JOB_ID ...``

It says line by line how far it has come, and never ends by itself while its job is open.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

from tutti.backend.client import Client
from tutti.backend.wire.codec import Received
from tutti.backend.wire.connection import find_connection
from tutti.backend.wire.messages import Accepted, Progress

from tests.chaos.jobs import latent_of, open_trajectory, sample, take_turn
from tests.support.daemon import CLIENT_ID

TURNS = 3


def say(*words: object) -> None:
    """One line, at once."""
    print(*words, flush=True)


def tell(received: Received) -> None:
    """How far a Sample has come."""
    message = received.message
    if isinstance(message, Accepted):
        say("accepted", message.state)
    elif isinstance(message, Progress):
        say(message.phase, message.step)


def main() -> None:
    """Connect, do what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("kind", choices=("sample", "trajectory"))
    parser.add_argument("id", help="node of the Sample, or job id of the trajectory")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    with Client(find_connection(options.state_dir), client_id=CLIENT_ID, software="a client to be killed") as client:
        client.connect(timeout_s=30.0)
        if options.kind == "sample":
            result = client.sample(*sample(options.steps, node_id=options.id, keep=options.keep), tell)
            say("latent", hashlib.sha256(latent_of(result)).hexdigest())
            return
        open_trajectory(client, options.id)
        for turn in range(1, TURNS):
            take_turn(client, options.id, turn)
        say("turns", TURNS)
        while (
            True
        ):  # as ComfyUI does between two steps: it computes, and the client's own thread keeps the trajectory alive
            time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
