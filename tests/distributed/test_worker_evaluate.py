"""Evaluate turns on two real ranks: the loop is here, the ranks keep the conditioning, other work may come between."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import Call, Evaluate, Evaluated, Failed, ModelRef, Result
from tutti.backend.worker.tensors import to_wire

from tests.support.checkpoints import write_tiny_flux
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.rank_leg import RankGroup, Turn, running, sample_of, sample_tensors
from tests.support.reference_flux import ReferenceFlux


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, depth=1, depth_single=1)
    return path


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> ReferenceFlux:
    return ReferenceFlux(load_file(checkpoint))


@pytest.fixture(scope="module")
def group() -> Iterator[RankGroup]:
    with running(2) as ranks:
        yield ranks


def conditioning(seed: int, *, tokens: int = 6, batch: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "context": torch.randn(batch, tokens, 64, generator=generator),
        "pooled": torch.randn(batch, 32, generator=generator),
        "guidance": torch.full((batch,), 3.5),
    }


class Loop:
    """A client's side of one trajectory."""

    def __init__(self, group: RankGroup, checkpoint: Path, *, dtype: str = "F32") -> None:
        self.group, self.checkpoint = group, checkpoint
        self.on = ModelRef(model="diffusion_models/test.safetensors", family="flux", dtype=dtype)  # type: ignore[arg-type]
        self.job_id = secrets.token_hex(16)
        self.turn = 0
        self.sent: set[str] = set()

    def message(self, calls: list[Call], turn: int) -> Evaluate:
        """The Evaluate of one turn."""
        return Evaluate(job_id=self.job_id, node_id="3", turn=turn, on=self.on, calls=tuple(calls))

    def evaluate(
        self, calls: list[tuple[Tensor, float, Mapping[str, Tensor]]], *, forget: tuple[str, ...] = ()
    ) -> Turn:
        """One turn; conditioning goes along only the first time."""
        tensors: dict[str, Tensor] = {}
        wanted = []
        for index, (x, sigma, named) in enumerate(calls):
            digest = content_digest({name: to_wire(tensor) for name, tensor in named.items()})
            wanted.append(Call(branch=f"branch {index}", conditioning=digest))
            tensors |= {f"call.{index}.x": x, f"call.{index}.timestep": torch.full((x.shape[0],), sigma)}
            if digest not in self.sent:
                self.sent.add(digest)
                tensors |= {f"upload.{digest}.{name}": tensor for name, tensor in named.items()}
        message = self.message(wanted, self.turn)
        self.turn += 1
        return self.group.run(message, tensors, self.checkpoint, forget=forget)


def expected(network: ReferenceFlux, x: Tensor, sigma: float, named: Mapping[str, Tensor]) -> Tensor:
    repeated = {name: tensor.expand(x.shape[0], *tensor.shape[1:]).double() for name, tensor in named.items()}
    return network.velocity(x, torch.full((x.shape[0],), sigma).double(), **repeated)


def x_of(seed: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, 8, 12, generator=torch.Generator().manual_seed(seed))


def test_a_turn_answers_its_calls_in_order(group: RankGroup, checkpoint: Path, network: ReferenceFlux) -> None:
    loop = Loop(group, checkpoint)
    calls = [
        (x_of(1), 0.9, conditioning(1)),
        (x_of(2), 0.8, conditioning(2, tokens=9)),
        (x_of(3), 0.1, conditioning(1)),
    ]
    turn = loop.evaluate(calls)
    assert turn.answer == Evaluated(job_id=loop.job_id, turn=0)
    assert list(turn.tensors) == ["call.0.out", "call.1.out", "call.2.out"]
    for index, call in enumerate(calls):
        assert relative_error(turn.tensors[f"call.{index}.out"], expected(network, *call)) <= FP32_TOLERANCE
    swapped = expected(network, *calls[1])
    assert relative_error(turn.tensors["call.0.out"], swapped) > 100 * FP32_TOLERANCE  # negative control


def test_conditioning_crosses_once_and_serves_every_later_turn(
    group: RankGroup, checkpoint: Path, network: ReferenceFlux
) -> None:
    loop, named = Loop(group, checkpoint), conditioning(4)
    for turn_number in range(4):
        x = x_of(10 + turn_number, batch=2)
        turn = loop.evaluate([(x, 0.5, named)])
        assert isinstance(turn.answer, Evaluated)
        assert relative_error(turn.tensors["call.0.out"], expected(network, x, 0.5, named)) <= FP32_TOLERANCE
    assert len(loop.sent) == 1


