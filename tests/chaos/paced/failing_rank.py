"""The ordinary rank, with a call that fails as the file ``$TEST_FAULT`` says, if there is one: ``RANK memory`` or ``RANK bug``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.supervisor.liveness import watch
from tutti.backend.worker.rank import run_rank

FAULT = Path(os.environ["TEST_FAULT"])


def load(path: Path, **how: Any) -> ResidentModel:
    """The product's loader; the model it gives fails when it is told to."""
    model = load_model(path, **how)
    whole = model.adapter.velocity

    def velocity(*arguments: Any) -> torch.Tensor:
        rank, fault = FAULT.read_text().split() if FAULT.exists() else ("", "")
        if rank == os.environ["RANK"]:
            fail(fault)
        return whole(*arguments)

    model.adapter.velocity = velocity  # type: ignore[method-assign]
    return model


def fail(how: str) -> None:
    """As a call fails that meets a bug, or no memory."""
    if how == "memory":
        torch.empty(2**46, dtype=torch.uint8)  # 64 TiB
    raise RuntimeError("failed on demand in /secret/place")


if __name__ == "__main__":
    watch()
    run_rank(load)
