"""Every Triton kernel compiles for every GPU generation, without a GPU; and 8-bit floats are refused exactly where they do not exist."""

from __future__ import annotations

import traceback

import pytest
import torch

pytest.importorskip("triton", reason="triton has builds for Linux only: not Linux")

from triton.compiler.errors import CompilationError
from tutti.kernels.all_to_all_permute.triton import move_kernel
from tutti.kernels.int8_base.triton import dequantise_kernel, requantise_kernel
from tutti.kernels.lse_merge.triton import merge_kernel
from tutti.kernels.residual_levels import FORMS
from tutti.kernels.residual_levels import triton as levels
from tutti.kernels.residual_rows import triton as residual_rows
from tutti.kernels.row_quantise import why_not_on
from tutti.kernels.row_quantise.triton import rows_kernel

from tests.unit.kernels.compiling import CAPABILITIES, POINTERS, compiled, compiled_bytes

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


def compile_levels(form: str, capability: int, x: torch.dtype, base: torch.dtype) -> int:
    """Encoding, the statistics alone, the second launch of both, and decoding; the least of their sizes."""
    kind, pointers = FORMS[form], {"x": POINTERS[x], "base": POINTERS[base], "codes": "*u8"}
    pointers |= dict.fromkeys(("u", "v", "next_u"), "*fp16")
    pointers |= dict.fromkeys(("row_sums", "column_sums", "tile_sums"), "*fp32")
    tile, values = levels.tile_shape(kind, 3072), {"NEAR": kind.near, "FAR": kind.far}
    encode, unused = {**tile, **values, "THRESHOLD": kind.threshold}, dict.fromkeys(("u", "v", "codes"), POINTERS[base])
    return min(
        compiled_bytes(levels.encode_kernel, pointers, {**encode, "ENCODES": True}, capability),
        compiled_bytes(levels.encode_kernel, pointers | unused, {**encode, "ENCODES": False}, capability),
        compiled_bytes(levels.finish_kernel, pointers, {"BLOCK": 64, "COLUMN_TILES": 16, "ENCODES": True}, capability),
        compiled_bytes(levels.decode_kernel, pointers, {**tile, **values}, capability),
    )


def compile_residual_rows(form: str, capability: int, x: torch.dtype, base: torch.dtype, *, is_key: bool) -> int:
    """Encoding and decoding; the smaller of their sizes."""
    pointers = {"x": POINTERS[x], "base": POINTERS[base], "payload": "*u8", "limit": "fp32"}
    lanes = 2 if form == "int4" else 1
    shape = {"ROWS": 32, "BYTES": 128 // lanes, "LANES": lanes, "FP8": form == "fp8", "IS_KEY": is_key}
    kernels = residual_rows.encode_kernel, residual_rows.decode_kernel
    return min(compiled_bytes(kernel, pointers, shape, capability) for kernel in kernels)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("form", ["binary", "ternary", "quaternary"])
def test_residuals_in_levels_compile(form: str, capability: int) -> None:
    assert compile_levels(form, capability, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_residual_rows_compile_but_for_fp8_where_it_is_refused(form: str, capability: int) -> None:
    how = {"x": torch.bfloat16, "base": torch.float16, "is_key": False}
    if form == "fp8" and capability in WITHOUT_FP8:
        with pytest.raises(CompilationError) as refused:
            compile_residual_rows(form, capability, **how)
        assert "fp8e4nv not supported" in "".join(traceback.format_exception(refused.value))
    else:
        assert compile_residual_rows(form, capability, **how)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_base_in_8_bits_compiles(capability: int) -> None:
    pointers = {"x": "*bf16", "out": "*bf16", "base": "*i8", "scales": "*fp32"}
    for kernel in (dequantise_kernel, requantise_kernel):
        assert compiled_bytes(kernel, pointers, {"ROWS": 32, "BLOCK": 128}, capability)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_residuals_compile_for_every_dtype_and_as_key_frames(base: torch.dtype) -> None:
    for x in (torch.float32, torch.float16):
        assert compile_levels("ternary", 90, x, base)
        assert compile_residual_rows("int4", 90, x, base, is_key=True)


@pytest.mark.parametrize("form", ["binary", "ternary", "quaternary"])
def test_no_sum_of_a_base_is_fused_with_a_product(form: str) -> None:
    """Rounding to fp16 stands between them: with one rounding less a receiver of another make would hold another base."""
    pointers = {"base": "*fp32", "codes": "*u8", "u": "*fp16", "v": "*fp16", "next_u": "*fp16"}
    kind = FORMS[form]
    constants = {**levels.tile_shape(kind, 3072), "NEAR": kind.near, "FAR": kind.far}
    assert "fma" not in str(compiled(levels.decode_kernel, pointers, constants, 90)["ptx"])


def test_the_base_in_8_bits_is_divided_with_correct_rounding() -> None:
    pointers = {"x": "*bf16", "base": "*i8", "scales": "*fp32"}
    ptx = str(compiled(requantise_kernel, pointers, {"ROWS": 32, "BLOCK": 128}, 90)["ptx"])
    assert "div.rn.f32" in ptx
    assert "div.full.f32" not in ptx
    # Negative control: what the operator / becomes, in a scale that only the sender makes.
    sums = dict.fromkeys(("row_sums", "column_sums", "tile_sums"), "*fp32") | {
        "u": "*fp16",
        "v": "*fp16",
        "base": "*fp16",
    }
    finish = {"BLOCK": 64, "COLUMN_TILES": 16, "ENCODES": True}
    assert "div.full.f32" in str(compiled(levels.finish_kernel, sums, finish, 90)["ptx"])