def test_trajectories_and_samples_take_turns_without_touching_each_other(
    group: RankGroup, checkpoint: Path, network: ReferenceFlux
) -> None:
    inputs = sample_tensors(sigmas=(1.0, 0.5, 0.0))
    undisturbed = group.run(sample_of(inputs), inputs, checkpoint).tensors["latent"]
    loops = [Loop(group, checkpoint) for _ in range(3)]
    for turn_number in range(3):
        for number, loop in enumerate(loops):
            named, x = conditioning(20 + number, tokens=5 + number), x_of(30 + turn_number)
            turn = loop.evaluate([(x, 0.7, named)])
            assert relative_error(turn.tensors["call.0.out"], expected(network, x, 0.7, named)) <= FP32_TOLERANCE
        between = group.run(sample_of(inputs), inputs, checkpoint)
        assert isinstance(between.answer, Result)
        assert torch.equal(between.tensors["latent"], undisturbed)
    assert all(len(loop.sent) == 1 for loop in loops)


def test_a_loop_of_turns_gives_the_latent_of_a_sample(group: RankGroup, checkpoint: Path) -> None:
    """The two ways in are one machine."""
    inputs = sample_tensors(tokens=(6,))
    whole = group.run(sample_of(inputs), inputs, checkpoint).tensors["latent"]
    named = {name.removeprefix("branch.0."): t for name, t in inputs.items() if name.startswith("branch.0.")}
    loop, x, sigmas = Loop(group, checkpoint), inputs["noise"], inputs["sigmas"].tolist()
    for sigma, sigma_next in itertools.pairwise(sigmas):
        velocity = loop.evaluate([(x, sigma, named)]).tensors["call.0.out"]
        x = x + (x - (x - velocity * sigma)) / sigma * (sigma_next - sigma)
    assert torch.equal(x, whole)


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_the_answer_has_the_dtype_of_the_question(
    dtype: str, torch_dtype: torch.dtype, group: RankGroup, checkpoint: Path
) -> None:
    named = {name: tensor.to(torch_dtype) for name, tensor in conditioning(5).items()}
    turn = Loop(group, checkpoint, dtype=dtype).evaluate([(x_of(1).to(torch_dtype), 0.5, named)])
    assert turn.tensors["call.0.out"].dtype == torch_dtype


def test_a_repeated_turn_computes_what_a_prepared_one_does(group: RankGroup, checkpoint: Path) -> None:
    loop, named = Loop(group, checkpoint), conditioning(11)
    for seed in range(2):  # the second turn is the one without conditioning: all later ones are its like
        loop.evaluate([(x_of(seed), 0.5, named)])
    for seed in range(2, 4):
        inputs = {"call.0.x": x_of(seed), "call.0.timestep": torch.full((1,), 0.5)}
        repeated = group.wait_done(group.repeat(loop.message([], loop.turn), inputs))
        loop.turn += 1
        prepared = Loop(group, checkpoint).evaluate([(x_of(seed), 0.5, named)])
        assert torch.equal(repeated.tensors["call.0.out"], prepared.tensors["call.0.out"])
        assert not torch.equal(repeated.tensors["call.0.out"], x_of(seed))
        loop.evaluate([(x_of(seed), 0.5, named)])  # the other trajectory came between: this one is prepared again


def test_a_cancel_that_comes_with_a_repeat_keeps_every_rank_out_of_a_later_call(
    group: RankGroup, checkpoint: Path
) -> None:
    loop, named = Loop(group, checkpoint), conditioning(12)
    for seed in range(2):
        loop.evaluate([(x_of(seed), 0.5, named)])
    turn = group.repeat(loop.message([], loop.turn), {"call.0.x": x_of(2), "call.0.timestep": torch.full((1,), 0.5)})
    group.cancel(turn)
    group.wait_done(turn)  # the only call of the turn, or none: both ranks did the same
    left = isinstance(turn.answer, Failed) and turn.answer.code == "cancelled"
    assert left or isinstance(turn.answer, Evaluated)
    assert isinstance(Loop(group, checkpoint).evaluate([(x_of(1), 0.5, named)]).answer, Evaluated)


def test_a_forgotten_trajectory_is_gone_on_every_rank(group: RankGroup, checkpoint: Path) -> None:
    loop, other, named = Loop(group, checkpoint), Loop(group, checkpoint), conditioning(6)
    assert isinstance(loop.evaluate([(x_of(1), 0.5, named)]).answer, Evaluated)
    other.evaluate([(x_of(1), 0.5, named)], forget=(loop.job_id, "0" * 32))
    turn = loop.evaluate([(x_of(2), 0.5, named)])
    assert set(turn.refused) == {0, 1}
    assert {refused.code for refused in turn.refused.values()} == {"bad_request"}
    assert isinstance(other.evaluate([(x_of(2), 0.5, named)]).answer, Evaluated)


def test_uploads_of_a_refused_turn_are_not_kept(group: RankGroup, checkpoint: Path) -> None:
    loop = Loop(group, checkpoint)
    too_narrow = conditioning(7) | {"context": torch.zeros(1, 6, 63)}
    assert set(loop.evaluate([(x_of(1), 0.5, too_narrow)]).refused) == {0, 1}
    assert {refused.code for refused in loop.evaluate([(x_of(1), 0.5, too_narrow)]).refused.values()} == {"bad_request"}
