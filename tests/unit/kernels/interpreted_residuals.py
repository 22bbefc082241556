"""The Triton kernels of residual codecs in Triton's interpreter against their references: what test_residual_interpreted starts, with TRITON_INTERPRET=1.

A process of its own, because Triton decides when a kernel is defined whether it will be interpreted. Prints one JSON object: case -> figures.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor
from tutti.kernels.int8_base import reference as base_reference
from tutti.kernels.int8_base import triton as base_kernel
from tutti.kernels.residual_levels import FORMS, code_bytes
from tutti.kernels.residual_levels import reference as levels
from tutti.kernels.residual_levels import triton as levels_kernel
from tutti.kernels.residual_rows import LIMITS, row_bytes
from tutti.kernels.residual_rows import reference as rows
from tutti.kernels.residual_rows import triton as rows_kernel

from tests.support.bits import same_bits_or_nan
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.walks import HEADS, PAIRS, SIZES, walk

Figures = dict[str, float]
STEPS = 3


def stale(*shape: int) -> Tensor:
    """A buffer with something in it."""
    return torch.full(shape, 0xAA, dtype=torch.uint8)


def scale_error(got: Tensor, expected: Tensor) -> float:
    """Of scales: the greatest difference in units of the last place of fp16; infinite where NaN is not alike."""
    if not torch.equal(got.isnan(), expected.isnan()):
        return torch.inf
    got, expected = got.double().nan_to_num(), expected.double().nan_to_num()
    return float(((got - expected).abs() / (expected.abs() * 2.0**-10).clamp_min(2.0**-24)).max()) if len(got) else 0.0


def in_levels(N: int, C: int, x_dtype: torch.dtype, base_dtype: torch.dtype, form: str) -> Figures:
    """A key frame in the base, then delayed scales; in the last step the second row breaks."""
    found = {"codes": True, "encoded": True, "decoded": True, "broken rows": 0.0}
    errors = [0.0]
    first, *trajectory = walk(N, C, steps=STEPS + 1, dtype=x_dtype)
    base = first.to(base_dtype).contiguous()
    u, v = levels.scales(trajectory[0], base)
    errors += [scale_error(a, b) for a, b in zip(levels_kernel.scales(trajectory[0], base), (u, v), strict=True)]
    for step, x in enumerate(trajectory):
        if step == STEPS - 1 and N > 1:
            x[1, -1] = torch.nan
        before, encoded, decoded = base.clone(), base.clone(), base.clone()
        codes, kernel_codes = stale(N, code_bytes(form, C)), stale(N, code_bytes(form, C))
        next_u, next_v = levels.encode(x, base, u, v, form, codes)
        got = levels_kernel.encode(x, encoded, u, v, form, kernel_codes)
        levels_kernel.decode(codes, u, v, decoded, form, next_u)
        errors += [scale_error(a, b) for a, b in zip(got, (next_u, next_v), strict=True)]
        found["codes"] &= torch.equal(codes, kernel_codes)
        found["encoded"] &= same_bits_or_nan(encoded, base)
        found["decoded"] &= same_bits_or_nan(decoded, base)
        u, v, before_u, before_v = next_u, next_v, u, v
    found["broken rows"] = float(base.isnan().all(1).sum())
    wrong, flipped = before.clone(), before.clone()
    levels_kernel.decode(codes, before_u, before_v * 1.01, wrong, form, next_u)
    levels_kernel.decode(codes ^ 1, before_u, before_v, flipped, form, next_u)
    return {
        **found, "scale error": max(errors), "wrong scale": same_bits_or_nan(wrong, base), "flipped bit": same_bits_or_nan(flipped, base),
    }  # fmt: skip


def every_byte(form: str) -> Figures:
    """Those too that no encoder writes."""
    codes, k = torch.arange(256, dtype=torch.uint8)[:, None], FORMS[form].codes_per_byte
    base, decoded = torch.zeros(256, k), torch.zeros(256, k)
    u, v = torch.ones(256).half(), torch.arange(1, k + 1).half()
    levels.decode(codes, u, v, base, form, u)
    levels_kernel.decode(codes, u, v, decoded, form, u)
    return {"decoded": same_bits_or_nan(decoded, base)}


def at_the_ends(form: str) -> Figures:
    """Zeros, numbers near the ends of float32, scales beyond fp16, and a base that overflows."""
    x = torch.tensor([0.0, 1e-42, 1e-7, 1e5, 3e38])[:, None].repeat(1, 3) * torch.tensor([1.0, -1.0, 0.5])
    base = torch.zeros_like(x).half()
    base[0], base[3] = -0.0, 65000.0
    encoded, decoded = base.clone(), base.clone()
    u, v = torch.tensor([0.0, 1.0, 1e-3, 300.0, 300.0]).half(), torch.tensor([300.0, 1e-4, 6e4]).half()
    codes, kernel_codes = stale(5, code_bytes(form, 3)), stale(5, code_bytes(form, 3))
    expected = levels.encode(x, base, u, v, form, codes)
    got = levels_kernel.encode(x, encoded, u, v, form, kernel_codes)
    levels_kernel.decode(codes, u, v, decoded, form, expected[0])
    return {
        "codes": torch.equal(codes, kernel_codes),
        "encoded": same_bits_or_nan(encoded, base),
        "decoded": same_bits_or_nan(decoded, base),
        "scale error": max(scale_error(a, b) for a, b in zip(got, expected, strict=True)),
    }


def in_rows(N: int, H: int, D: int, x_dtype: torch.dtype, base_dtype: torch.dtype, form: str) -> Figures:
    """A key frame into a base of NaN, then residuals; in the last step one head row breaks."""
    found: Figures = {"payload": 0.0, "encoded": True, "decoded": True, "broken rows": 0.0}
    base = torch.full((N, H, D), torch.nan, dtype=base_dtype)
    for step, x in enumerate(walk(N, H, D, steps=STEPS, dtype=x_dtype)):
        if step == STEPS - 1 and N > 1:
            x[1, 0, -1] = -torch.inf
        before, encoded, decoded, is_key = base.clone(), base.clone(), base.clone(), step == 0
        payload, kernel_payload = stale(N, H, row_bytes(form, D)), stale(N, H, row_bytes(form, D))
        rows.encode(x, base, form, payload, is_key)
        rows_kernel.encode(x, encoded, form, kernel_payload, is_key)
        # The interpreter's cast to e4m3 rounds otherwise; the base must be what its own payload says all the same.
        expected = before.clone()
        rows.decode(kernel_payload, expected, form, is_key)
        rows_kernel.decode(payload, decoded, form, is_key)
        differs = (payload != kernel_payload).float().mean() if N else 0.0
        found["payload"] = max(found["payload"], float(differs))
        found["encoded"] = found["encoded"] and same_bits_or_nan(encoded, expected)
        found["decoded"] = found["decoded"] and same_bits_or_nan(decoded, base)
    found["broken rows"] = float(base.isnan().all(-1).sum())
    flipped = before.clone()
    rows_kernel.decode(payload ^ 1, flipped, form, False)
    return {**found, "flipped bit": same_bits_or_nan(flipped, base)}


def in_int8(N: int, C: int, groups: int, dtype: torch.dtype) -> Figures:
    (x,) = walk(N, C, steps=1, dtype=dtype)
    x = x.contiguous()
    if N > 1:
        x[1, 0] = torch.inf
    base, scales, buffer = torch.empty(N, C, dtype=torch.int8), torch.empty(N, groups), torch.empty_like(x)
    kernel_base, kernel_scales, kernel_buffer = torch.empty_like(base), torch.empty_like(scales), torch.empty_like(x)
    base_reference.requantise(x, base, scales)
    base_reference.dequantise(base, scales, buffer)
    base_kernel.requantise(x, kernel_base, kernel_scales)
    base_kernel.dequantise(base, scales, kernel_buffer)
    return {
        "base": torch.equal(base, kernel_base),
        "scales": same_bits_or_nan(scales, kernel_scales),
        "buffer": same_bits_or_nan(buffer, kernel_buffer),
        "broken": float(buffer.isnan().sum()),
    }


def main() -> None:
    found: dict[str, Figures] = {}
    for form in FORMS:
        found[f"levels {form} every byte"] = every_byte(form)
        found[f"levels {form} extremes"] = at_the_ends(form)
        for N, C in SIZES:
            found[f"levels {form} {N}x{C}"] = in_levels(N, C, torch.bfloat16, torch.float16, form)
        for x, base in PAIRS:
            found[f"levels {form} {x} {base}"] = in_levels(5, 13, DTYPES[x], DTYPES[base], form)
    for form in LIMITS:
        for N, H, D in HEADS:
            found[f"rows {form} {N}x{H}x{D}"] = in_rows(N, H, D, torch.bfloat16, torch.float16, form)
        for x, base in PAIRS:
            found[f"rows {form} {x} {base}"] = in_rows(5, 2, 7, DTYPES[x], DTYPES[base], form)
    for name, dtype in DTYPES.items():
        for N, H, D in HEADS:
            found[f"int8 {name} {N}x{H}x{D}"] = in_int8(N, H * D, H, dtype)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
