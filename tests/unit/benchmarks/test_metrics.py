"""The metrics against values known from their formulas, against another implementation, and against what they must not accept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage
from torch import Tensor
from tutti.benchmarks.quality.metrics import (
    EQUAL_DB,
    frechet_distance,
    pooled_features,
    psnr_db,
    relative_error,
    ssim,
)


def pictures(seed: int, count: int = 3, height: int = 40, width: int = 31) -> Tensor:
    """Smooth random pictures."""
    noise = np.random.default_rng(seed).normal(size=(count, height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return torch.from_numpy(np.clip(127 + 250 * smooth, 0, 255).astype(np.uint8))


def with_noise(clean: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * deviation
    return (clean + noise).round().clamp(0, 255).to(torch.uint8)


def flat(value: int) -> Tensor:
    return torch.full((1, 16, 16, 3), value, dtype=torch.uint8)


def test_the_relative_error_is_that_of_each_prompt() -> None:
    expected = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    measured = expected * torch.tensor([1.0, 1.25, 0.0]).view(3, 1, 1, 1)
    assert relative_error(measured, expected).tolist() == pytest.approx([0, 0.25, 1])
    # One prompt's error must not hide in the norm of the others.
    measured[0, 0, 0, 0] += 100
    assert relative_error(measured, expected)[0] > 1


def test_psnr_is_known_where_every_pixel_is_off_by_one_value() -> None:
    assert psnr_db(flat(100), flat(101)).item() == pytest.approx(20 * math.log10(255))
    assert psnr_db(flat(100), flat(110)).item() == pytest.approx(20 * math.log10(25.5))


def test_psnr_tells_equal_pictures_from_the_smallest_difference() -> None:
    first = pictures(0, height=128, width=128)
    second = first.clone()
    second[1, 0, 0, 0] ^= 1
    equal, almost, also_equal = psnr_db(second, first).tolist()
    assert equal == also_equal == EQUAL_DB
    assert almost == pytest.approx(10 * math.log10(255**2 * 128 * 128 * 3))
    assert almost < EQUAL_DB


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    a, b, c1 = 100.0, 150.0, (0.01 * 255) ** 2
    assert ssim(flat(100), flat(150)).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def ssim_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, by another library's Gaussian filter (radius 5), windows inside the picture only."""

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]

    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(values.mean())


def test_ssim_agrees_with_another_implementation() -> None:
    """Tolerance: both are float64 sums of 121 terms around values of 255^2."""
    clean = pictures(2)
    noisy = with_noise(clean, 20)
    for index, measured in enumerate(ssim(noisy, clean).tolist()):
        channels = [
            ssim_by_scipy(noisy[index, ..., channel].numpy(), clean[index, ..., channel].numpy())
            for channel in range(3)
        ]
        assert measured == pytest.approx(np.mean(channels), abs=1e-9)


def test_ssim_is_one_for_equals_symmetric_and_falls_with_damage() -> None:
    clean = pictures(3)
    values = [ssim(with_noise(clean, deviation), clean).mean().item() for deviation in (0, 5, 20, 60)]
    assert values[0] == pytest.approx(1.0, abs=1e-12)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.7
    noisy = with_noise(clean, 20)
    assert torch.allclose(ssim(noisy, clean), ssim(clean, noisy), rtol=1e-12)
    assert ssim(255 - clean, clean).max() < 0.3, "an inverted picture has the opposite structure"


def features(seed: int, count: int = 400, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + 1


def test_the_frechet_distance_of_shifted_and_stretched_sets_is_known() -> None:
    """A shift costs its square; a stretch by s about zero costs (s - 1)^2 (|m|^2 + tr S)."""
    some = features(0)
    shift = torch.tensor([3.0, 0, 0, 0, 0, 4.0], dtype=torch.float64)
    assert frechet_distance(some, some) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(some + shift, some) == pytest.approx(25)
    stretched = 0.25 * (some.mean(0).square().sum() + some.var(0).sum())
    assert frechet_distance(1.5 * some, some) == pytest.approx(stretched.item())


def test_the_frechet_distance_agrees_with_a_general_matrix_root() -> None:
    one, other = features(1), features(2)
    covariances = [np.cov(values.T.numpy()) for values in (one, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = (one.mean(0) - other.mean(0)).square().sum().item() + np.trace(
        covariances[0] + covariances[1] - 2 * root
    )
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-8)


def test_the_frechet_distance_sees_what_equal_means_and_variances_hide() -> None:
    """Negative control: the same marginals, another correlation."""
    one = features(3)
    shuffled = one.clone()
    shuffled[:, 0] = shuffled[torch.randperm(len(one), generator=torch.Generator().manual_seed(4)), 0]
    assert torch.allclose(one.mean(0), shuffled.mean(0))
    assert frechet_distance(shuffled, one) > 0.1


def test_the_frechet_distance_of_one_constant_feature_is_a_number() -> None:
    some = features(5)
    some[:, 2] = 7
    assert frechet_distance(some, some) == pytest.approx(0, abs=1e-9)


def test_pooled_features_are_means_and_deviations_of_channels() -> None:
    latents = torch.zeros(2, 3, 4, 4)
    latents[0, 1] = 5
    latents[1, 2, :2] = 2
    expected = torch.tensor([[0, 5, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(pooled_features(latents), expected)
