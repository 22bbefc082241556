"""Compilation of a network's blocks around the USP operator, and what happens when it cannot be.

What is compiled is a *region*: a repeated block (all blocks of one class share their graphs) or the whole network. Each compiles as a full
graph around the opaque operator, whose collectives are the same whether the region runs compiled or eager. A rank may therefore fall
back to eager by itself, in the middle of a call: the others never notice.

The first graph of a region is static. A second shape makes torch compile once more with the dimensions that differ left symbolic, and
further lengths use that graph (docs/performance.md has what was measured against padding text to buckets).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .compile_modes import AUTO, BLOCKS, GRAPHS, OFF, WHOLE
from .regions import Region, repeated_blocks, shapes

GRAPHS_PER_REGION = 64
"""How many graphs the blocks of one class may have in a process, over all models, dtypes and shapes; torch's own limit of 8 is
for programs that run one model."""
SHAPES_KNOWN = 256
"""How many shapes are remembered as seen by an earlier job."""

_REASONS = {
    "InvalidCxxCompiler": "no C++ compiler is installed",
    "TritonMissing": "triton is not installed",
    "GPUTooOldForTriton": "the GPU is too old for triton",
    "FailOnRecompileLimitHit": f"it took more than {GRAPHS_PER_REGION} graphs",
}
"""Name of an exception -> what is wrong, where the name does not say it."""

log = logging.getLogger(__name__)


class Compiler:
    """Decides, call by call, whether a network's regions run compiled. One per rank."""

    def __init__(self, mode: str, device: torch.device) -> None:
        """``mode``: one of :data:`COMPILE_MODES`."""
        self.mode = _mode_on(mode, device)
        self.asked = mode
        self.graphs = 0
        """Compilations so far."""
        self.seconds = 0.0
        """Time spent in them."""
        self.failures: dict[str, str] = {}
        """Region class -> why it runs eager."""
        self.on_graph: Callable[[int], None] = lambda count: None
        """Hears that a compilation begins; ``count`` is its number in this job, from 1."""
        self.kinds = 0
        """Kinds of regions in the network that was installed last: how many compilations a new shape takes."""
        self._job = ""
        self._graphs_before_job = 0
        self._began_s = 0.0
        self._seen: OrderedDict[Hashable, str] = OrderedDict()
        self._compiles_this_call: bool | None = None
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        if self.mode != OFF:
            _watch_compilations(self)

    @property
    def state(self) -> str:
        """For people: what runs compiled, or why nothing does."""
        if self.mode == OFF:
            why = ": kernels of a CPU gain nothing from it" if self.asked == AUTO else ""
            return f"off{why}"
        done = (
            f"{self.graphs} graph{'s' if self.graphs != 1 else ''} in {self.seconds:.0f} s"
            if self.graphs
            else "no graph yet"
        )
        failed = "".join(f"; {name} runs eager: {why}" for name, why in self.failures.items())
        return f"{self.mode}, {done}{failed}"

    @property
    def note(self) -> str:
        """For the node of the running job: empty where the network runs eager because it was meant to."""
        if self.failures:
            name, why = next(iter(self.failures.items()))
            return f"not compiled: {name}: {why}"
        return "compiled" if self._compiles_this_call else ""

    def begin_job(self, job: str, on_graph: Callable[[int], None]) -> None:
        """The calls that follow belong to this job, or to the same one as before."""
        if job != self._job:
            self._job, self._graphs_before_job, self._compiles_this_call = job, self.graphs, None
        self.on_graph = on_graph

    @contextmanager
    def call(self) -> Iterator[None]:
        """One model call: its regions run compiled all, or none."""
        self._compiles_this_call = None
        if self.mode == GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        yield

    def install(self, network: nn.Module, attentions: Sequence[str]) -> Callable[[], None]:
        """Make the regions of ``network`` that hold the attentions of these module names compile; returns what undoes it."""
        if self.mode == OFF:
            return lambda: None
        regions = [network] if self.mode == WHOLE else repeated_blocks(network, attentions)
        self.kinds = len({type(region) for region in regions})
        for region in regions:
            region.forward = Region(self, region)

        def remove() -> None:
            for region in regions:
                del region.forward

        return remove

    def compiled(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled form of a class's ``forward``: one for all modules of the class, so that they share their graphs."""
        if forward not in self._compiled:
            options: dict[str, str | int | bool | Callable[..., Any]] | None = (
                {"triton.cudagraphs": True} if self.mode == GRAPHS else None
            )
            # The whole network has a gather in it, which is a collective of its own and cuts the graph.
            self._compiled[forward] = torch.compile(
                forward, fullgraph=self.mode != WHOLE, dynamic=False if self.mode == WHOLE else None, options=options
            )
        return self._compiled[forward]

    def wants(self, region: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether a region runs compiled now. Its shapes are looked at in the first region of a call only."""
        if region in self.failures:
            return False
        if self._compiles_this_call is None:
            self._compiles_this_call = self.asked != AUTO or self._is_repeated((region, *shapes(arguments, named)))
        return self._compiles_this_call

    def give_up(self, region: str, error: Exception) -> None:
        """This kind of region runs eager from now on."""
        self.failures[region] = _reason(error)
        log.warning("%s cannot be compiled and runs eager: %s", region, error)

    def _is_repeated(self, shape: Hashable) -> bool:
        first = self._seen.setdefault(shape, self._job)
        self._seen.move_to_end(shape)
        if len(self._seen) > SHAPES_KNOWN:
            self._seen.popitem(last=False)
        return first != self._job

    def _compilation_begins(self, _: Any) -> None:
        self._began_s = time.monotonic()
        self.graphs += 1
        self.on_graph(self.graphs - self._graphs_before_job)

    def _compilation_ends(self, _: Any) -> None:
        self.seconds += time.monotonic() - self._began_s


def _mode_on(mode: str, device: torch.device) -> str:
    if mode == AUTO:
        return BLOCKS if device.type == "cuda" else OFF
    return BLOCKS if mode == GRAPHS and device.type != "cuda" else mode


def _watch_compilations(compiler: Compiler) -> None:
    """torch tells whoever asks about every compilation of the process; a rank has one compiler."""
    import torch._dynamo
    from torch._dynamo.callback import on_compile_end, on_compile_start

    torch._dynamo.config.recompile_limit = GRAPHS_PER_REGION
    on_compile_start(compiler._compilation_begins)
    on_compile_end(compiler._compilation_ends)


def _reason(error: Exception) -> str:
    """Why, for whoever asks the daemon: no message, which may name paths of this machine; that is in the rank's log."""
    kind = type(getattr(error, "inner_exception", error)).__name__
    return _REASONS.get(kind, f"{kind}, see the rank's log")
