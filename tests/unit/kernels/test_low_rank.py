"""Low-rank residuals: the payload to the byte, the factors, the sum that both ends compute, and what becomes of bad numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tutti.kernels.choice import runs_triton
from tutti.kernels.low_rank import add_decoded, factorise, is_broken, pack, payload_bytes
from tutti.kernels.low_rank.reference import orthonormalise, start, unpack

from tests.support.bits import same_bits
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.residuals import SHAPES, basis, generator, relative_error

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def sent(x: Tensor, base: Tensor, rank: int = 32) -> Tensor:
    u, v, _ = factorise(x, base, rank=rank)
    return pack(u, v)


# --- the payload ------------------------------------------------------------------------------------------------------


def test_a_payload_to_the_byte() -> None:
    payload = pack(torch.tensor([[0.0], [15.0], [3.0]]), torch.tensor([[15.0], [0.0]]))
    assert bytes(payload.tolist()).hex(" ") == "00 3c 00 00 00 3c 00 00 f0 03 0f"
    base = torch.ones(3, 2)
    add_decoded(payload, base)
    assert base.tolist() == [[1, 1], [226, 1], [46, 1]]


def test_the_bytes_for_flux_are_a_hundredth() -> None:
    assert payload_bytes(1088, 3072) == 66_816
    assert 1088 * 3072 * 2 / payload_bytes(1088, 3072) == pytest.approx(100.05, abs=0.005)
    assert pack(torch.zeros(1088, 32), torch.zeros(3072, 32)).numel() == 66_816


@ALL_DTYPES
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_a_payload_of_its_size_that_makes_the_residual_smaller(name: str, dtype: torch.dtype) -> None:
    N, C, rank = SHAPES[name]
    x, base = draw(N, C, seed=1).to(dtype), draw(N, C, seed=2).to(dtype)
    u, v, q = factorise(x, base, rank=rank)
    R = min(N, C, rank)
    assert (u.shape, v.shape, q.shape) == ((N, R), (C, R), (C, R))
    payload = pack(u, v)
    assert payload.dtype == torch.uint8
    assert payload.numel() == payload_bytes(N, C, rank) == R * (8 + (N + 1) // 2 + (C + 1) // 2)
    before = base.clone()
    add_decoded(payload, base)
    if R:
        assert relative_error(base, x) < relative_error(before, x)
        if min(N, C) <= rank:
            # Nothing is left out, so only four bits are between them: 1 / 30 of a column's span in each factor, for all but the smallest of samples.
            assert relative_error(base, x) < 0.2


def test_no_factor_is_off_by_more_than_half_a_step_of_its_own_column() -> None:
    """With columns that differ by 1000, and a control that has one scale for all of them."""
    u, v = draw(33, 5, seed=1) * 10.0 ** torch.arange(-1, 4), draw(48, 5, seed=2)
    decoded_u, decoded_v = unpack(pack(u, v), 33, 48)
    balance = (v.abs().amax(0) / u.abs().amax(0)).sqrt()
    for decoded, factor in ((decoded_u.mT, u * balance), (decoded_v.mT, v / balance)):
        span = factor.amax(0).clamp_min(0) - factor.amin(0).clamp_max(0)
        # A scale of seven bits is up to 2**-6 too large, and float16 rounds the number itself, which is no greater than the span.
        assert ((decoded - factor).abs() <= (1 / 30 * (1 + 2.0**-6) + 2.0**-11) * span).all()
    one_column = u.flatten()[:, None]
    as_one = unpack(pack(one_column, one_column), 165, 165)[0].view(33, 5)
    assert ((as_one - u).abs() > u.abs().amax(0) / 2).any(), "negative control"


def test_beside_a_great_number_small_ones_are_not_off_by_more_than_themselves() -> None:
    """Activations of transformers have such channels."""
    column = draw(3072, 1, seed=1)
    column[7] = 100.0
    decoded = unpack(pack(column, column), 3072, 3072)[0].mT
    # float16's rounding of what was decoded.
    assert ((decoded - column).abs() <= column.abs() * (1 + 2.0**-11)).all()
    # Negative control: levels from the minimum on, as most would have them.
    step = (column.amax() - column.amin()) / 15
    from_minimum = ((column - column.amin()) / step).round() * step + column.amin()
    assert relative_error(from_minimum, column) > 1, "worse than to send nothing"
    assert relative_error(decoded, column) < 0.6


def test_rows_and_columns_of_zeros_stay_as_they_were_to_the_bit() -> None:
    u, v, base = draw(9, 3, seed=1), draw(12, 3, seed=2), draw(9, 12, seed=3)
    u[4], v[7], before = 0, 0, base.clone()
    add_decoded(pack(u, v), base)
    is_same = base == before
    assert is_same[4].all()
    assert is_same[:, 7].all()
    assert is_same.float().mean() < 0.5, "negative control: all others change"


# --- the factors ------------------------------------------------------------------------------------------------------


def test_a_residual_of_the_rank_that_is_sent_comes_through_but_for_the_four_bits() -> None:
    N, C, R = 61, 97, 6
    base, low = draw(N, C, seed=1), draw(N, R, seed=2) @ draw(R, C, seed=3)
    u, v, _ = factorise(base + low, base, rank=R)
    assert relative_error(u @ v.mT, low) <= 1e-5, "float32 roundings of a residual that is a difference"
    add_decoded(pack(u, v), base)
    got = base - draw(N, C, seed=1)
    # A step is span / 15, its error's variance step**2 / 12. A Gaussian column of 61 spans 4.7 deviations, of 97 five: 0.8 % and 0.9 % of the energy.
    assert relative_error(got, low) <= 1.3 * 0.017**0.5
    more = low + draw(N, R, seed=4) @ draw(R, C, seed=5)
    u, v, _ = factorise(more, torch.zeros(N, C), rank=R)
    assert relative_error(u @ v.mT, more) > 0.3, "negative control: twice the rank"


def test_the_first_factor_is_near_the_best_there_is() -> None:
    x = draw(120, 96, seed=1) @ basis(96, seed=2)
    best = torch.linalg.svdvals(x)[16:].norm() / x.norm()
    u, v, _ = factorise(x, torch.zeros_like(x), rank=16)
    assert relative_error(u @ v.mT, x) <= 1.1 * best, "two iterations: a tenth is what others measure, too"
    once, v, _ = factorise(x, torch.zeros_like(x), start(120, 96, 16, x.device))
    assert relative_error(once @ v.mT, x) > 1.15 * best, "negative control: one iteration without a warm start"


def test_columns_become_orthonormal_even_where_they_nearly_depend_on_one_another() -> None:
    directions = torch.linalg.qr(draw(200, 8, seed=1))[0]
    mixing = torch.linalg.qr(draw(8, 8, seed=2))[0]
    a = directions * 10.0 ** -torch.arange(0.0, 4.1, 4 / 7)[:8] @ mixing
    assert torch.linalg.cond(a) > 5e3
    u = orthonormalise(a)
    assert (u.mT @ u - torch.eye(8)).abs().max() <= 1e-5
    # Negative control: with the Gram matrix in float32, whose roundings are as large as its smallest part, 1e-8.
    lower = torch.linalg.cholesky_ex(a.mT @ a).L
    alone = torch.linalg.solve_triangular(lower.mT, a, upper=True, left=False)
    assert not (alone.mT @ alone - torch.eye(8)).abs().max() <= 1e-2


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_residual_of_less_rank_gives_finite_factors_no_longer_than_one(rank: int) -> None:
    low = draw(31, rank, seed=1) @ draw(rank, 43, seed=2)
    u, v, q = factorise(low, torch.zeros(31, 43), rank=8)
    assert all(factor.isfinite().all() for factor in (u, v, q))
    assert torch.linalg.svdvals(u).max() <= 1 + 1e-5
    assert (u @ v.mT - low).norm() <= 1e-5 * low.norm()
    again, v, _ = factorise(low, torch.zeros(31, 43), q)
    assert (again @ v.mT - low).norm() <= 1e-5 * low.norm()


@ALL_DTYPES
def test_a_residual_of_zeros_adds_nothing_and_does_not_end_the_search(dtype: torch.dtype) -> None:
    x = draw(9, 12, seed=1).to(dtype)
    base = x.clone()
    u, v, q = factorise(x, base, rank=3)
    assert not u.any()
    assert not v.any()
    add_decoded(pack(u, v), base)
    assert same_bits(base, x)
    warm = draw(12, 3, seed=2)
    assert torch.equal(factorise(x, base, warm)[2], warm), "nothing found: the start stays"
    assert torch.equal(q, start(9, 12, 3, x.device))


def test_the_start_is_fixed_and_touches_no_generator() -> None:
    before = torch.random.get_rng_state()
    first, second = (start(40, 300, 32, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    # As good as random: a Gaussian matrix of this shape has (1 + sqrt(32 / 300)) / (1 - sqrt(32 / 300)) = 2.
    assert torch.linalg.cond(first) < 3


# --- the sum ----------------------------------------------------------------------------------------------------------


def test_the_sum_has_the_same_bits_with_fused_multiply_adds_and_under_any_number_of_threads() -> None:
    N, C, R = 150, 700, 32
    # Components of very different size: sums of similar ones are exact, and would have these bits in any order.
    payload = pack(draw(N, R, seed=1) * 1.7 ** -torch.arange(R), 20 * draw(C, R, seed=2))
    u, v = unpack(payload, N, C)
    fused, unfused = summed(u, v)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            base = torch.zeros(N, C)
            add_decoded(payload, base)
            assert same_bits(base, fused)
            assert same_bits(base, unfused)
    finally:
        torch.set_num_threads(threads)
    rows = torch.zeros(N, C)
    for row, factor in enumerate(u.mT):
        rows[row] = summed(factor[:, None], v)[0]
    assert same_bits(rows, fused), "nor does it depend on what else is summed"
    assert not same_bits(summed(u.flip(0), v.flip(0))[0], fused), (
        "negative control: from the last component to the first"
    )


def test_factors_longer_than_float16_would_make_the_sum_depend_on_the_device() -> None:
    """Negative control: why what is decoded is rounded once more."""
    fused, unfused = summed(draw(32, 150, seed=1), draw(32, 700, seed=2))
    assert not same_bits(fused, unfused)


def summed(u_RN: Tensor, v_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Over k = 0, 1, ...: with one rounding for product and sum, and with one for each."""
    fused = torch.zeros(u_RN.shape[1], v_RC.shape[1])
    unfused = fused.clone()
    for u, v in zip(u_RN, v_RC, strict=True):
        # float64 holds the product of two float32 exactly, and the sum so well that float32's rounding is all that counts here.
        fused = (fused.double() + u.double()[:, None] * v.double()).float()
        unfused = unfused + u[:, None] * v
    return fused, unfused


