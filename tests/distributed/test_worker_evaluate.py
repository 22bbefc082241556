"""Evaluate turns on two real ranks: the loop is here, the ranks keep the conditioning, other work may come between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tutti.backend.wire.messages import Evaluated, Result

from tests.support.checkpoints import write_tiny_flux
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.rank_leg import RankGroup, Turn, running, sample_of, sample_tensors
from tests.support.reference_flux import ReferenceFlux
from tests.support.trajectories import Loop, conditioning, x_of


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


def expected(network: ReferenceFlux, x: Tensor, sigma: float, named: Mapping[str, Tensor]) -> Tensor:
    repeated = {name: tensor.expand(x.shape[0], *tensor.shape[1:]).double() for name, tensor in named.items()}
    return network.velocity(x, torch.full((x.shape[0],), sigma).double(), **repeated)


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


def test_turns_that_exchange_differences_heal_and_do_not_answer_for_other_jobs(
    group: RankGroup, checkpoint: Path, network: ReferenceFlux
) -> None:
    """NaN in one turn, another job and other degrees in between; a repeated turn tells of the one before as it starts, early."""
    named = conditioning(1)
    first = Loop(group, checkpoint, plan="ulysses=2,compression=fast")
    other = Loop(group, checkpoint, plan="ulysses=2,compression=fast")
    bad = x_of(1)
    bad[0, 0, 0, 0] = torch.nan

    def out(turn: Turn) -> Tensor:
        assert isinstance(turn.answer, Evaluated)
        return turn.tensors["call.0.out"]

    def error(turn: Turn, sigma: float) -> float:
        return relative_error(out(turn), expected(network, x_of(1), sigma, named))

    assert 1e-5 < error(first.evaluate([(x_of(1), 0.9, named)]), 0.9) < 0.1, "compressed: close, and not the same"
    assert error(first.evaluate([(x_of(1), 0.89, named)]), 0.89) < 0.1
    assert out(first.repeat([(bad, 0.88)])).isnan().any()
    assert error(first.repeat([(x_of(1), 0.86)]), 0.86) < 0.1
    assert out(first.repeat([(bad, 0.84)])).isnan().any()
    assert error(other.evaluate([(x_of(1), 0.9, named)]), 0.9) < 0.1
    assert error(first.evaluate([(x_of(1), 0.82, named)]), 0.82) < 0.1
    first.on = replace(first.on, plan="ring=2,compression=fast")
    assert error(first.evaluate([(x_of(1), 0.8, named)]), 0.8) < 0.1
    first.on = replace(first.on, plan="ulysses=2,compression=fast")
    assert error(first.evaluate([(x_of(1), 0.78, named)], forget=(other.job_id,)), 0.78) < 0.1
