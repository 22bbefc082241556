"""When a network's regions run compiled, for which shapes anew, and that an operator's dead call stays alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from tutti.backend.parallel import usp
from tutti.backend.parallel.compile import CompiledNetwork, Compiler
from tutti.backend.parallel.compile_modes import AUTO, BLOCKS, COMPILE_MODES, GRAPHS, OFF
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.partition import Partition
from tutti.backend.parallel.regions import Region, plain, repeated_blocks
from tutti.backend.parallel.usp import CallContext, running_call, usp_operator

from tests.support.meshes import single_rank_mesh

pytestmark = pytest.mark.usefixtures("own_compiler")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
"""Policies for a GPU need none: no tensor of these tests goes there."""


class Block(nn.Module):
    """A block with an attention's name in it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.attn(x)) + x


class Net(nn.Module):
    """Three blocks in a row, and a refiner that holds no joint attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(3)])
        self.refiner = nn.ModuleList([Block()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


JOINT = [f"layers.{i}.attn" for i in range(3)]


@pytest.fixture
def own_compiler() -> Iterator[None]:
    """What a compiler changes in torch is changed back, and nothing that compiles outlives the test."""
    import torch._inductor.config
    from torch._dynamo.callback import callback_handler

    before = list(callback_handler.start_callbacks), list(callback_handler.end_callbacks)
    limit = torch._dynamo.config.recompile_limit
    # The step benchmark, whose tests share this process, keeps shapes static.
    shapes = torch._dynamo.config.patch(automatic_dynamic_shapes=True)
    with torch._inductor.config.patch(compile_threads=1), shapes:
        yield
    torch._dynamo.config.recompile_limit = limit
    callback_handler.start_callbacks[:], callback_handler.end_callbacks[:] = before
    torch._dynamo.reset()


def run(compiler: Compiler, compiled: CompiledNetwork, net: Net, tokens: int, job: str) -> Tensor:
    """One call of a job."""
    compiler.begin_job(job, lambda count, of: None)
    with torch.no_grad(), compiled.call():
        return net(torch.ones(1, tokens, 8))  # type: ignore[no-any-return]


def test_the_blocks_that_hold_joint_attentions_are_compiled_and_no_others() -> None:
    net = Net()
    assert repeated_blocks(net, JOINT) == list(net.layers)
    assert repeated_blocks(net, ["attn"]) == [], "an attention outside a numbered row is in no repeated block"


@pytest.mark.parametrize(
    ("asked", "device", "state"),
    [
        (AUTO, CPU, "off: auto compiles on GPUs only"),
        (OFF, CPU, "off"),
        (BLOCKS, CPU, "blocks, no graph yet"),
    ],
)
def test_a_compiler_says_what_it_does(asked: str, device: torch.device, state: str) -> None:
    assert asked in COMPILE_MODES
    assert Compiler(asked, device).state == state


def test_off_leaves_the_network_alone() -> None:
    net = Net()
    Compiler(OFF, CPU).install(net, JOINT)
    assert "forward" not in vars(net.layers[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_auto_compiles_a_shape_in_the_second_job_that_has_it() -> None:
    net, compiler = Net(), Compiler(AUTO, CUDA)
    compiled = compiler.install(net, JOINT)
    eager = run(compiler, compiled, net, 5, "first")
    run(compiler, compiled, net, 5, "first")
    assert (compiler.graphs, compiler.note) == (0, ""), "the first picture never waits"
    answer = run(compiler, compiled, net, 5, "second")
    assert (compiler.graphs, compiler.note) == (1, "compiled"), "one graph for three blocks"
    torch.testing.assert_close(answer, eager, rtol=1e-6, atol=1e-6)
    run(compiler, compiled, net, 7, "second")
    assert (compiler.graphs, compiler.note) == (1, ""), "another shape is a first picture again"
    run(compiler, compiled, net, 7, "third")
    run(compiler, compiled, net, 9, "third")
    run(compiler, compiled, net, 9, "fourth")
    assert compiler.graphs == 2, "the second graph has a symbolic length"
    compiled.remove()
    assert "forward" not in vars(net.layers[0])
    assert torch.equal(net(torch.ones(1, 5, 8)).detach(), eager)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compilation_is_announced_with_its_number_in_the_job() -> None:
    net, compiler, heard = Net(), Compiler(BLOCKS, CPU), []
    compiled = compiler.install(net, JOINT)
    for job, tokens in (("a", 5), ("b", 7), ("b", 7)):
        compiler.begin_job(job, lambda count, of, job=job: heard.append((job, count, of)))
        with torch.no_grad(), compiled.call():
            net(torch.ones(1, tokens, 8))
    assert heard == [("a", 1, 1), ("b", 1, 1)]
    assert compiled.kinds == 1
    assert compiler.seconds > 0
    assert compiler.state.startswith("blocks, 2 graphs in")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_call_whose_answer_nobody_uses_stays_in_a_compiled_graph() -> None:
    """Removed on one rank it would be a collective that the others wait in."""
    operator, token = usp_operator(), torch.zeros(1)
    mesh = single_rank_mesh()
    context = CallContext(Partition.equal({"image": 6}, ring=1, ulysses=1), Exchange(mesh, RawCodec()))

    def attends_twice(q: Tensor) -> Tensor:
        operator(q + 1, q, q, token, 0.5)
        return operator(q, q, q, token, 0.5)

    q = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), running_call(context):
        eager = attends_twice(q)
        assert context.attentions == 2
        compiled = torch.compile(attends_twice, fullgraph=True)(q)
    assert context.attentions == 4
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_strides_and_bases_of_slices_do_not_reach_the_compiler() -> None:
    whole = torch.randn(1, 10, 8)
    slice_ = whole[:, 3:]
    dense = plain(slice_)
    assert (slice_._base is not None, dense._base) == (True, None)
    assert dense.stride() == (56, 8, 1)
    assert dense.data_ptr() == slice_.data_ptr(), "nothing was copied"
    batch = plain(torch.randn(2, 10, 8)[:, 3:])
    assert (batch.stride(), batch._base) == ((56, 8, 1), None)
    assert plain((slice_, None, 3))[1:] == (None, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_region_that_takes_too_many_graphs_runs_eager_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net, compiler = Net(), Compiler(BLOCKS, CPU)
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 1)
    compiled = compiler.install(net, JOINT)
    run(compiler, compiled, net, 5, "a")
    assert (compiled.failures, compiler.graphs) == ({}, 1)
    out = run(compiler, compiled, net, 7, "b")
    why = "it took more than 64 graphs"
    assert (out.shape, compiled.failures, compiler.graphs) == ((1, 7, 8), {"Block": why}, 1)
    assert compiler.note == f"not compiled: Block: {why}"
    assert compiler.state.endswith(f"; Block runs eager: {why}")
    other = Net()
    fresh = compiler.install(other, JOINT)
    run(compiler, fresh, other, 5, "c")
    assert (compiler.note, fresh.failures, compiled.failures) == ("compiled", {}, {}), "the next job starts anew"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_is_dropped_is_not_kept_by_what_was_compiled() -> None:
    net, compiler = Net(), Compiler(BLOCKS, CPU)
    compiled = compiler.install(net, JOINT)
    run(compiler, compiled, net, 5, "a")
    dropped = weakref.ref(net)
    gc.collect()
    assert dropped() is not None, "the control: it is bound"
    del net, compiled
    gc.collect()
    assert (dropped(), compiler.running) == (None, None)
    assert compiler.state.startswith("blocks, 1 graph in")


class TwoAttentions(nn.Module):
    """Two attentions, one after the other, and something on both sides of them."""

    def forward(self, x: Tensor) -> Tensor:
        first = usp_operator()(2 * x, x, x, torch.zeros(1), 0.5)
        return 3 * usp_operator()(first, x, x + 1, torch.zeros(1), 0.5)


class Failing:
    """Decides to run a block compiled, which fails after so many of its attentions and has written into their results by then."""

    def __init__(self, attentions: int, error: Exception, *, on_trial: bool) -> None:
        self.attentions = attentions
        self.error = error
        self.on_trial = on_trial
        self.gave_up: list[str] = []

    def form_of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(module: nn.Module, x: Tensor) -> Tensor:
            query = 2 * x
            for more in range(self.attentions):
                result = usp_operator()(query, x, x + more, torch.zeros(1), 0.5)
                query = result.clone()
                result.zero_()
            raise self.error

        return compiled

    def decide(self, region: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        return True

    def give_up(self, region: str, error: Exception) -> None:
        self.gave_up.append(region)


FAILURES = {
    "compiler": TorchDynamoException("the second piece"),
    "GPU memory": torch.OutOfMemoryError("no room"),
    "memory": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.fixture
def context() -> Iterator[CallContext]:
    context = CallContext(Partition.equal({"image": 6}, ring=1, ulysses=1), Exchange(single_rank_mesh(), RawCodec()))
    with running_call(context):
        yield context


X = torch.linspace(-1, 1, 96).view(1, 6, 2, 8)


@pytest.mark.parametrize("attentions", [0, 1, 2])
@pytest.mark.parametrize("what", FAILURES)
def test_a_block_that_fails_on_trial_is_computed_again_without_a_second_exchange(
    what: str, attentions: int, context: CallContext
) -> None:
    expected = TwoAttentions()(X)
    assert context.attentions == 2
    failing = Failing(attentions, FAILURES[what], on_trial=True)
    assert torch.equal(Region(failing, TwoAttentions())(X), expected)
    assert failing.gave_up == ["TwoAttentions"]
    assert context.attentions == 4, "as many exchanges as on a rank where nothing failed"
    assert (context.kept, len(context.replay)) == (None, 0)


def test_an_attention_that_failed_in_the_middle_of_an_exchange_is_not_made_again(
    context: CallContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise FAILURES["GPU memory"]

    failing = Failing(2, FAILURES["compiler"], on_trial=True)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(usp, "attend_along_ring", fail)
        Region(failing, TwoAttentions())(X)
    assert failing.gave_up == ["TwoAttentions"], "the next job runs eager"


@pytest.mark.parametrize("attentions", [0, 1])
def test_memory_that_runs_out_later_is_not_laid_on_the_compiler(attentions: int, context: CallContext) -> None:
    failing = Failing(attentions, FAILURES["GPU memory"], on_trial=False)
    with pytest.raises(torch.OutOfMemoryError):
        Region(failing, TwoAttentions())(X)
    assert failing.gave_up == []


def test_what_is_not_kept_is_not_repeated_behind_an_exchange(context: CallContext) -> None:
    """A network in pieces: its second piece cannot be compiled."""
    for attentions in (0, 1):
        failing = Failing(attentions, FAILURES["compiler"], on_trial=False)
        region = Region(failing, TwoAttentions())
        if attentions:
            with pytest.raises(TorchDynamoException):
                region(X)
        else:
            assert torch.equal(region(X), TwoAttentions()(X)), "the control: nothing had run, so it runs eager"
        assert failing.gave_up == ["TwoAttentions"]


def test_a_shape_is_on_trial_until_a_call_has_run_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    net, compiler, trials = Net(), Compiler(BLOCKS, CPU), []

    def form_of(forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(module: nn.Module, x: Tensor) -> Tensor:
            trials.append(compiled.on_trial)
            return forward(module, x)  # type: ignore[no-any-return]

        return noted

    monkeypatch.setattr(compiler, "form_of", form_of)
    compiled = compiler.install(net, JOINT)
    for tokens in (2, 2, 3):
        run(compiler, compiled, net, tokens, "job")
    assert trials == [True] * 3 + [False] * 3 + [True] * 3


def test_cuda_graphs_without_cuda_are_blocks() -> None:
    assert Compiler(GRAPHS, CPU).mode == BLOCKS
