"""The demo's picture of a latent, and its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tutti.backend.demo.job import flux_sigmas
from tutti.backend.demo.picture import latent_to_rgb, write_png


def _latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 6, 9, generator=torch.Generator().manual_seed(seed))


def test_a_latent_becomes_a_picture_of_eight_pixels_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    assert write_png(_latent(), path) == (72, 48)
    with Image.open(path) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (72, 48), "RGB")


def test_equal_latents_give_equal_pictures_and_others_do_not() -> None:
    assert torch.equal(latent_to_rgb(_latent()), latent_to_rgb(_latent().clone()))
    assert not torch.equal(latent_to_rgb(_latent()), latent_to_rgb(_latent(1)))


def test_every_colour_uses_its_whole_range() -> None:
    rgb = latent_to_rgb(_latent()).flatten(0, 1)
    assert rgb.amin(0).tolist() == [0, 0, 0]
    assert rgb.amax(0).tolist() == [255, 255, 255]


def test_a_flat_latent_is_no_error() -> None:
    assert latent_to_rgb(torch.zeros(16, 4, 4)).unique().tolist() == [0]


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_the_schedule_falls_from_one_to_zero(steps: int) -> None:
    sigmas = flux_sigmas(steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


def test_the_schedule_is_shifted_as_flux_is() -> None:
    # e^1.15 / (e^1.15 + 1 / 0.5 - 1), by hand
    assert flux_sigmas(2)[1].item() == pytest.approx(0.759511, abs=1e-6)
