"""Every Triton kernel compiles for every GPU generation, without a GPU; and 8-bit floats are refused exactly where they do not exist."""

from __future__ import annotations

import traceback

import pytest
import torch

pytest.importorskip("triton", reason="triton has builds for Linux only: not Linux")

from triton.compiler.errors import CompilationError
from tutti.kernels.all_to_all_permute.triton import move_kernel
from tutti.kernels.lse_merge.triton import merge_kernel
from tutti.kernels.row_quantise import why_not_on
from tutti.kernels.row_quantise.triton import rows_kernel

from tests.unit.kernels.compiling import CAPABILITIES, POINTERS, compiled_bytes

pytestmark = pytest.mark.timeout(300)

WITHOUT_FP8 = (80, 86)


def compile_rows(capability: int, dtype: torch.dtype, *, fp8: bool, raw_keys: bool, packs: bool) -> int:
    element = POINTERS[dtype]
    pointers = {"q": element, "k": "*u8" if raw_keys else element, "v": element, "buffer": "*u8"}
    constants = {
        "BLOCK_ROWS": 8,
        "BLOCK": 128,
        "RAW_BLOCK": 128 * dtype.itemsize,
        "Q_RAW": False,
        "K_RAW": raw_keys,
        "V_RAW": False,
    }
    return compiled_bytes(rows_kernel, pointers, {**constants, "FP8": fp8, "PACKS": packs}, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_merge_and_permutation_compile(capability: int) -> None:
    out = {"out": "*fp32", "lse": "*fp32", "part": "*bf16", "part_lse": "*fp32"}
    assert compiled_bytes(merge_kernel, out, {"BLOCK_ROWS": 16, "BLOCK_D": 128}, capability)
    moved = dict.fromkeys(("q", "k", "v", "buffer"), "*bf16")
    for packs in (True, False):
        assert compiled_bytes(move_kernel, moved, {"BLOCK_ROWS": 16, "BLOCK": 128, "PACKS": packs}, capability)


@pytest.mark.parametrize("packs", [True, False], ids=["pack", "unpack"])
@pytest.mark.parametrize("raw_keys", [True, False], ids=["raw keys", "all"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_int8_rows_compile_everywhere_and_fp8_rows_where_they_are_not_refused(
    capability: int, raw_keys: bool, packs: bool
) -> None:
    how = {"raw_keys": raw_keys, "packs": packs}
    assert why_not_on("int8", divmod(capability, 10)) is None
    assert compile_rows(capability, torch.bfloat16, fp8=False, **how)
    if capability in WITHOUT_FP8:
        assert "Take int8" in str(why_not_on("fp8", divmod(capability, 10)))
        with pytest.raises(CompilationError) as refused:
            compile_rows(capability, torch.bfloat16, fp8=True, **how)
        assert "fp8e4nv not supported" in "".join(traceback.format_exception(refused.value))
    else:
        assert why_not_on("fp8", divmod(capability, 10)) is None
        assert compile_rows(capability, torch.bfloat16, fp8=True, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_compile_for_every_dtype(dtype: torch.dtype) -> None:
    for packs in (True, False):
        assert compile_rows(90, dtype, fp8=True, raw_keys=True, packs=packs)
