"""Compile a Triton kernel for any GPU, without one."""

from __future__ import annotations

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 86, 89, 90, 100, 120)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def compiled_bytes(kernel: object, types: dict[str, str], constants: dict[str, object], capability: int) -> int:
    """The size of the machine code for one architecture."""
    return len(compiled(kernel, types, constants, capability)["cubin"])


def compiled(
    kernel: object, types: dict[str, str], constants: dict[str, object], capability: int
) -> dict[str, str | bytes]:
    """All stages of compiling for one architecture. All arguments without a type are int64: shapes may be that large."""
    names = kernel.arg_names  # type: ignore[attr-defined]
    signature = {name: types.get(name) or ("constexpr" if name in constants else "i64") for name in names}
    source = ASTSource(
        kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()}
    )
    stages: dict[str, str | bytes] = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
    return stages
