"""Local attention with its log-sum-exp: the kernels there are, the check that each passes before it is used, and the choice among them.

Everybody else imports from here. Nothing beyond torch is imported before a GPU asks for it.
"""

from __future__ import annotations

from .attention import Attended, AttentionProvider
from .choice import choose_provider, provider_for
from .kernels import CpuFlash, CudaEfficient, CudaFlash, MathFallback
from .notes import NOTES

__all__ = [
    "NOTES",
    "Attended",
    "AttentionProvider",
    "CpuFlash",
    "CudaEfficient",
    "CudaFlash",
    "MathFallback",
    "choose_provider",
    "provider_for",
]
