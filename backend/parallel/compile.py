"""Compilation of a network's blocks around the USP operator, and what happens when it cannot be.

What is compiled is a *region*: a repeated block (all blocks of one class share their graphs) or the whole network. A block compiles as a full
graph around the opaque operator, whose collectives are the same whether it runs compiled or eager. A rank may therefore fall back to
eager by itself, in the middle of a call: the others never notice. It does so where a block cannot be compiled, and where memory runs out in
the first call of a shape. A whole network is cut at its gather; where one of them happens behind an exchange, the call fails, and the next one runs
eager.

The first graph of a region is static. A second shape makes torch compile once more with the dimensions that differ left symbolic, and
further lengths use that graph.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .compile_modes import AUTO, BLOCKS, GRAPHS, OFF, WHOLE
from .memory import is_out_of_memory
from .regions import Region, repeated_blocks, shapes

GRAPHS_PER_REGION = 64
"""How many graphs the blocks of one class may have in a process, over all models, dtypes and shapes; torch's own limit of 8 is
for programs that run one model."""
SHAPES_KNOWN = 256
"""How many shapes are remembered as seen by an earlier job."""

_FULL = f"it took more than {GRAPHS_PER_REGION} graphs"
NO_MEMORY = "memory ran out"
_REASONS = {
    "InvalidCxxCompiler": "no C++ compiler is installed",
    "TritonMissing": "triton is not installed",
    "GPUTooOldForTriton": "the GPU is too old for triton",
    "FailOnRecompileLimitHit": _FULL,
}
"""Name of an exception -> what is wrong, where the name does not say it."""

log = logging.getLogger(__name__)


class Compiler:
    """Whether and how networks are compiled. One per rank."""

    def __init__(self, mode: str, device: torch.device) -> None:
        """``mode``: one of :data:`COMPILE_MODES`."""
        self.mode = _mode_on(mode, device)
        self.asked = mode
        self.graphs = 0
        """Compilations so far that succeeded."""
        self.seconds = 0.0
        """Time spent in compilations."""
        self._running: Callable[[], CompiledNetwork | None] = lambda: None
        self._job = ""
        self._on_graph: Callable[[int, int], None] = lambda count, kinds: None
        self._begun_in_job = 0
        self._began_s = 0.0
        self._seen: OrderedDict[Hashable, str] = OrderedDict()
        self._forms: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._failures: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()
        if self.mode != OFF:
            _watch_compilations(self)

    @property
    def running(self) -> CompiledNetwork | None:
        """The network whose call ran last in this job, as long as it is loaded."""
        return self._running()

    @property
    def state(self) -> str:
        """For people: what runs compiled, or why nothing does."""
        if self.mode == OFF:
            return "off: auto compiles on GPUs only" if self.asked == AUTO else "off"
        graphs = f"{self.graphs} graph{'s' if self.graphs != 1 else ''} in {self.seconds:.0f} s"
        network = self.running
        failures = {} if network is None else network.failures
        failed = "".join(f"; {name} runs eager: {why}" for name, why in failures.items())
        return f"{self.mode}, {graphs if self.graphs else 'no graph yet'}{failed}"

    @property
    def note(self) -> str:
        """For the node of the running job: empty where its network runs eager because it was meant to."""
        network = self.running
        if network is None:
            return ""
        for name, why in network.failures.items():
            return f"not compiled: {name}: {why}"
        return "compiled" if network.runs_compiled else ""

    def begin_job(self, job: str, on_graph: Callable[[int, int], None]) -> None:
        """The calls that follow belong to this job, or to the same one as before.

        ``on_graph`` hears that a compilation begins: its number in this job, from 1, and how many a new shape of this network takes.
        """
        self._on_graph = on_graph
        if job == self._job:
            return
        self._job, self._begun_in_job, self._running = job, 0, lambda: None
        if any(_FULL in reasons.values() for reasons in self._failures.values()):
            # Graphs of models that are gone count too: start anew, from what is on the disk.
            torch._dynamo.reset()
            for reasons in self._failures.values():
                reasons.clear()

    def install(self, network: nn.Module, attentions: Sequence[str]) -> CompiledNetwork:
        """Let the regions of ``network`` that hold the attentions of these module names run compiled."""
        regions: list[nn.Module] = []
        if self.mode != OFF:
            regions = [network] if self.mode == WHOLE else repeated_blocks(network, attentions)
        return CompiledNetwork(self, regions, self._failures.setdefault(network, {}))

    def form_of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled form of a class's ``forward``: one for all modules of the class, so that they share their graphs."""
        if forward not in self._forms:
            options: dict[str, str | int | bool | Callable[..., Any]] | None = (
                {"triton.cudagraphs": True} if self.mode == GRAPHS else None
            )
            # The whole network has a gather in it, which is a collective of its own and cuts the graph.
            self._forms[forward] = torch.compile(
                forward, fullgraph=self.mode != WHOLE, dynamic=False if self.mode == WHOLE else None, options=options
            )
        return self._forms[forward]

    def runs(self, network: CompiledNetwork) -> None:
        """A call of this network begins. It is not kept: models are dropped for room before the next job begins."""
        self._running = weakref.ref(network)

    def is_due(self, shape: Hashable) -> bool:
        """Whether a call of this shape runs compiled. ``auto``: from the second job that has it on."""
        if self.asked != AUTO:
            return True
        first = self._seen.setdefault(shape, self._job)
        self._seen.move_to_end(shape)
        if len(self._seen) > SHAPES_KNOWN:
            self._seen.popitem(last=False)
        return first != self._job

    def compilation_begins(self, what: Any) -> None:
        """torch says so, also of CUDA graphs that it records."""
        self._began_s = time.monotonic()
        if what.callback_trigger.name != "DYNAMO":
            return
        self.graphs += 1
        self._begun_in_job += 1
        network = self.running
        kinds = 1 if network is None else network.kinds
        self._on_graph(self._begun_in_job, max(self._begun_in_job, kinds))

    def compilation_ends(self, _: Any) -> None:
        """torch says so, whether it succeeded or not."""
        self.seconds += time.monotonic() - self._began_s


