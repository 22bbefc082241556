"""Where the autoencoder starts: not at random, but as a linear block coder that already works.

TAESD's layout has no normalisation and five to ten rectified layers in a row; from random weights it needs thousands of steps before a colour
gets through. Here every residual block starts as the identity, the strided convolutions as space-to-depth, and the 16 channels of the latent
as the lowest cosine components of the three colours of an 8 x 8 block. The decoder starts by giving every block its mean colour.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

_COLOURS: Final = 3
_COMPONENTS: Final = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
"""Cosine components of a block of 4 x 4 half-size pixels, lowest first; the first five of each colour and one more make 16."""
_SPREAD: Final = 0.33
"""Standard deviation of a block's mean colour, of 0..1: what makes a channel's variance about 1."""
_SMALL: Final = 0.3
"""Share of the usual random scale for the channels that have no task at the start."""


@torch.no_grad()
def initialise(autoencoder: Any) -> None:
    """Overwrite the weights of an ``AutoencoderTiny`` with 16 latent channels."""
    for layers in (autoencoder.encoder.layers, autoencoder.decoder.layers):
        for layer in layers:
            _begin_plainly(layer)
    _encoder(autoencoder.encoder.layers)
    _decoder(autoencoder.decoder.layers)


def _begin_plainly(layer: nn.Module) -> None:
    """Convolutions small and random, residual blocks the identity."""
    if isinstance(layer, nn.Conv2d):
        _random(layer, _SMALL)
    elif hasattr(layer, "conv"):
        block: Any = layer.conv
        first, _, second, _, last = block
        _random(first, 1.0)
        _random(second, 1.0)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def _random(conv: nn.Conv2d, share: float) -> None:
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    conv.weight *= share
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _encoder(layers: nn.Sequential) -> None:
    first, *strided, last = _convolutions(layers)
    first.weight[:_COLOURS] = 0
    for colour in range(_COLOURS):
        first.weight[colour, colour, 1, 1] = 1
    _space_to_depth(strided[0], _COLOURS)
    _space_to_depth(strided[1], 4 * _COLOURS)
    strided[2].weight[: 16 * _COLOURS] = 0
    for channel in range(16 * _COLOURS):
        strided[2].weight[channel, channel, 1:, 1:] = 0.25  # the mean of 2 x 2
    last.weight.zero_()
    for channel, (colour, component) in enumerate(_channels()):
        for index, weight in enumerate(_cosines(component)):
            last.weight[channel, _place(colour, index), 1, 1] = weight / _SPREAD
        last.bias[channel] = -0.5 / _SPREAD if component == (0, 0) else 0.0


def _space_to_depth(conv: nn.Conv2d, channels: int) -> None:
    """``[channels]`` -> ``[4 channels]`` at half the size: channel c of the pixel (2 i + p, 2 j + q) becomes channel 4 c + 2 p + q."""
    conv.weight[: 4 * channels] = 0
    for channel in range(channels):
        for p in range(2):
            for q in range(2):
                conv.weight[4 * channel + 2 * p + q, channel, 1 + p, 1 + q] = 1


def _place(colour: int, index: int) -> int:
    """Where the pixel ``index`` (row by row) of a 4 x 4 block is after two times space-to-depth."""
    row, column = divmod(index, 4)
    inner = 2 * (row % 2) + column % 2
    outer = 2 * (row // 2) + column // 2
    return 4 * (4 * colour + inner) + outer


def _channels() -> list[tuple[int, tuple[int, int]]]:
    listed = [(colour, component) for component in _COMPONENTS for colour in range(_COLOURS)]
    return listed[:16]


def _cosines(component: tuple[int, int]) -> list[float]:
    """One component's weights over 4 x 4 pixels, so that mean 0 components are as large as the mean."""
    rows, columns = ([math.cos(math.pi * order * (2 * k + 1) / 8) for k in range(4)] for order in component)
    scale = (1 if component == (0, 0) else 3) / 16
    return [scale * row * column for row in rows for column in columns]


def _convolutions(layers: nn.Sequential) -> list[Any]:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _decoder(layers: nn.Sequential) -> None:
    first, *between, last = _convolutions(layers)
    first.weight[:32] = 0
    for channel in range(16):  # a value and its negative: what is rectified keeps both signs
        first.weight[channel, channel, 1, 1] = 1
        first.weight[16 + channel, channel, 1, 1] = -1
    for conv in between:
        conv.weight[:32] = 0
        for channel in range(32):
            conv.weight[channel, channel, 1, 1] = 1
    last.weight *= 0.1
    last.weight[:, :32] = 0
    for colour in range(_COLOURS):
        last.weight[colour, colour, 1, 1] = _SPREAD
        last.weight[colour, 16 + colour, 1, 1] = -_SPREAD
        last.bias[colour] = 0.5


def block_means(pictures: Tensor) -> Tensor:
    """What the decoder gives at the start, but for what its idle channels add: the mean colour of every 8 x 8 block."""
    return nn.functional.interpolate(nn.functional.avg_pool2d(pictures, 8), scale_factor=8)
