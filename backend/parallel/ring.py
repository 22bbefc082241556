"""Ring attention (Liu et al. 2023, arXiv:2310.01889): queries stay, keys and values travel, partial results merge by log-sum-exp.

Keys and values share one transfer per hop, and the next hop is under way while the current chunk is attended to. Padded keys are dropped
once, by the rank that owns them, before they travel: no hop carries them and no kernel sees a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .exchange import Exchange
from .partition import Partition
from .providers import Attended, AttentionProvider


def pack_keys(k_BSHD: Tensor, v_BSHD: Tensor, valid: Tensor | None) -> Tensor:
    """The real keys and values of a chunk in one buffer ``[2, B, keys, H, D]``. ``valid``: see :meth:`Partition.valid_keys`."""
    if valid is None:
        return torch.stack((k_BSHD, v_BSHD))
    B, _, H, D = k_BSHD.shape
    packed = k_BSHD.new_empty(2, B, len(valid), H, D)
    for i, x in enumerate((k_BSHD, v_BSHD)):
        torch.index_select(x, 1, valid, out=packed[i])
    return packed


class Merger:
    """Merges partial attentions over disjoint keys, in float32 at least.

    With ``w = sigmoid(lse_b - lse_a)``: ``out = out_a + w (out_b - out_a)`` and ``lse = log(exp(lse_a) + exp(lse_b))``. Example: equal sums
    (``lse_a == lse_b``) give ``w = 1/2``, the mean of both.
    """

    def __init__(self) -> None:
        self._out: Tensor | None = None
        self._lse: Tensor | None = None

    def add(self, part: Attended) -> None:
        """Merge one more part; its tensors belong to the merger from then on."""
        precise = torch.promote_types(part.out.dtype, torch.float32)
        if self._out is None or self._lse is None:
            self._out, self._lse = part.out.to(precise), part.lse
            return
        weight = torch.sigmoid(part.lse - self._lse).unsqueeze(-1)
        self._out.lerp_(part.out.to(precise), weight)
        self._lse = torch.logaddexp(self._lse, part.lse)

    def result(self, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> Tensor:
        """The merged output in ``dtype``; zeros where there was nothing to attend to."""
        if self._out is None:
            return torch.zeros(shape, dtype=dtype, device=device)
        return self._out.to(dtype)


def ring_attention(
    q_BSHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    scale: float,
    partition: Partition,
    exchange: Exchange,
    provider: AttentionProvider,
) -> Tensor:
    """Attend to the keys of every ring chunk; in and out ``[B, S, H, D]``, S being what this ulysses group holds."""
    ring = exchange.mesh.ring
    q_BHSD = q_BSHD.transpose(1, 2)
    valid = partition.valid_keys(ring.index, q_BSHD.device)
    if ring.size == 1:
        k_BSHD, v_BSHD = (x if valid is None else x.index_select(1, valid) for x in (k_BSHD, v_BSHD))
        return provider(q_BHSD, k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2), scale).out.transpose(1, 2)
    chunk = pack_keys(k_BSHD, v_BSHD, valid)
    merger = Merger()
    for hop in range(ring.size):
        rotation = None
        if hop < ring.size - 1:
            coming = partition.chunk_lengths[(ring.index - hop - 1) % ring.size]
            rotation = exchange.rotate(chunk, chunk.new_empty(2, chunk.shape[1], coming, *chunk.shape[3:]))
        if chunk.shape[2] and q_BHSD.shape[2]:
            merger.add(provider(q_BHSD, chunk[0].transpose(1, 2), chunk[1].transpose(1, 2), scale))
        if rotation is not None:
            chunk = rotation.wait()
    return merger.result(q_BSHD.dtype, q_BHSD.shape, q_BSHD.device).transpose(1, 2)
