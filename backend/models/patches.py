"""Latents as tokens, and where the tokens stand, as ComfyUI has it: 2x2 patches, circular padding, reference images beside the picture.

Shape letters: B batch, C latent channels, H and W latent size, h = ceil(H/2) and w = ceil(W/2) patches, S = h w tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PATCH = 2

DEFAULT_REFERENCE_METHOD = "offset"
REFERENCE_METHODS = ("offset", "index", "uxo")
"""ComfyUI's names. (Its ``index_timestep_zero`` does not run on FLUX.1 in ComfyUI itself.)"""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a reference image stands in the rotary coordinates."""

    index: int
    """The first axis: 0 is the picture itself."""
    row: int
    """Offset on the second axis, in patches."""
    column: int
    """Offset on the third axis, in patches."""


def patches(pixels: int, patch: int = PATCH) -> int:
    """Patches along a side of ``pixels`` latent pixels."""
    return -(-pixels // patch)


def pad_to_patches(x: Tensor, patch: Sequence[int] = (PATCH, PATCH)) -> Tensor:
    """Make the last dimensions whole multiples of ``patch``: what is missing wraps around, as in ComfyUI."""
    missing = [-size % step for size, step in zip(x.shape[-len(patch) :], patch, strict=True)]
    if not any(missing):
        return x
    sides = [side for step in reversed(missing) for side in (0, step)]
    return functional.pad(x, (*sides, *(0,) * (2 * (x.ndim - 2) - len(sides))), mode="circular")


def pack(x_BCHW: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> tokens ``[B, S, 4C]`` (channel outermost, then the patch's row and column); odd sizes wrap around."""
    B, C, H, W = x_BCHW.shape
    h, w = patches(H), patches(W)
    blocks = pad_to_patches(x_BCHW).reshape(B, C, h, PATCH, w, PATCH)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * PATCH * PATCH)


def unpack(tokens_BSP: Tensor, height: int, width: int) -> Tensor:
    """Tokens ``[B, S, 4C]`` -> ``[B, C, height, width]``: the inverse of :func:`pack`, padding cut off."""
    B, _, P = tokens_BSP.shape
    h, w, C = patches(height), patches(width), P // (PATCH * PATCH)
    blocks = tokens_BSP.reshape(B, h, w, C, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(B, C, h * PATCH, w * PATCH)[:, :, :height, :width]


def grid_positions(
    height: int, width: int, placement: Placement, device: torch.device, *, patch: int = PATCH
) -> Tensor:
    """Rotary positions of an image's tokens, float32 ``[S, 3]``: (index, row, column)."""
    h, w = patches(height, patch), patches(width, patch)
    positions = torch.empty(h, w, 3, dtype=torch.float32, device=device)
    positions[..., 0] = placement.index
    positions[..., 1] = torch.arange(placement.row, placement.row + h, device=device)[:, None]
    positions[..., 2] = torch.arange(placement.column, placement.column + w, device=device)[None, :]
    return positions.reshape(h * w, 3)


def place_references(
    sizes: Sequence[tuple[int, int]],
    method: str,
    picture: tuple[int, int],
    *,
    patch: int = PATCH,
    index_step: int = 1,
) -> list[Placement]:
    """Where ComfyUI 0.30 puts reference images of ``sizes`` (height, width in latent pixels) for a picture of that size.

    ``index``: each on an index of its own, ``index_step`` from the one before. ``uxo``: index 0, diagonally beyond the picture.
    ``offset``: all on index 1, each beside or below those before, whichever keeps the whole smaller.
    """
    if method == "index":
        return [Placement(number * index_step, 0, 0) for number in range(1, len(sizes) + 1)]
    if method == "uxo":
        return _place_diagonally(sizes, picture, patch)
    return _place_side_by_side(sizes, patch)


def _place_diagonally(sizes: Sequence[tuple[int, int]], picture: tuple[int, int], patch: int) -> list[Placement]:
    placements = []
    row, column = (patches(side, patch) * patch for side in picture)
    for height, width in sizes:
        placements.append(Placement(0, patches(row, patch), patches(column, patch)))
        row, column = row + height, column + width
    return placements


def _place_side_by_side(sizes: Sequence[tuple[int, int]], patch: int) -> list[Placement]:
    placements = []
    taken_height = taken_width = 0
    for height, width in sizes:
        row = column = 0
        if height + taken_height > width + taken_width:
            column = taken_width
        else:
            row = taken_height
        placements.append(Placement(1, patches(row, patch), patches(column, patch)))
        taken_height, taken_width = max(taken_height, height + row), max(taken_width, width + column)
    return placements
