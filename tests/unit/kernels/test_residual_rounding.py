"""What makes both ends' sums the same bits: products that float32 holds exactly, and rounding in one defined way."""

from __future__ import annotations

import pytest
import torch
from tutti.kernels.explicit_rounding.reference import half, short_scale
from tutti.kernels.row_quantise.reference import PAYLOAD


def test_products_are_rounded_to_fp16_to_the_nearest_and_saturate() -> None:
    values = torch.tensor([1.6, -1.6, 1e5, -1e30, 65519.0, 2.0**-24, 2.0**-26, 1 + 2.0**-11, 1 + 3 * 2.0**-11])
    expected = [1.599609375, -1.599609375, 65504, -65504, 65504, 2.0**-24, 0, 1, 1 + 2.0**-9]
    assert half(values).tolist() == expected
    assert half(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize(("limit", "payloads"), [(127.0, "int8"), (7.0, "int4"), (448.0, "fp8")])
def test_a_payload_times_its_scale_is_exact(limit: float, payloads: str) -> None:
    """In float64 the product is exact for sure: so a fused multiply-add has nothing to round otherwise."""
    if payloads == "fp8":
        numbers = torch.arange(256, dtype=torch.uint8).view(PAYLOAD["fp8"]).double()
        numbers = numbers[numbers.isfinite()]
    else:
        numbers = torch.arange(-limit, limit + 1).double()
    generator = torch.Generator().manual_seed(0)
    greatest = 10.0 ** torch.empty(5000).uniform_(-35, 38, generator=generator)
    scale = short_scale(torch.cat((greatest, torch.tensor([0.0, 3.4e38]))), limit)
    products = scale.double()[:, None] * numbers
    assert torch.equal(products.float().double(), products)
    uncut = (greatest / limit).double()[:, None] * numbers
    assert not torch.equal(uncut.float().double(), uncut), "negative control: a scale of 24 bits needs rounding"


@pytest.mark.parametrize("limit", [127.0, 7.0])
def test_the_cut_moves_no_maximum_beyond_the_limit(limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    greatest = 10.0 ** torch.empty(5000).uniform_(-30, 38, generator=generator)
    scale = short_scale(greatest, limit)
    for numbers in (greatest / scale, greatest * scale.reciprocal()):
        assert (numbers.round() == limit).all()


def test_scales_of_nothing_are_normal_and_of_something_broken_nan() -> None:
    scale = short_scale(torch.tensor([0.0, torch.inf, torch.nan]), 448.0)
    assert scale[0] >= torch.finfo(torch.float32).tiny
    assert scale[1:].isnan().all()
