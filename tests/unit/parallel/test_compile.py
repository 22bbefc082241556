"""When a network's regions run compiled, for which shapes anew, and that an operator's dead call stays alive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from tutti.backend.parallel.compile import Compiler
from tutti.backend.parallel.compile_modes import AUTO, BLOCKS, COMPILE_MODES, GRAPHS, OFF
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.partition import Partition
from tutti.backend.parallel.regions import plain, repeated_blocks
from tutti.backend.parallel.usp import CallContext, running_call, usp_operator

from tests.support.meshes import single_rank_mesh

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
def compilers() -> Iterator[list[Compiler]]:
    """Those of a test, deaf to torch's compilations afterwards."""
    import torch._inductor.config
    from torch._dynamo.callback import callback_handler

    before = list(callback_handler.start_callbacks), list(callback_handler.end_callbacks)
    with torch._inductor.config.patch(compile_threads=1):  # no pool that outlives the test
        yield []
    callback_handler.start_callbacks[:], callback_handler.end_callbacks[:] = before
    torch._dynamo.reset()


def run(compiler: Compiler, net: Net, tokens: int, job: str) -> Tensor:
    """One call of a job."""
    compiler.begin_job(job, lambda count: None)
    with torch.no_grad(), compiler.call():
        return net(torch.ones(1, tokens, 8))  # type: ignore[no-any-return]


def test_the_blocks_that_hold_joint_attentions_are_compiled_and_no_others() -> None:
    net = Net()
    assert repeated_blocks(net, JOINT) == list(net.layers)
    assert repeated_blocks(net, ["attn"]) == [], "an attention outside a numbered row is in no repeated block"


@pytest.mark.parametrize(
    ("asked", "device", "state"),
    [
        (AUTO, CPU, "off: kernels of a CPU gain nothing from it"),
        (OFF, CPU, "off"),
        (BLOCKS, CPU, "blocks, no graph yet"),
    ],
)
def test_a_compiler_says_what_it_does(asked: str, device: torch.device, state: str, compilers: list[Compiler]) -> None:
    assert asked in COMPILE_MODES
    assert Compiler(asked, device).state == state


def test_off_leaves_the_network_alone() -> None:
    net = Net()
    Compiler(OFF, CPU).install(net, JOINT)()
    assert "forward" not in vars(net.layers[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_auto_compiles_a_shape_in_the_second_job_that_has_it(compilers: list[Compiler]) -> None:
    net, compiler = Net(), Compiler(AUTO, CUDA)
    remove = compiler.install(net, JOINT)
    eager = run(compiler, net, 5, "first")
    run(compiler, net, 5, "first")
    assert (compiler.graphs, compiler.note) == (0, ""), "the first picture never waits"
    compiled = run(compiler, net, 5, "second")
    assert (compiler.graphs, compiler.note) == (1, "compiled"), "one graph for three blocks"
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)
    run(compiler, net, 7, "second")
    assert (compiler.graphs, compiler.note) == (1, ""), "another shape is a first picture again"
    run(compiler, net, 7, "third")
    run(compiler, net, 9, "third")
    run(compiler, net, 9, "fourth")
    assert compiler.graphs == 2, "the second graph has a symbolic length"
    remove()
    assert "forward" not in vars(net.layers[0])
    assert torch.equal(net(torch.ones(1, 5, 8)).detach(), eager)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compilation_is_announced_with_its_number_in_the_job(compilers: list[Compiler]) -> None:
    net, compiler, heard = Net(), Compiler(BLOCKS, CPU), []
    compiler.install(net, JOINT)
    for job, tokens in (("a", 5), ("b", 7), ("b", 7)):
        compiler.begin_job(job, lambda count, job=job: heard.append((job, count)))
        with torch.no_grad(), compiler.call():
            net(torch.ones(1, tokens, 8))
    assert heard == [("a", 1), ("b", 1)]
    assert compiler.kinds == 1
    assert compiler.seconds > 0
    assert compiler.state.startswith("blocks, 2 graphs in")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_call_whose_answer_nobody_uses_stays_in_a_compiled_graph(compilers: list[Compiler]) -> None:
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
def test_a_region_that_takes_too_many_graphs_runs_eager_and_says_so(
    compilers: list[Compiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, compiler = Net(), Compiler(BLOCKS, CPU)
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 1)
    compiler.install(net, JOINT)
    run(compiler, net, 5, "a")
    assert compiler.failures == {}
    out = run(compiler, net, 7, "b")
    assert compiler.failures == {"Block": "it took more than 64 graphs"}
    assert compiler.note == "not compiled: Block: it took more than 64 graphs"
    assert out.shape == (1, 7, 8)


def test_cuda_graphs_without_cuda_are_blocks(compilers: list[Compiler]) -> None:
    assert Compiler(GRAPHS, CPU).mode == BLOCKS
