"""Arithmetic that comes out bit for bit the same wherever it is done: what both ends of an exchange add to their copies of a base.

A compiler may contract ``a * b + c`` into one fused operation with one rounding instead of two, and does so on some devices only. So a product is
either rounded to fp16 before it is added (:func:`.reference.half`), or has so few significant bits that float32 holds it exactly
(:func:`.reference.short_scale`): then there is nothing that contraction could change.
"""

from __future__ import annotations

from typing import Final

HALF_MAX: Final = 65504.0
"""The greatest finite fp16."""
