"""The demo's job: its schedule, its noise, and a prompt of its own for every picture."""

from __future__ import annotations

import math

import pytest
import torch
from tutti.backend.assets.prompt import parse
from tutti.backend.demo.request import demo_sample, flux_sigmas
from tutti.backend.wire.codec import decode, encode
from tutti.backend.worker.tensors import to_torch

CLIENT = "7e57" * 8


def tensors_of(*texts: str, first_seed: int = 3) -> dict[str, torch.Tensor]:
    """What would be sent for these prompts."""
    message, tensors = demo_sample(
        [parse(text) for text in texts], width=96, height=64, steps=4, guidance=2.0, first_seed=first_seed, plan="", client_id=CLIENT
    )  # fmt: skip
    received = decode([bytes(frame) for frame in encode(message, tensors)])
    assert received.message == message, "both ends accept it"
    return {name: to_torch(tensor).clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_the_schedule_falls_from_one_to_zero(steps: int) -> None:
    sigmas = flux_sigmas(steps)
    assert sigmas.shape == (steps + 1,)
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert bool((sigmas.diff() < 0).all())


def test_the_schedule_is_shifted_as_flux_is() -> None:
    assert flux_sigmas(2)[1].item() == pytest.approx(math.exp(1.15) / (math.exp(1.15) + 1 / 0.5 - 1), abs=1e-6)


def test_every_picture_has_a_prompt_of_its_own() -> None:
    tensors = tensors_of("a red circle", "", "a blue star")
    assert tensors["noise"].shape == (3, 16, 8, 12)
    assert tensors["branch.0.context"].shape == (3, 20, 64)
    assert tensors["branch.0.pooled"].shape == (3, 64)
    assert tensors["branch.0.guidance"].tolist() == [2.0, 2.0, 2.0]
    assert torch.equal(tensors["branch.0.context"][2], torch.tensor(parse("a blue star").context()))
    assert not tensors["branch.0.context"][1].any(), "an empty prompt is all zeros"


def test_a_pictures_noise_is_that_of_its_own_seed_whatever_is_drawn_beside_it() -> None:
    together, alone = tensors_of("red", "blue", first_seed=3)["noise"], tensors_of("blue", first_seed=4)["noise"]
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
