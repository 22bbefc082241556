"""Ulysses (Jacobs et al. 2023, arXiv:2309.14509): one all-to-all turns "my tokens, all heads" into "all tokens, my heads", another one back.

Query, key and value share the first exchange. Shape letters: B batch, n tokens held by this rank, S tokens held by the whole ulysses group,
H heads, h = H / u heads per rank, D head_dim, u ranks of the ulysses axis.

Rows of the exchange are tokens, so that what arrives from the peers lies one after the other in token order and q, k, v are *views* of it: the only
copies are one into the send buffer here, and one out of the received buffer on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .exchange import Exchange


def scatter_heads(
    q_BnHD: Tensor, k_BnHD: Tensor, v_BnHD: Tensor, peers_held: Sequence[int], exchange: Exchange
) -> tuple[Tensor, Tensor, Tensor]:
    """``3 x [B, n, H, D]`` -> ``3 x [B, S, h, D]`` (strided views). ``peers_held[i]`` is n on the i-th rank of the ulysses axis."""
    u = len(peers_held)
    if u == 1:
        return q_BnHD, k_BnHD, v_BnHD
    B, n, H, D = q_BnHD.shape
    h = H // u
    sent = q_BnHD.new_empty(u, n, 3, B, h, D)
    for i, x_BnHD in enumerate((q_BnHD, k_BnHD, v_BnHD)):
        sent[:, :, i].copy_(x_BnHD.view(B, n, u, h, D).permute(2, 1, 0, 3, 4))
    landing = q_BnHD.new_empty(sum(peers_held), 3, B, h, D)
    arrived = exchange.all_to_all(sent.flatten(0, 1), landing, received_splits=peers_held, sent_splits=[n] * u)
    q, k, v = arrived.permute(1, 2, 0, 3, 4).unbind(0)
    return q, k, v


def gather_heads(out_BShD: Tensor, peers_held: Sequence[int], own: int, exchange: Exchange) -> Tensor:
    """``[B, S, h, D]`` -> ``[B, n, H, D]`` contiguous: the way back. ``own`` is this rank's place on the ulysses axis."""
    u, n = len(peers_held), peers_held[own]
    if u == 1:
        return out_BShD.contiguous()
    B, _, h, D = out_BShD.shape
    sent = out_BShD.permute(1, 0, 2, 3).contiguous()
    landing = sent.new_empty(u * n, B, h, D)
    arrived = exchange.all_to_all(sent, landing, received_splits=[n] * u, sent_splits=peers_held)
    return arrived.view(u, n, B, h, D).permute(2, 1, 0, 3, 4).flatten(2, 3).contiguous()
