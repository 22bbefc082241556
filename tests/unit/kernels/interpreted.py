"""Every Triton kernel in Triton's interpreter against its reference: what test_interpreted starts, with TRITON_INTERPRET=1.

A process of its own, because Triton decides when a kernel is defined whether it will be interpreted. Prints one JSON object: case -> figures.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor
from tutti.kernels.all_to_all_permute import reference as permute
from tutti.kernels.all_to_all_permute import triton as permute_kernel
from tutti.kernels.lse_merge import reference as merge
from tutti.kernels.lse_merge import triton as merge_kernel
from tutti.kernels.row_quantise import reference as quantise
from tutti.kernels.row_quantise import triton as quantise_kernel

from tests.support.bits import same_bits
from tests.unit.kernels.heads import DTYPES, FORMS, SHAPES, heads

Figures = dict[str, float]


def permuted(name: str, dtype: torch.dtype) -> Figures:
    *shape, parts = SHAPES[name]
    tensors = [heads(*shape, dtype, seed) for seed in range(3)]
    packed = permute_kernel.pack_heads(tensors, parts)
    back = permute_kernel.unpack_heads(packed)
    return {
        "packed": same_bits(packed, permute.pack_heads(tensors, parts)),
        "unpacked": all(same_bits(x, y) for x, y in zip(back, tensors, strict=True)),
    }


def quantised(name: str, dtype: torch.dtype, forms: tuple[str, ...]) -> Figures:
    """Packed bytes that differ, and the decoded values' greatest difference as a share of the greatest of their row."""
    B, n, H, D, parts = SHAPES[name]
    tensors = [heads(B, n, H, D, dtype, seed) for seed in range(len(forms))]
    if n > 1:
        tensors[0] = tensors[0].clone()
        tensors[0][0, 1, 0, 0], tensors[0][0, 1, 1, 0] = torch.nan, -torch.inf
    expected, packed = (
        quantise.pack_quantised(tensors, forms, parts),
        quantise_kernel.pack_quantised(tensors, forms, parts),
    )
    how = {"batch": B, "head_dim": D, "dtype": dtype}
    decoded = quantise.unpack_quantised(expected, forms, **how)
    got = quantise_kernel.unpack_quantised(expected, forms, **how)
    broken = quantise_kernel.unpack_quantised(expected.roll(1, 1) if n > 1 else expected + 1, forms, **how)
    return {
        "different bytes": float((packed != expected).float().mean()) if n else 0.0,
        "decoded": max(row_error(x, y) for x, y in zip(got, decoded, strict=True)),
        "decoded wrongly": max(row_error(x, y) for x, y in zip(broken, decoded, strict=True)),
        "NaN alike": all(torch.equal(x.isnan(), y.isnan()) for x, y in zip(got, decoded, strict=True)),
        "NaN": float(sum(int(x.isnan().sum()) for x in got)),
    }


def row_error(a: Tensor, b: Tensor) -> float:
    if not b.numel():
        return 0.0
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return float(((a - b).abs().amax(-1) / b.abs().amax(-1).clamp_min(1e-30)).max())


def merged(dtype: torch.dtype, tokens: int) -> Figures:
    generator = torch.Generator().manual_seed(tokens)
    out = torch.randn(2, tokens, 3, 20, generator=generator).transpose(1, 2)
    part = torch.randn(2, 3, tokens, 20, generator=generator).to(dtype)
    lse, part_lse = (20 * torch.randn(2, 3, tokens + 3, generator=generator)[..., :tokens] for _ in range(2))
    if tokens > 4:
        lse[..., 0] = part_lse[..., 0] = part_lse[..., 1] = lse[..., 2] = -torch.inf
        lse[0, 0, 3] = torch.nan
    expected, expected_lse, wrong = out.clone(), lse.clone(), out.clone()
    merge.lse_merge(expected, expected_lse, part, part_lse)
    merge.lse_merge(wrong, lse.clone(), part, part_lse + 0.01)
    merge_kernel.lse_merge(out, lse, part, part_lse)
    return {
        "out": float((out - expected).nan_to_num().abs().max()) if tokens else 0.0,
        "lse": float((lse - expected_lse).nan_to_num().abs().max()) if tokens else 0.0,
        "NaN alike": torch.equal(out.isnan(), expected.isnan()) and torch.equal(lse.isnan(), expected_lse.isnan()),
        "another lse": float((wrong - expected).nan_to_num().abs().max()) if tokens else 1.0,
    }


def main() -> None:
    found: dict[str, Figures] = {}
    for name in SHAPES:
        for short, dtype in DTYPES.items():
            found[f"permute {name} {short}"] = permuted(name, dtype)
            for forms in FORMS:
                found[f"quantise {name} {short} {'+'.join(forms)}"] = quantised(name, dtype, forms)
    for short, dtype in DTYPES.items():
        for tokens in (0, 1, 9):
            found[f"merge {tokens} {short}"] = merged(dtype, tokens)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
