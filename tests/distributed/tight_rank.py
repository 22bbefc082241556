"""A real rank whose residual state may take ``$TEST_STATE_BYTES``, instead of a share of the machine's memory: what test_state_budget starts."""

from __future__ import annotations

import os

from tutti.backend.compression.store import ResidualStore
from tutti.backend.models.registry import load_model
from tutti.backend.parallel.group import WorkerGroup
from tutti.backend.supervisor.liveness import watch
from tutti.backend.worker import rank


def open_store(group: WorkerGroup, ranks_on_device: int) -> ResidualStore:
    """Of a bound that every rank is told alike."""
    return ResidualStore(group.device, int(os.environ["TEST_STATE_BYTES"]))


if __name__ == "__main__":
    rank.open_store = open_store
    watch()
    rank.run_rank(load_model)
