"""One of the two ranks of the scaling benchmark: takes a step by our plans or by diffusers' context parallelism, as standard input asks.

Both run on the same process group size, the same memory-mapped weights and the same call; ours is timed with packing and unpacking, diffusers'
without.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..backend.errors import InternalError
from ..backend.models.family import TransformerAdapter
from ..backend.models.patches import Placement, grid_positions, pack
from ..backend.models.registry import load_model
from ..backend.parallel.group import WorkerGroup
from ..backend.parallel.plan import Plan
from ..backend.parallel.transport import gather_bytes

CPU = torch.device("cpu")
AGREEMENT = 1e-4
"""Velocities are of order 1; both contestants compute them in float32."""


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    group = WorkerGroup.start(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        init_method=f"file://{folder / 'store'}",
        device=CPU,
    )
    job = json.loads((folder / "job.json").read_text())
    inputs = {name.rpartition("/")[2]: tensor for name, tensor in load_file(folder / "inputs.safetensors").items()}
    ours = our_step(group, Path(job["checkpoint"]), inputs)
    theirs = diffusers_step(group, Path(job["checkpoint"]), inputs)
    with torch.no_grad():
        difference = float((pack(ours("ulysses=2")) - theirs()).abs().max())
    if not difference < AGREEMENT:
        raise InternalError(f"The contestants do not compute the same: they differ by {difference:.1e}.")
    meeting = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for line in sys.stdin:
            what = line.strip()
            step = theirs if what.startswith("diffusers") else functools.partial(ours, what)
            gather_bytes(meeting.new_empty(group.world_size, 1), meeting, group.control)  # start together
            started = time.perf_counter()
            step()
            print(time.perf_counter() - started, flush=True)


def our_step(group: WorkerGroup, checkpoint: Path, inputs: dict[str, Tensor]) -> Callable[[str], Tensor]:
    """One velocity, as the worker asks for it, by a plan."""
    model = load_model(checkpoint, dtype=torch.float32, device=CPU, progress=lambda _: None)
    conditioning = {name: inputs[name] for name in ("context", "pooled", "guidance")}

    def step(plan: str) -> Tensor:
        model.bind(group.mesh(Plan.parse(plan)))
        return model.adapter.velocity(inputs["x"], inputs["timestep"], conditioning, {})

    return step


def diffusers_step(group: WorkerGroup, checkpoint: Path, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """One forward of the same network under diffusers' own Ulysses.

    ``model.enable_parallelism`` divides by the number of accelerators, which is 0 here; this is what it does after that.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    adapter = load_model(checkpoint, dtype=torch.float32, device=CPU, progress=lambda _: None).adapter
    if not isinstance(adapter, TransformerAdapter):
        raise InternalError("The checkpoint has no network.")
    network: Any = adapter.network  # never bound: no hook of ours is in it
    context_parallel = ContextParallelConfig(ulysses_degree=group.world_size)
    config = ParallelConfig(context_parallel_config=context_parallel)
    mesh = init_device_mesh("cpu", (1, group.world_size), mesh_dim_names=("ring", "ulysses"))
    config.setup(group.rank, group.world_size, CPU, mesh=mesh)
    for module in network.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = config
    apply_context_parallel(network, context_parallel, network._cp_plan)
    height, width = inputs["x"].shape[2:]
    call = {
        "hidden_states": pack(inputs["x"]),
        "encoder_hidden_states": inputs["context"],
        "pooled_projections": network.time_text_embed.vector(inputs["timestep"], inputs["guidance"], inputs["pooled"]),
        "timestep": inputs["timestep"],
        "img_ids": grid_positions(height, width, Placement(0, 0, 0), CPU),
        "txt_ids": torch.zeros(inputs["context"].shape[1], 3),
        "return_dict": False,
    }

    def step() -> Tensor:
        gathered: Tensor = network(**call)[0]
        return gathered.clone()  # the gather is lazy: reading it waits for it

    return step


if __name__ == "__main__":
    main()
