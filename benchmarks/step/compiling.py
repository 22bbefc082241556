"""How the contestants that are not ours are compiled; ours are by :mod:`...backend.parallel.compile`, as in a rank."""

from __future__ import annotations

from typing import Any, Final

import torch

from ...backend.parallel.compile import GRAPHS_PER_REGION

MODES: Final = ("off", "blocks", "whole", "graphs")
"""``graphs``: blocks, with CUDA graphs cut around the attention operator."""


def compile_blocks(network: Any, mode: str) -> None:
    """Compile the repeated blocks of a diffusers network in place, or all of it. Compiles on the first call.

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"Choose a mode of {', '.join(MODES)}: {mode!r} is none of them.")
    if mode == "off":
        return
    keep_shapes_static()
    how: dict[str, Any] = {"fullgraph": True, "mode": "reduce-overhead" if mode == "graphs" else None}
    if mode == "whole":
        network.forward = torch.compile(network.forward, **how)
        return
    for block in network.modules():
        if type(block).__name__ in network._repeated_blocks:
            block.forward = torch.compile(block.forward, **how)


def keep_shapes_static() -> None:
    """torch keeps what it learnt of shapes by source line: the second contestant of another size would get symbolic ones."""
    torch._dynamo.config.recompile_limit = GRAPHS_PER_REGION
    torch._dynamo.config.automatic_dynamic_shapes = False


def begin_step(mode: str) -> None:
    """Tell CUDA graphs that outputs of the step before are no longer needed."""
    if mode == "graphs":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
