"""One rank of the benchmark: prepares every contestant of its group, then takes a step of whom standard input names.

``ready`` is answered by a JSON object: for every contestant, why it does not take part, or null. Every other line by the seconds of one step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backend.models.family import ModelCall
from ...backend.parallel.group import WorkerGroup
from ...backend.parallel.plan import Plan
from ...backend.parallel.transport import gather_bytes
from .agreement import disagreement
from .clock import step_s
from .contestants import Step, context_parallel_step, diffusers_step, our_step
from .entries import Entry
from .networks import MODELS, StepModel, draw_call, draw_network, twin_of

WARM_UPS = 2
"""After the first call, which compiles."""


def main() -> None:
    folder, device_type = Path(sys.argv[1]), sys.argv[2]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)
    store = f"file://{folder / f'store-{world_size}'}"
    group = WorkerGroup.start(rank=rank, world_size=world_size, init_method=store, device=device)
    job = json.loads((folder / f"job-{world_size}.json").read_text())
    model = MODELS[job["model"]]
    contestants = Contestants(group, model, draw_network(model, device), draw_call(model, device))
    for entry in job["entries"]:
        contestants.prepare(Entry(**entry))
    for line in sys.stdin:
        what = line.strip()
        answer = json.dumps(contestants.reasons) if what == "ready" else contestants.step_s(what)
        print(answer, flush=True)


class Contestants:
    """The steps of one group, and who has none and why."""

    def __init__(self, group: WorkerGroup, model: StepModel, network: Any, call: ModelCall) -> None:
        self.reasons: dict[str, str | None] = {}
        self._group = group
        self._model = model
        self._network = network
        self._call = call
        self._steps: dict[str, Step] = {}
        self._reference: Tensor | None = None

    def prepare(self, entry: Entry) -> None:
        """Compile and warm up. Collective; a contestant takes part only when it is well on every rank."""
        reason = None
        try:
            step = self._step(entry)
            velocity = step()
            for _ in range(WARM_UPS):
                step()
            reason = disagreement(velocity, self._reference, self._model.dtype)
            self._steps[entry.name] = step
            if self._reference is None:
                self._reference = velocity
        except Exception as error:  # another library's baseline, or a machine without a compiler: the others still run
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if not self._on_all(reason is None):
            self.reasons[entry.name] = reason or "another rank could not run it"
            self._steps.pop(entry.name, None)
        else:
            self.reasons[entry.name] = None

    def step_s(self, name: str) -> float:
        """Seconds of one step, begun together."""
        self._on_all(True)
        return step_s(self._steps[name], self._group.device)

    def _step(self, entry: Entry) -> Step:
        network = twin_of(self._network, self._model)
        if entry.kind == "ours":
            return our_step(self._model, network, self._call, self._group.mesh(Plan.parse(entry.plan)), entry.mode)
        if entry.kind == "diffusers":
            return diffusers_step(self._model, network, self._call, entry.mode)
        return context_parallel_step(self._model, network, self._call, self._group, entry.mode)

    def _on_all(self, yes: bool) -> bool:
        own = torch.tensor([yes])
        everyone = own.new_empty(self._group.world_size, 1)
        gather_bytes(everyone, own, self._group.control)
        return bool(everyone.all())


if __name__ == "__main__":
    main()
