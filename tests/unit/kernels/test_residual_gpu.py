"""The Triton kernels of residual codecs and of the hash of their bases on a GPU: the same bits as the reference on the CPU, and offsets beyond 31 bits."""

from __future__ import annotations

import pytest
import torch
from tutti.kernels import base_hash, int8_base, residual_levels, residual_rows
from tutti.kernels.choice import has_triton

from tests.support.bits import same_bits_or_nan
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.walks import PAIRS, walk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not torch.cuda.is_available() or not has_triton(),
        reason="needs an NVIDIA GPU with triton: `pytest tests/unit/kernels -m gpu` on a machine with one",
    ),
]
LARGE_ROWS, LARGE_CHANNELS = 700_000, 3072
"""More than 2**31 elements."""
NEEDED_BYTES = 14 * 1024**3
"""x and base with a byte or two an element, and what is compared."""
LARGE_WORDS = 2**31 + 4097
"""Of 64 bits."""
NEEDED_BYTES_OF_WORDS = 17 * 1024**3


def is_large_enough(needed_bytes: int = NEEDED_BYTES) -> bool:
    return torch.cuda.is_available() and torch.cuda.mem_get_info()[0] >= needed_bytes


@pytest.mark.parametrize("form", residual_levels.FORMS)
@pytest.mark.parametrize(("x_dtype", "base_dtype"), PAIRS)
def test_levels_on_the_gpu_and_on_the_cpu_hold_the_same_base(form: str, x_dtype: str, base_dtype: str) -> None:
    """One end here, one there: an exchange between unlike devices."""
    first, *trajectory = walk(129, 700, steps=8, dtype=DTYPES[x_dtype])
    here = first.to(DTYPES[base_dtype]).contiguous()
    there = here.cuda()
    u, v = residual_levels.scales(trajectory[0], here)
    for x in trajectory:
        codes = torch.empty(129, residual_levels.code_bytes(form, 700), dtype=torch.uint8, device="cuda")
        next_u, next_v = residual_levels.encode(x.cuda(), there, u.cuda(), v.cuda(), form, codes)
        residual_levels.decode(codes.cpu(), u, v, here, form, next_u=next_u.cpu())
        assert same_bits_or_nan(there.cpu(), here)
        u, v = next_u.cpu(), next_v.cpu()
    expected = residual_levels.scales(x, here)
    found = residual_levels.scales(x.cuda(), there)
    for a, b in zip(found, expected, strict=True):
        # Sums in another order: at most the next number of fp16.
        assert torch.allclose(a.cpu().float(), b.float(), rtol=2.0**-10, atol=2.0**-24)