@ALL_DTYPES
def test_the_sum_is_rounded_once_to_the_dtype_of_the_base(dtype: torch.dtype) -> None:
    payload, base = pack(draw(7, 3, seed=1), draw(9, 3, seed=2)), draw(7, 9, seed=3).to(dtype)
    expected = torch.zeros(7, 9)
    add_decoded(payload, expected)
    expected = (base.float() + expected).to(dtype)
    add_decoded(payload, base)
    assert same_bits(base, expected)


def test_a_payload_may_begin_at_an_odd_byte() -> None:
    payload = pack(draw(7, 3, seed=1), draw(9, 3, seed=2))
    aligned, shifted = torch.zeros(7, 9), torch.zeros(7, 9)
    add_decoded(payload, aligned)
    slice_of_buffer = torch.cat([payload[:1], payload])[1:]
    add_decoded(slice_of_buffer, shifted)
    assert same_bits(aligned, shifted)
    assert not is_broken(slice_of_buffer)


# --- bad numbers ------------------------------------------------------------------------------------------------------


@ALL_DTYPES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_number_marks_the_payload_and_makes_the_whole_base_nan(bad: float, dtype: torch.dtype) -> None:
    x, base = draw(9, 12, seed=1).to(dtype), draw(9, 12, seed=2).to(dtype)
    _, _, warm = factorise(x, base, rank=3)
    assert not is_broken(sent(x, base, 3))
    x[4, 5] = bad
    u, v, q = factorise(x, base, warm)
    payload = pack(u, v)
    assert is_broken(payload).shape == ()
    assert is_broken(payload)
    add_decoded(payload, base)
    assert base.isnan().all()
    assert torch.equal(q, warm), "the next search begins where this one did"
    assert is_broken(sent(draw(9, 12, seed=1).to(dtype), base, 3)), "and only a whole tensor mends the base"


