"""What is timed: our network on a mesh, diffusers' own, and diffusers' under its context parallelism. All over the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...backend.models.family import ModelCall, TransformerAdapter
from ...backend.parallel.compile import Compiler
from ...backend.parallel.group import WorkerGroup
from ...backend.parallel.mesh import SequenceMesh
from ...backend.parallel.seam import diffusers_backend
from .compiling import begin_step, compile_blocks, keep_shapes_static
from .networks import StepModel

Step = Callable[[], Tensor]
"""One model call; gives the velocity, which is what all contestants must agree on."""


def our_step(model: StepModel, network: Any, call: ModelCall, mesh: SequenceMesh, mode: str) -> Step:
    """Our seam on this mesh; timed with packing and unpacking."""
    adapter = TransformerAdapter(model.family, network, model.geometry, model.dtype, mesh.device)
    keep_shapes_static()
    adapter.bind(mesh, Compiler(mode, mesh.device))

    def step() -> Tensor:
        return adapter.velocity(call.x, call.timestep, call.conditioning, call.options)

    return step


def diffusers_step(model: StepModel, network: Any, call: ModelCall, mode: str) -> Step:
    """diffusers' network as it is, with its default attention; timed without packing and unpacking."""
    diffusers_backend()  # compiled code is guarded by the number of known backends: ours, added later, would recompile theirs
    compile_blocks(network, mode)
    with torch.no_grad():
        arranged = model.family.arrange(network, model.geometry, call)

    def step() -> Tensor:
        begin_step(mode)
        with torch.no_grad():
            # A gather under context parallelism is lazy: reading it waits for it.
            out = network(**arranged.arguments, return_dict=False)[0].clone()
        return arranged.finish(out)

    return step


def context_parallel_step(model: StepModel, network: Any, call: ModelCall, group: WorkerGroup, mode: str) -> Step:
    """The same under diffusers' Ulysses over the whole group.

    ``enable_parallelism`` divides by the number of accelerators, which is 0 on a CPU; this is what it does after that. Its ring has no kernel that
    gives a log-sum-exp on a CPU, so Ulysses is what both can run everywhere.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    device = group.device
    backend = group.transport.backend
    mesh = init_device_mesh(
        device.type,
        (1, group.world_size),
        mesh_dim_names=("ring", "ulysses"),
        backend_override={"ring": backend, "ulysses": backend},
    )
    context_parallel = ContextParallelConfig(ulysses_degree=group.world_size)
    config = ParallelConfig(context_parallel_config=context_parallel)
    config.setup(group.rank, group.world_size, device, mesh=mesh)
    for module in network.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = config
    apply_context_parallel(network, context_parallel, network._cp_plan)
    return diffusers_step(model, network, call, mode)
