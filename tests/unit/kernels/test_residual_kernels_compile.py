"""The kernels of low-rank residuals, of the rotation and of the hash of bases compile for every GPU generation and dtype, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton has builds for Linux only: not Linux")

from tutti.kernels.base_hash.triton import WORDS, words_kernel
from tutti.kernels.hadamard.triton import rotate_kernel
from tutti.kernels.low_rank.triton import add_kernel

from tests.unit.kernels.compiling import CAPABILITIES, POINTERS, compiled, compiled_bytes

pytestmark = pytest.mark.timeout(300)


def compile_sum(dtype: torch.dtype, capability: int) -> int:
    types = {"payload": "*u8", "scales": "*fp16", "base": POINTERS[dtype]}
    return compiled_bytes(add_kernel, types, {"BLOCK_N": 16, "BLOCK_C": 512}, capability)


def compile_rotation(dtype: torch.dtype, size: int, capability: int, *, flips: bool = True, back: bool = False) -> int:
    types = {"x": POINTERS[dtype], "out": POINTERS[dtype], "scale": "fp32"}
    constants = {
        "BLOCK_ROWS": 4096 // size,
        "SIZE": size,
        "ROUNDS": size.bit_length() - 1,
        "FLIPS": flips,
        "BACK": back,
    }
    return compiled_bytes(rotate_kernel, types, constants, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_sum_and_the_rotation_compile(capability: int) -> None:
    assert compile_sum(torch.bfloat16, capability)
    assert compile_rotation(torch.bfloat16, 128, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_hash_compiles_and_adds_64_bits_at_once(capability: int) -> None:
    types = {"words": "*i64", "behind": "*u8", "total": "*i64"}
    stages = compiled(words_kernel, types, {"BLOCK": WORDS}, capability)
    assert stages["cubin"]
    assert "atom.global.gpu.relaxed.add.u64" in str(stages["ptx"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_they_compile_for_every_dtype(dtype: torch.dtype) -> None:
    assert compile_sum(dtype, 90)
    assert compile_rotation(dtype, 128, 90)


@pytest.mark.parametrize("size", [1, 2, 32, 256])
def test_every_block_compiles_there_and_back(size: int) -> None:
    for back in (False, True):
        assert compile_rotation(torch.bfloat16, size, 90, back=back)
    assert compile_rotation(torch.bfloat16, size, 90, flips=False)