def test_numbers_too_large_mark_the_payload() -> None:
    x = torch.full((6, 8), 1e30)
    assert is_broken(sent(x, torch.zeros(6, 8), 2))
    greatest = torch.full((6, 8), 65504.0).half()
    assert not is_broken(sent(greatest, torch.zeros_like(greatest), 2)), "control: whatever float16 can hold"
    assert is_broken(pack(torch.tensor([[1.0], [torch.inf]]), torch.ones(2, 1)))
    assert is_broken(pack(torch.ones(2, 1), torch.tensor([[1.0], [torch.nan]])))


def test_a_base_that_overflows_shows_in_the_next_residual() -> None:
    base = torch.full((4, 4), 65504.0).half()
    add_decoded(pack(torch.full((4, 1), 100.0), torch.full((4, 1), 100.0)), base)
    assert base.isinf().all()
    assert is_broken(sent(torch.ones(4, 4).half(), base))


# --- what is refused, and what is not there ---------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    x, payload = torch.zeros(6, 8), pack(torch.zeros(6, 2), torch.zeros(8, 2))
    with pytest.raises(ValueError, match=r"\[6, 8\] and \[8, 6\]"):
        factorise(x, x.mT)
    with pytest.raises(ValueError, match="rank of 1 or more: 0"):
        factorise(x, x, rank=0)
    for warm in (torch.zeros(6, 2), torch.zeros(8, 7)):
        with pytest.raises(ValueError, match="does not fit x"):
            factorise(x, x, warm)
    with pytest.raises(ValueError, match="no more than N and C"):
        pack(torch.zeros(6, 7), torch.zeros(8, 7))
    with pytest.raises(ValueError, match="31 bytes are none for a base of 6 x 8, which takes 15"):
        add_decoded(torch.zeros(31, dtype=torch.uint8), x)
    for short in (0, 7 * 15):
        with pytest.raises(ValueError, match=f"{short} bytes are none"):
            add_decoded(torch.zeros(short, dtype=torch.uint8), x)
    for base in (x.mT, x.double(), x[0]):
        with pytest.raises(ValueError, match="contiguous"):
            add_decoded(payload, base)
    for wrong in (payload.float(), payload[None], payload.repeat_interleave(2)[::2]):
        with pytest.raises(ValueError, match="flat bytes"):
            add_decoded(wrong, x)


