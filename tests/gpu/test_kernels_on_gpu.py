"""The Triton kernels on an NVIDIA GPU against their references there: what the interpreter cannot say (real casts, real roundings)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.kernels import all_to_all_permute, lse_merge, row_quantise
from tutti.kernels.all_to_all_permute import reference as permute_reference
from tutti.kernels.choice import runs_triton
from tutti.kernels.lse_merge import reference as merge_reference
from tutti.kernels.row_quantise import reference as quantise_reference

from tests.unit.kernels.heads import DTYPES, FORMS, SHAPES, heads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs an NVIDIA GPU: run `python3 install.py test -- tests/gpu` on a machine that has one",
    ),
]

# Every shape is another compilation, of about a second: the interpreter runs the others.
FEW = ("two parts", "one part, odd head_dim", "four parts, no token")
ALL_SHAPES = {**{name: SHAPES[name] for name in FEW}, "an attention of FLUX.1": (1, 577, 24, 128, 2)}


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def fits(forms: tuple[str, ...]) -> bool:
    capability = torch.cuda.get_device_capability()
    return not any(row_quantise.why_not_on(form, capability) for form in forms)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("name", ALL_SHAPES)
def test_the_permutation_moves_every_bit(name: str, dtype: torch.dtype) -> None:
    *shape, parts = ALL_SHAPES[name]
    tensors = [heads(*shape, dtype, seed).cuda() for seed in range(3)]
    assert runs_triton(*tensors)
    packed = all_to_all_permute.pack_heads(tensors, parts)
    assert torch.equal(bits(packed), bits(permute_reference.pack_heads(tensors, parts)))
    for back, x in zip(all_to_all_permute.unpack_heads(packed), tensors, strict=True):
        assert torch.equal(bits(back), bits(x))


@pytest.mark.parametrize("forms", FORMS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("name", ALL_SHAPES)
def test_quantised_rows_are_those_of_the_reference(name: str, dtype: torch.dtype, forms: tuple[str, ...]) -> None:
    *shape, parts = ALL_SHAPES[name]
    tensors = [heads(*shape, dtype, seed).cuda() for seed in range(len(forms))]
    if not fits(forms):
        with pytest.raises(ValueError, match="Take int8"):
            row_quantise.pack_quantised(tensors, forms, parts)
        return
    if shape[1] > 1:
        tensors[0] = tensors[0].clone()
        tensors[0][0, 1, 0, 0] = torch.nan
    expected = quantise_reference.pack_quantised(tensors, forms, parts)
    packed = row_quantise.pack_quantised(tensors, forms, parts)
    # Division is approximate there: a scale may differ in its last place, and a number next to a tie go the other way.
    how = {"batch": shape[0], "head_dim": shape[3], "dtype": torch.float32 if "raw" not in forms else dtype}
    for x, back, theirs in zip(
        tensors,
        row_quantise.unpack_quantised(packed, forms, **how),
        quantise_reference.unpack_quantised(expected, forms, **how),
        strict=True,
    ):
        assert torch.equal(back.isnan(), theirs.isnan())
        if x.numel():
            greatest = x.float().nan_to_num().abs().amax(-1, keepdim=True).clamp_min(1e-30)
            off = ((back.float() - theirs.float()).nan_to_num().abs() / greatest).flatten()
            assert off.max() <= 32 / 448 + 1e-6, "one step of fp8 at its greatest"
            assert (off > 2.0**-7).float().mean() <= 0.002
    # Both sides of the exchange decode the same bytes to the same numbers.
    for back, theirs in zip(
        row_quantise.unpack_quantised(packed, forms, **how),
        quantise_reference.unpack_quantised(packed, forms, **how),
        strict=True,
    ):
        assert torch.equal(back.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 577])
def test_merged_parts_are_those_of_the_reference(tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)
    out = torch.randn(2, tokens, 3, 40, generator=generator).transpose(1, 2).cuda()
    part = torch.randn(2, 3, tokens, 40, generator=generator).to(dtype).cuda()
    lse, part_lse = (torch.randn(2, 3, tokens, generator=generator).cuda() for _ in range(2))
    part_lse[:, :, :1] = -torch.inf
    lse[:, :, :1] = lse[:, :, 2:3] = -torch.inf
    expected, expected_lse = out.clone(), lse.clone()
    merge_reference.lse_merge(expected, expected_lse, part, part_lse)
    lse_merge.lse_merge(out, lse, part, part_lse)
    # exp and log of the GPU: a few units in the last place, for values of order 1.
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=5e-6)
