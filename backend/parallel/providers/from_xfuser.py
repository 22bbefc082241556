"""xfuser's attention functions as providers: FlashAttention 2, 3 and 4 where their packages are installed, and quantised ones.

xfuser keeps them in one table: each takes ``[batch, heads, tokens, head_dim]`` and answers with the output and a log-sum-exp, or None in its place.
All of them scale by ``head_dim ** -0.5``. Importing xfuser takes seconds and fails on machines that it does not like, so it is
imported on the first call for a GPU and never for a CPU.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import InternalError
from .attention import Attended
from .kernels import takes_16_bit

PACKAGE = "xfuser"
DISTRIBUTIONS = (PACKAGE, "flash-attn", "flash-attn-3", "flashattn-hopper", "flash-attn-4", "sageattention")
"""Whose code runs behind these functions. FlashAttention 3 had another name in its first year."""
_TABLE = "xfuser.core.distributed.attention_backend"

Function = Callable[..., tuple[Tensor, Tensor | None]]


@functools.cache
def installed() -> bool:
    """Whether there is an xfuser; imports nothing."""
    return importlib.util.find_spec(PACKAGE) is not None


@functools.cache
def _functions() -> dict[str, Function]:
    """xfuser's functions by the names of its enumeration. Raises whatever its import raises."""
    module: Any = importlib.import_module(_TABLE)
    return {backend.name: function for backend, function in module.ATTENTION_FUNCTION_REGISTRY.items()}


class XfuserAttention:
    """One of xfuser's functions."""

    def __init__(self, backend: str, *, exact: bool) -> None:
        self.name = f"xfuser-{backend.lower().replace('_', '-')}"
        self.exact = exact
        self._backend = backend

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return installed() and takes_16_bit(device, dtype, head_dim)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        """Raises :class:`InternalError` for a function that this xfuser lacks, and for another scale than its own."""
        function = _functions().get(self._backend)
        if function is None:
            raise InternalError(f"Use another attention: this xfuser has no {self._backend}.")
        if abs(scale * q.shape[-1] ** 0.5 - 1) > 1e-6:
            raise InternalError(f"Use another attention: {self.name} scales by head_dim ** -0.5, not by {scale:g}.")
        out, lse = function(q, k, v, dropout_p=0.0, is_causal=False)
        return Attended(out, q.new_empty(0, dtype=torch.float32) if lse is None else lse[:, :, : q.shape[2]])


XFUSER = (
    XfuserAttention("FLASH", exact=True),
    XfuserAttention("FLASH_3", exact=True),
    XfuserAttention("FLASH_4", exact=True),
    XfuserAttention("FLASH_3_FP8", exact=False),
    XfuserAttention("SAGE", exact=False),
)
"""Those that need neither calibration nor a mask of their own."""