def test_tensors_that_are_not_there_take_the_reference_and_get_the_right_shapes() -> None:
    with FakeTensorMode():
        for device in ("cpu", "meta"):
            x, base = (torch.empty(10, 14, dtype=torch.bfloat16, device=device) for _ in range(2))
            assert not runs_triton(x)
            u, v, q = factorise(x, base, rank=4)
            assert (u.shape, v.shape, q.shape) == ((10, 4), (14, 4), (14, 4))
            payload = pack(*factorise(x, base, q)[:2])
            assert payload.shape == (payload_bytes(10, 14, 4),)
            add_decoded(payload, base)
            assert is_broken(payload).shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: `pytest tests/unit/kernels -m gpu`")
@pytest.mark.gpu
@ALL_DTYPES
def test_a_gpu_adds_the_same_bits(dtype: torch.dtype) -> None:
    for N, C, rank in (*SHAPES.values(), (1088, 3072, 32)):
        payload, base = sent(draw(N, C, seed=1), torch.zeros(N, C), rank), draw(N, C, seed=2).to(dtype)
        there = base.cuda()
        add_decoded(payload.cuda(), there)
        add_decoded(payload, base)
        assert same_bits(there.cpu(), base), (N, C, rank)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 8 * 1024**3,
    reason="needs an NVIDIA GPU with 8 GiB free: a base of 2**31 + 2**20 bf16 numbers is 4 GiB",
)
@pytest.mark.gpu
def test_offsets_beyond_31_bits_are_right() -> None:
    """`pytest tests/unit/kernels -m gpu` on a machine with such a GPU."""
    N, C = 2**20 + 2**9, 2**11
    u, v = draw(N, 1, seed=1).cuda(), draw(C, 1, seed=2).cuda()
    base, payload = torch.zeros(N, C, dtype=torch.bfloat16, device="cuda"), pack(u, v)
    add_decoded(payload, base)
    u_RN, v_RC = unpack(payload, N, C)
    assert torch.equal(base[-5:], (u_RN[0, -5:, None] * v_RC[0]).bfloat16())
