"""The ordinary rank, with calls that take as many seconds more as the file ``$TEST_PACE`` says: how long a job lasts is the test's choice,
on a fast machine and on a slow one. It is read anew before every call.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.supervisor.liveness import watch
from tutti.backend.worker.rank import run_rank

PACE = Path(os.environ["TEST_PACE"])


def load(path: Path, **how: Any) -> ResidentModel:
    """The product's loader; the model it gives takes its time."""
    model = load_model(path, **how)
    whole = model.adapter.velocity

    def velocity(*arguments: Any) -> torch.Tensor:
        time.sleep(float(PACE.read_text()))
        return whole(*arguments)

    model.adapter.velocity = velocity  # type: ignore[method-assign]
    return model


if __name__ == "__main__":
    watch()
    run_rank(load)
