"""What a plan's ``codec`` puts into the Ulysses all-to-all, in both directions: 8 bits a number, with a float32 scale for every (token, head).

=========  ======  ======  ======  ======  ==================================
codec      q       k       v       out     bytes of bf16 at head_dim 128
=========  ======  ======  ======  ======  ==================================
raw        raw     raw     raw     raw     1
fp8        e4m3    raw     e4m3    e4m3    (3 (D + 4) + 2 D) / 8 D = 0.637
int8       int8    raw     int8    int8    0.637
fp8-all    e4m3    e4m3    e4m3    e4m3    (D + 4) / 2 D = 0.516
int8-all   int8    int8    int8    int8    0.516
=========  ======  ======  ======  ======  ==================================

Keys stay in their own dtype unless told otherwise: an error of a key moves all scores of its column, and the softmax is an exponential of them.
All but ``raw`` are approximate, and off unless asked for.

The scale is the row's own and travels with it, so the ranks' maxima may differ by any factor (FastUSP's exchange dequantises with the
receiver's scale, which is right only where they are equal). A row is decoded from its bytes, by every rank alike, its sender included. It does not
matter therefore which rank held a token: all plans with the same codec compute the same picture, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.row_quantise import RAW, pack_quantised, unpack_quantised, why_not_on
from ..errors import BadPlan
from .exchange import HeadCodec, RawCodec, RowCodec
from .plan import CODECS, Plan


class QuantisedCodec(RowCodec):
    """Head rows in 8 bits with their scale inline; stateless. Formats: :mod:`tutti.kernels.row_quantise.reference`."""

    exact = False

    def __init__(self, form: str, *, keys: bool) -> None:
        self.name = f"{form}-all" if keys else form
        self._forms = {3: (form, form if keys else RAW, form), 1: (form,)}

    def pack(self, tensors: Sequence[Tensor], parts: int) -> Tensor:
        return pack_quantised(tensors, self._forms[len(tensors)], parts)

    def unpack(self, packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first = like[0]
        return unpack_quantised(
            packed, self._forms[len(like)], batch=first.shape[0], head_dim=first.shape[3], dtype=first.dtype
        )


def codec_of(plan: Plan, device: torch.device) -> HeadCodec:
    """The codec that the plan names, for tensors on ``device``.

    Raises:
        BadPlan: this GPU has no 8-bit floats; the message names the twin that it has.
    """
    if plan.codec == CODECS[0]:
        return RawCodec()
    form, _, which = plan.codec.partition("-")
    if device.type == "cuda" and (why := why_not_on(form, torch.cuda.get_device_capability(device))):
        raise BadPlan(why)
    return QuantisedCodec(form, keys=which == "all")