@pytest.mark.parametrize("form", residual_rows.LIMITS)
@pytest.mark.parametrize(("x_dtype", "base_dtype"), PAIRS)
def test_rows_on_the_gpu_and_on_the_cpu_hold_the_same_base(form: str, x_dtype: str, base_dtype: str) -> None:
    if why := residual_rows.why_not_on(form, torch.cuda.get_device_capability()):
        pytest.skip(why)
    here = torch.empty(129, 3, 65, dtype=DTYPES[base_dtype])
    there = here.cuda()
    for number, x in enumerate(walk(129, 3, 65, steps=8, dtype=DTYPES[x_dtype])):
        payload = torch.empty(129, 3, residual_rows.row_bytes(form, 65), dtype=torch.uint8, device="cuda")
        before = here.clone()
        residual_rows.encode(x.cuda(), there, form, payload, is_key=number == 0)
        residual_rows.decode(payload.cpu(), here, form, is_key=number == 0)
        assert same_bits_or_nan(there.cpu(), here)
        again = torch.empty_like(payload, device="cpu")
        residual_rows.encode(x, before, form, again, is_key=number == 0)
        assert torch.equal(again, payload.cpu())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_base_in_8_bits_is_the_same_on_the_gpu_and_on_the_cpu(dtype: torch.dtype) -> None:
    (x,) = walk(129, 195, steps=1, dtype=dtype)
    found = []
    for device in ("cpu", "cuda"):
        buffer = x.contiguous().to(device)
        base, scales = torch.empty_like(buffer, dtype=torch.int8), torch.empty(129, 3, device=device)
        int8_base.requantise(buffer, base, scales)
        int8_base.dequantise(base, scales, buffer)
        found.append([base.cpu(), scales.cpu(), buffer.cpu()])
    assert all(same_bits_or_nan(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("size", [(1088, 3072), (1, 5), (33, 301), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.int8], ids=str)
def test_a_hash_is_the_same_on_the_gpu_and_on_the_cpu(dtype: torch.dtype, size: tuple[int, int]) -> None:
    (x,) = walk(*size, steps=1)
    here = [x.to(dtype).contiguous(), torch.randn(size[0]).half(), torch.randn(size[1] + 1).half()]
    there = [tensor.cuda() for tensor in here]
    expected = int(base_hash.hash_of(here))
    try:
        torch.cuda.set_sync_debug_mode("error")  # nobody waits
        found = [base_hash.hash_of(there) for _ in range(3)]
        at_odd_bytes = base_hash.hash_of([*there[:2], there[2][1:]])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all((one.dtype, one.shape, one.device) == (torch.int64, (), there[0].device) for one in found)
    assert [int(one) for one in found] == 3 * [expected]
    assert int(at_odd_bytes) == int(base_hash.hash_of([*here[:2], here[2][1:]]))
    there[2].view(torch.int16)[-1] ^= 1
    assert int(base_hash.hash_of(there)) != expected, "negative control"


@pytest.mark.skipif(
    not is_large_enough(NEEDED_BYTES_OF_WORDS),
    reason=f"needs an NVIDIA GPU with {NEEDED_BYTES_OF_WORDS >> 30} GiB free",
)
def test_the_hash_is_right_beyond_31_bits() -> None:
    data = torch.zeros(LARGE_WORDS, dtype=torch.int64, device="cuda")
    empty = int(base_hash.hash_of([data]))
    data[-1] = 7 - 3 * 2**32
    weight = 4 * (LARGE_WORDS - 1) + 1
    assert (int(base_hash.hash_of([data])) - empty) % 2**64 == (7 * weight - 3 * (weight + 2)) % 2**64


@pytest.mark.skipif(not is_large_enough(), reason=f"needs an NVIDIA GPU with {NEEDED_BYTES >> 30} GiB free")
@pytest.mark.parametrize("form", [*residual_levels.FORMS, "int4"])
def test_offsets_beyond_31_bits_are_right(form: str) -> None:
    x = torch.zeros(LARGE_ROWS, LARGE_CHANNELS, dtype=torch.float16, device="cuda")
    x[-5:] = torch.randn(5, LARGE_CHANNELS, device="cuda")
    base = torch.zeros_like(x)
    if form == "int4":
        heads, payload_bytes = (LARGE_ROWS, 24, 128), residual_rows.row_bytes(form, 128)
        payload = torch.empty(LARGE_ROWS, 24, payload_bytes, dtype=torch.uint8, device="cuda")
        residual_rows.encode(x.view(heads), base.view(heads), form, payload)
    else:
        codes = torch.empty(
            LARGE_ROWS, residual_levels.code_bytes(form, LARGE_CHANNELS), dtype=torch.uint8, device="cuda"
        )
        u = torch.zeros(LARGE_ROWS, dtype=torch.float16, device="cuda")
        u[-5:] = 1
        v = torch.ones(LARGE_CHANNELS, dtype=torch.float16, device="cuda")
        residual_levels.encode(x, base, u, v, form, codes)
    assert (x[-5:] - base[-5:]).norm() < 0.7 * x[-5:].norm()
    assert not base[:-5].any()