class CompiledNetwork:
    """The regions of one network; there are none where nothing is compiled."""

    def __init__(self, compiler: Compiler, regions: Sequence[nn.Module], failures: dict[str, str]) -> None:
        """``failures`` outlives this binding of the network: what cannot be compiled cannot be on another mesh either."""
        self.failures = failures
        """Region class -> why it runs eager."""
        self.kinds = len({type(region) for region in regions})
        """How many compilations a new shape takes, at least."""
        self.runs_compiled = False
        """Whether the call that is running, or ran last, was to run compiled."""
        self._compiler = compiler
        self._decided = False
        self._shape: Hashable = None
        self._runs: Counter[Hashable] = Counter()
        """Shape -> calls that ran compiled to their end."""
        self._regions = regions
        for region in regions:
            region.forward = Region(self, region)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One model call: its regions run compiled all, or none."""
        self._compiler.runs(self)
        self.runs_compiled = self._decided = False
        if self._compiler.mode == GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        yield
        if self.runs_compiled:
            self._runs[self._shape] += 1

    def remove(self) -> None:
        """Leave the network as it was."""
        for region in self._regions:
            del region.forward

    def form_of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """See :meth:`Compiler.form_of`."""
        return self._compiler.form_of(forward)

    def decide(self, region: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether a region runs compiled now. The first region of a call decides, by its shapes, for all."""
        if not self._decided:
            self._decided = True
            self._shape = (region, *shapes(arguments, named))
            self.runs_compiled = self._compiler.is_due(self._shape)
        return self.runs_compiled and region not in self.failures

    @property
    def on_trial(self) -> bool:
        """Whether calls of the running one's shape still do something for the first time: CUDA graphs are recorded in the second. A
        whole network never is on trial: its gather cannot be repeated."""
        first = 2 if self._compiler.mode == GRAPHS else 1
        return self._compiler.mode != WHOLE and self._runs[self._shape] < first

    def give_up(self, region: str, error: Exception) -> None:
        """This kind of region runs eager from now on."""
        self.failures[region] = _reason(error)
        if self.failures[region] not in (_FULL, NO_MEMORY):  # not even begun; made, and too large
            self._compiler.graphs -= 1
        log.warning("%s does not run compiled, but eager: %s", region, error)


def _mode_on(mode: str, device: torch.device) -> str:
    if mode == AUTO:
        return BLOCKS if device.type == "cuda" else OFF
    return BLOCKS if mode == GRAPHS and device.type != "cuda" else mode


def _watch_compilations(compiler: Compiler) -> None:
    """torch tells whoever asks about every compilation of the process; a rank has one compiler."""
    import torch._dynamo
    from torch._dynamo.callback import on_compile_end, on_compile_start

    torch._dynamo.config.recompile_limit = GRAPHS_PER_REGION
    on_compile_start(compiler.compilation_begins)
    on_compile_end(compiler.compilation_ends)


def _reason(error: Exception) -> str:
    """Why, for whoever asks the daemon: no message, which may name paths of this machine; that is in the rank's log."""
    if is_out_of_memory(error):
        return NO_MEMORY
    kind = type(getattr(error, "inner_exception", error)).__name__
    return _REASONS.get(kind, f"{kind}, see the rank's log")
