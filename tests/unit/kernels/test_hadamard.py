"""The rotation: what it keeps, what it spreads, and that one- and two-bit residuals are better for it exactly where they have spikes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tutti.kernels.hadamard import block_of, rotate, rotate_back

from tests.unit.kernels.heads import DTYPES, heads
from tests.unit.kernels.residuals import generator, relative_error

HEAD_DIMS = {128: 128, 96: 32, 80: 16, 64: 64, 256: 256, 72: 8, 6: 2, 5: 1, 1: 1}
"""Head_dim -> block."""
LAST_PLACE = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
FLIPS = pytest.mark.parametrize("flips", [False, True], ids=["plain", "flips"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def kurtosis(x: Tensor) -> float:
    """Of Gaussian numbers 3."""
    x = x.double()
    return float(x.pow(4).mean() / x.square().mean().square())


# --- what it is -------------------------------------------------------------------------------------------------------


def test_small_rotations_by_hand() -> None:
    assert rotate(torch.tensor([4.0, 0, 0, 0])).tolist() == [2, 2, 2, 2]
    assert rotate(torch.tensor([1.0, 2, 3, 4])).tolist() == [5, -1, -2, 0]
    assert rotate(torch.ones(4), flips=True).tolist() == [1, 1, 1, -1]
    assert rotate_back(torch.tensor([2.0, 0, 0, 0]), flips=True).tolist() == [1, 1, 1, -1]
    # Three blocks of two.
    assert rotate(torch.tensor([1.0, 0, 0, 1, 2, 2])).tolist() == pytest.approx(
        [x / 2**0.5 for x in (1, 1, 1, -1, 4, 0)]
    )


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_it_is_sylvesters_matrix_in_every_block(head_dim: int) -> None:
    n = HEAD_DIMS[head_dim]
    assert block_of(head_dim) == n
    of_a_block = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / n**0.5
    expected = torch.block_diag(*[of_a_block] * (head_dim // n))
    # One rounding of float32 in the scale: sums of ones are exact.
    assert (rotate(torch.eye(head_dim)) - expected).abs().max() <= 2.0**-23


@FLIPS
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_its_rows_are_orthonormal(head_dim: int, flips: bool) -> None:
    matrix = rotate(torch.eye(head_dim), flips=flips).double()
    assert (matrix @ matrix.mT - torch.eye(head_dim)).abs().max() <= 1e-6
    assert torch.equal(rotate_back(torch.eye(head_dim), flips=flips).double(), matrix.mT)


@FLIPS
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_way_back_gives_what_was_there(head_dim: int, dtype: torch.dtype, flips: bool) -> None:
    x = heads(2, 5, 3, head_dim, dtype)
    kept = x.clone()
    turned = rotate(x, flips=flips)
    back = rotate_back(turned, flips=flips)
    assert torch.equal(x, kept)
    assert turned.is_contiguous()
    assert back.shape == turned.shape == x.shape
    assert back.dtype == turned.dtype == dtype
    # Each way rounds once to the dtype, by half a place of numbers that are no longer than the row; and float32 rounds in each of its rounds.
    length = x.double().norm(dim=-1)
    assert ((back.double() - x.double()).norm(dim=-1) <= (2 * LAST_PLACE[dtype] + 2e-6) * length).all()
    if head_dim > 3:
        wrong = rotate_back(turned, flips=not flips)
        assert relative_error(wrong, x) > 0.1, "negative control: the other signs"


def test_flips_are_no_row_of_the_rotation_so_an_even_row_is_spread() -> None:
    even = torch.ones(1, 128)
    assert rotate(even)[0, 0] == pytest.approx(128**0.5)
    assert float(rotate(even, flips=True).abs().max()) <= 2**0.5 + 1e-6, (
        "the bound of Rudin and Shapiro: sqrt(2 n) / sqrt(n)"
    )


@FLIPS
def test_scores_of_queries_and_keys_rotated_alike_are_the_same(flips: bool) -> None:
    q, k = draw(2, 4, 33, 96, seed=1), draw(2, 4, 21, 96, seed=2)
    scores = q @ k.mT
    turned = rotate(q, flips=flips) @ rotate(k, flips=flips).mT
    # float32 sums of 96 products.
    assert relative_error(turned, scores) <= 1e-6
    assert relative_error(rotate(q, flips=flips) @ k.mT, scores) > 0.5, "negative control: only one side rotated"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_number_shows_in_its_whole_block_and_nowhere_else(bad: float) -> None:
    x = draw(2, 96)
    x[1, 40] = bad
    is_bad = ~rotate(x).isfinite()
    assert is_bad[1, 32:64].all()
    assert is_bad.sum() == 32


def test_what_has_no_numbers_is_refused_or_stays() -> None:
    with pytest.raises(ValueError, match="head_dim 0"):
        rotate(torch.empty(3, 0))
    assert rotate(torch.empty(0, 96)).shape == (0, 96)


def test_tensors_that_are_not_there_get_the_right_shapes() -> None:
    with FakeTensorMode():
        for device in ("cpu", "meta"):
            x = torch.empty(2, 5, 6, 96, dtype=torch.bfloat16, device=device)
            assert rotate(x, flips=True).shape == rotate_back(x).shape == x.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: `pytest tests/unit/kernels -m gpu`")
@pytest.mark.gpu
@FLIPS
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_gpu_rotates_to_the_same_bits(dtype: torch.dtype, flips: bool) -> None:
    for head_dim in HEAD_DIMS:
        x = heads(2, 5, 3, head_dim, dtype)
        for way in (rotate, rotate_back):
            assert torch.equal(way(x.cuda(), flips=flips).cpu(), way(x, flips=flips)), head_dim


# --- what it is for ---------------------------------------------------------------------------------------------------


def spiky(share: float = 0.01, size: float = 10.0) -> Tensor:
    """``[2048, 128]``: a residual of Gaussian numbers, one in a hundred of which has got a Gaussian number ten times as large on top."""
    at = torch.rand(2048, 128, generator=generator(5)) < share
    return draw(2048, 128, seed=3) + at * size * draw(2048, 128, seed=4)


def distortion(r: Tensor, bits: int) -> float:
    """``|r - decode(encode(r))|**2 / |r|**2`` with a scale per row and channel; two bits as Lloyd and Max have them for Gaussian numbers."""
    size = r.abs()
    scale = size.mean(0) * size.mean(1, keepdim=True) / size.mean()
    level = scale if bits == 1 else torch.where(size > 1.3 * scale, 2.05, 0.57) * scale
    return float((r - torch.where(r >= 0, level, -level)).square().sum() / r.square().sum())


@FLIPS
def test_spikes_are_spread(flips: bool) -> None:
    r = spiky()
    assert kurtosis(r) > 40, "the mixture's own is 3 (0.99 + 0.01 * 101**2) / 2**2 = 77"
    assert kurtosis(rotate(r, flips=flips)) < 6, "sums of 128: Gaussian but for rows that differ in size"
    assert kurtosis(rotate(draw(2048, 128), flips=flips)) == pytest.approx(3, abs=0.05), (
        "control: Gaussian stays Gaussian"
    )


@FLIPS
@pytest.mark.parametrize(("bits", "before", "after"), [(1, 0.615, 0.312), (2, 0.425, 0.121)])
def test_spiky_residuals_lose_half_as_much_or_less(bits: int, before: float, after: float, flips: bool) -> None:
    """The figures of a simulation with such residuals; 5 % for another draw."""
    r = spiky()
    assert distortion(r, bits) == pytest.approx(before, rel=0.05)
    assert distortion(rotate(r, flips=flips), bits) == pytest.approx(after, rel=0.05)


@FLIPS
@pytest.mark.parametrize(("bits", "known"), [(1, 1 - 2 / torch.pi), (2, 0.118)])
def test_gaussian_residuals_lose_what_they_lost(bits: int, known: float, flips: bool) -> None:
    """Negative control, with what is known of such numbers: 1 - 2 / pi, and Lloyd and Max's 0.1175."""
    r = draw(2048, 128)
    assert distortion(r, bits) == pytest.approx(known, rel=0.03)
    assert distortion(rotate(r, flips=flips), bits) == pytest.approx(distortion(r, bits), rel=0.01)
