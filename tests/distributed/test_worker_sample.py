"""Whole trajectories on two real ranks against one process in float64 that shares no model code with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tutti.backend.sampling.guidance import repeat_to_batch
from tutti.backend.sampling.solvers import SOLVERS
from tutti.backend.wire.messages import Result

from tests.support.checkpoints import write_tiny_flux
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.rank_leg import RankGroup, Turn, running, sample_of, sample_tensors
from tests.support.reference_flux import ReferenceFlux

ENTRY = "tests.distributed.rank_entry"

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"{sampler}, cfg 1": ({}, {"sampler": sampler}) for sampler in SOLVERS},
    # `auto` on two ranks: the branches side by side.
    **{f"{sampler}, cfg 4": ({"tokens": (6, 6)}, {"sampler": sampler, "cfg": 4.0}) for sampler in SOLVERS},
    "euler, cfg 4, in one call": ({"tokens": (6, 6)}, {"cfg": 4.0, "plan": "ulysses=2"}),
    **{
        f"{sampler}, unequal prompts": ({"tokens": (5, 9)}, {"sampler": sampler, "cfg": 4.0, "plan": "ring=2"})
        for sampler in SOLVERS
    },
    "mask": ({"latent": True, "mask": True}, {}),
    "mask, cfg 4, unequal prompts": (
        {"latent": True, "mask": True, "tokens": (5, 9)},
        {"cfg": 4.0, "sampler": "heun"},
    ),
    "batch 3": ({"batch": 3, "tokens": (6, 6)}, {"cfg": 4.0}),
    "batch 3, in one call": ({"batch": 3, "tokens": (6, 6)}, {"cfg": 4.0, "plan": "ulysses=2"}),
    "batch 3, unequal prompts, no guidance": ({"batch": 3, "tokens": (3, 7), "guidance": False}, {"cfg": 2.5}),
    "starts below one": ({"latent": True, "sigmas": (0.55, 0.3, 0.1, 0.0)}, {"sampler": "dpmpp_2m"}),
    "stops early": ({"sigmas": (1.0, 0.8, 0.6, 0.4)}, {"sampler": "dpmpp_2m"}),
    "a part in the middle": ({"latent": True, "sigmas": (0.8, 0.6, 0.4, 0.2)}, {"sampler": "heun"}),
    "one step": ({"sigmas": (1.0, 0.0)}, {}),
    "tokens that nothing divides": ({"height": 6, "width": 14, "tokens": (3,)}, {}),
}


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
    with running(2, module=ENTRY) as ranks:
        yield ranks


def reference(network: ReferenceFlux, tensors: dict[str, Tensor], sampler: str, cfg: float) -> tuple[Tensor, Tensor]:
    """The final latent and the last denoised in float64, one branch and one picture at a time."""
    noise, batch = tensors["noise"].double(), tensors["noise"].shape[0]
    latent = tensors["latent"].double() if "latent" in tensors else torch.zeros_like(noise)
    mask = tensors.get("mask", torch.ones(())).double()

    def branch(x: Tensor, sigma: float, index: int) -> Tensor:
        names = [name for name in tensors if name.startswith(f"branch.{index}.")]
        conditioning = {name.split(".")[2]: repeat_to_batch(tensors[name], batch).double() for name in names}
        rows = [
            network.velocity(
                x[row : row + 1],
                torch.tensor([sigma], dtype=torch.float64),
                **{name: tensor[row : row + 1] for name, tensor in conditioning.items()},
            )
            for row in range(batch)
        ]
        return x - sigma * torch.cat(rows)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        x = x * mask + (sigma * noise + (1 - sigma) * latent) * (1 - mask)
        answer = branch(x, sigma, 0)
        if cfg != 1:
            negative = branch(x, sigma, 1)
            answer = negative + cfg * (answer - negative)
        return answer * mask + latent * (1 - mask)

    sigmas, seen = tensors["sigmas"].double(), list[Tensor]()
    x = float(sigmas[0]) * noise + (1 - float(sigmas[0])) * latent
    x = SOLVERS[sampler](denoise, x, sigmas, lambda step, denoised: seen.append(denoised))
    return x / (1 - float(sigmas[-1])), seen[-1]


def run(group: RankGroup, checkpoint: Path, name: str) -> Turn:
    inputs, request = CASES[name]
    tensors = sample_tensors(**inputs)
    turn = group.run(sample_of(tensors, **request), tensors, checkpoint)
    assert isinstance(turn.answer, Result), turn
    return turn


def diary(group: RankGroup, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (group.folder / f"{rank}.diary").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_a_sample_gives_the_latent_of_a_single_process(
    name: str, group: RankGroup, checkpoint: Path, network: ReferenceFlux
) -> None:
    inputs, request = CASES[name]
    turn = run(group, checkpoint, name)
    latent, x0 = reference(network, sample_tensors(**inputs), request.get("sampler", "euler"), request.get("cfg", 1.0))
    assert turn.tensors["latent"].dtype == turn.tensors["x0"].dtype == torch.float32
    assert relative_error(turn.tensors["latent"], latent) <= FP32_TOLERANCE
    assert relative_error(turn.tensors["x0"], x0) <= FP32_TOLERANCE


def test_every_rank_holds_the_same_bits_before_every_call_and_at_the_end(group: RankGroup, checkpoint: Path) -> None:
    before = len(diary(group, 0))
    for name in ("heun, unequal prompts", "mask", "batch 3, in one call"):
        run(group, checkpoint, name)
    first, second = diary(group, 0), diary(group, 1)
    assert len({entry.get("inputs") for entry in first[before:]}) > 10
    assert [entry["event"] for entry in first[before:]].count("sampled") == 3
    assert first[before:] == second[before:]


def test_ranks_with_a_branch_each_hold_the_same_latent_and_another_prompt(group: RankGroup, checkpoint: Path) -> None:
    before = len(diary(group, 0))
    for name in ("heun, cfg 4", "mask, cfg 4, unequal prompts", "batch 3"):
        run(group, checkpoint, name)
    first, second = (diary(group, rank)[before:] for rank in range(2))
    without_inputs = [
        [{key: value for key, value in entry.items() if key != "inputs"} for entry in entries]
        for entries in (first, second)
    ]
    assert without_inputs[0] == without_inputs[1]
    assert all(one["inputs"] != other["inputs"] for one, other in zip(first, second, strict=True) if "inputs" in one)


def test_the_same_sample_gives_the_same_bits_again(group: RankGroup, checkpoint: Path) -> None:
    first, second = (run(group, checkpoint, "dpmpp_2m, cfg 4").tensors["latent"] for _ in range(2))
    assert torch.equal(first, second)


def test_equal_prompts_share_a_ranks_call_and_unequal_ones_do_not(group: RankGroup, checkpoint: Path) -> None:
    batches = {}
    for name in ("euler, cfg 4", "euler, cfg 4, in one call", "euler, unequal prompts"):
        before = len(diary(group, 0))
        run(group, checkpoint, name)
        batches[name] = [entry["shape"][0] for entry in diary(group, 0)[before:] if entry["event"] == "call"]
    assert batches == {
        "euler, cfg 4": [1] * 4,
        "euler, cfg 4, in one call": [2] * 4,
        "euler, unequal prompts": [1] * 8,
    }


def test_a_model_is_loaded_once_and_stays(group: RankGroup, checkpoint: Path) -> None:
    for _ in range(2):
        turn = run(group, checkpoint, "one step")
    assert all(done.resident == ("diffusion_models/test.safetensors",) for done in turn.done.values())
    for rank in range(2):
        assert [entry["event"] for entry in diary(group, rank)].count("load") == 1


def test_progress_counts_every_step_and_says_what_runs(group: RankGroup, checkpoint: Path) -> None:
    turn = run(group, checkpoint, "heun, unequal prompts")
    sampling = [message for message in turn.progress if message.phase == "sampling"]
    assert [message.step for message in sampling] == [0, 1, 2, 3, 4]
    assert {message.steps for message in sampling} == {4}
    assert {message.text for message in sampling} == {"cfg=1,ring=2,ulysses=1 on 2 ranks"}
    assert isinstance(turn.answer, Result)
    assert turn.answer.plan == "cfg=1,ring=2,ulysses=1"
    assert turn.answer.step_ms > 0


def test_a_job_with_a_codec_says_that_it_is_approximate_and_the_next_one_is_exact_again(
    group: RankGroup, checkpoint: Path, network: ReferenceFlux
) -> None:
    tensors = sample_tensors()
    latent, _ = reference(network, tensors, "euler", 1.0)
    errors = {}
    for plan in ("ulysses=2,codec=fp8", "ulysses=2"):
        turn = group.run(sample_of(tensors, plan=plan), tensors, checkpoint)
        full = f"cfg=1,ring=1,{plan}"
        shown = f"{full} (approximate) on 2 ranks" if "codec" in plan else f"{full} on 2 ranks"
        assert {message.text for message in turn.progress if message.phase == "sampling"} == {shown}
        assert isinstance(turn.answer, Result)
        assert turn.answer.plan == full
        errors[plan] = relative_error(turn.tensors["latent"], latent)
    assert errors["ulysses=2"] <= FP32_TOLERANCE
    # Four steps through one double and one single block; a wrong exchange is of order 1.
    assert 10 * FP32_TOLERANCE < errors["ulysses=2,codec=fp8"] < 0.05


def test_previews_come_only_when_asked_for_and_show_the_denoised_latent(group: RankGroup, checkpoint: Path) -> None:
    tensors = sample_tensors(sigmas=(1.0, 0.0))
    silent = group.run(sample_of(tensors), tensors, checkpoint)
    assert silent.previews == []
    shown = group.run(sample_of(tensors, previews=True), tensors, checkpoint)
    ((step, x0),) = shown.previews
    assert step == 0
    assert x0.dtype == torch.bfloat16
    assert torch.equal(x0, shown.tensors["x0"].to(torch.bfloat16))


def test_bfloat16_on_two_ranks_is_as_good_as_on_one(group: RankGroup, checkpoint: Path, network: ReferenceFlux) -> None:
    """The error is that of the dtype, not of the split. (How good it has to be is told by stock ComfyUI, in the parity tests.)"""
    tensors = sample_tensors()
    latent, _ = reference(network, tensors, "euler", 1.0)
    with running(1) as alone:
        single = relative_error(
            alone.run(sample_of(tensors, dtype="BF16"), tensors, checkpoint).tensors["latent"], latent
        )
    error = relative_error(group.run(sample_of(tensors, dtype="BF16"), tensors, checkpoint).tensors["latent"], latent)
    assert 10 * FP32_TOLERANCE < error <= 1.1 * single


def test_the_check_fails_when_one_rank_drops_what_it_receives(checkpoint: Path, network: ReferenceFlux) -> None:
    """Negative control."""
    with running(2, module=ENTRY, environment={"TEST_DROPPING_RANK": "1"}) as ranks:
        turn = run(ranks, checkpoint, "euler, cfg 1")
    latent, _ = reference(network, sample_tensors(), "euler", 1.0)
    assert relative_error(turn.tensors["latent"], latent) > 100 * FP32_TOLERANCE


def sent_bytes(plan: str, calls: int) -> int:
    """What two ranks send in ``calls`` calls, counted by hand: 16 text and 16 image tokens, 2 heads of 128, 2 attentions, float32."""
    tokens, heads, head_dim, attentions, channels = 32, 2, 128, 2, 64
    row = head_dim * 4
    # Ulysses: half the heads of q, k, v go to the other rank, then half of the output's tokens. Ring: all keys and values travel once.
    attention = 4 * tokens * (heads // 2) * row if plan == "ulysses=2" else 2 * tokens * heads * row
    gather = 16 * channels * 4
    return calls * (attentions * attention + gather)


@pytest.mark.parametrize(("plan", "cfg", "calls"), [("ulysses=2", 1.0, 3), ("ring=2", 1.0, 3), ("ring=2", 4.0, 6)])
def test_the_result_says_how_much_the_ranks_have_sent(
    group: RankGroup, checkpoint: Path, plan: str, cfg: float, calls: int
) -> None:
    tensors = sample_tensors(height=8, width=8, tokens=(16,) if cfg == 1 else (16, 16), sigmas=(1.0, 0.7, 0.3, 0.0))
    answer = group.run(sample_of(tensors, plan=plan, cfg=cfg), tensors, checkpoint).answer
    assert isinstance(answer, Result)
    assert answer.exchanged_bytes == sent_bytes(plan, calls)
