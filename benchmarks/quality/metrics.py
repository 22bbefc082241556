"""How far two results of the same prompt are apart: latents, pictures, and whole sets of pictures.

Pictures are uint8 ``[B, H, W, 3]``. All arithmetic is in float64: what is measured may be as small as a rounding error.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

EQUAL_DB: Final = 120.0
"""What stands for the infinite PSNR of equal pictures: more than one value too high in 2048 x 2048 pixels gives (119)."""
_PEAK: Final = 255.0
_WINDOW: Final = 11
_SIGMA: Final = 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


def relative_error(measured: Tensor, expected: Tensor) -> Tensor:
    """``||measured - expected|| / ||expected||`` for each entry of dimension 0, Frobenius norms; float64 ``[B]``."""
    difference = (measured.double() - expected.double()).flatten(1)
    error: Tensor = difference.norm(dim=1) / expected.double().flatten(1).norm(dim=1)
    return error


def psnr_db(measured: Tensor, expected: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``10 log10(255^2 / MSE)`` of each picture, at most :data:`EQUAL_DB`; float64 ``[B]``."""
    square = (measured.double() - expected.double()).square().flatten(1).mean(dim=1)
    return (10 * (_PEAK**2 / square).log10()).clamp_max(EQUAL_DB)


def ssim(measured: Tensor, expected: Tensor) -> Tensor:
    """Structural similarity of each picture, float64 ``[B]``: the mean over all windows that lie inside it, and over its colours.

    Wang, Bovik, Sheikh and Simoncelli 2004, equation 13, with their window (11 x 11, Gaussian, standard deviation 1.5) and
    constants (K1 = 0.01, K2 = 0.03). They measured luminance only.
    """
    x, y = (picture.double().permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1) for picture in (measured, expected))
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variance_x, variance_y = _local_mean(x * x) - mean_x**2, _local_mean(y * y) - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).reshape(len(measured), -1).mean(dim=1)


def _local_mean(x: Tensor) -> Tensor:
    """The Gaussian mean around every point that has a whole window; ``[N, 1, H, W]`` -> ``[N, 1, H - 10, W - 10]``."""
    place = torch.arange(_WINDOW, dtype=x.dtype) - _WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def pooled_features(latents: Tensor) -> Tensor:
    """Mean and standard deviation of every channel of ``[N, C, h, w]``: float64 ``[N, 2 C]``."""
    cells = latents.double().flatten(2)
    return torch.cat([cells.mean(dim=2), cells.std(dim=2, correction=0)], dim=1)


def frechet_distance(measured: Tensor, expected: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of two sets of features ``[N, F]``.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Dowson and Landau 1982, equation 16): what FID computes, there in the features of an
    Inception network. Here they are the shipped autoencoder's, so the value compares with no published FID. Sets must not be small:
    with few pictures the covariances are noise.
    """
    (mean_1, root), (mean_2, covariance_2) = _moments(measured, root=True), _moments(expected, root=False)
    cross = _eigenvalues(root @ covariance_2 @ root).sqrt().sum()
    trace = (
        root.square().sum() + covariance_2.trace() - 2 * cross
    )  # the root is symmetric: its squares sum to the trace
    return max(0.0, float((mean_1 - mean_2).square().sum() + trace))


def _moments(features: Tensor, *, root: bool) -> tuple[Tensor, Tensor]:
    """Mean, and covariance or its symmetric root."""
    features = features.double()
    centred = features - features.mean(dim=0)
    covariance = centred.T @ centred / (len(features) - 1)
    if root:
        values, vectors = torch.linalg.eigh(covariance)
        covariance = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return features.mean(dim=0), covariance


def _eigenvalues(symmetric: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh((symmetric + symmetric.T) / 2)
    return values.clamp_min(0)
