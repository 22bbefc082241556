"""Unified sequence parallelism (Fang & Zhao 2024, arXiv:2405.07719) as one opaque operator: Ulysses around ring around local attention.

Opaque to ``torch.compile`` on purpose: streams, buffers, codecs and their state live inside, and a compiled block recompiles for none of
them. Two things keep the operator's calls in order and alive: it declares that it mutates a one-element token buffer (an effect
token would do too, but turns the compile cache off), and it is tagged unsafe for CUDA graphs, so that graphs are cut around it.

What the operator works with comes from the :class:`CallContext` of the running model call, not from its arguments: an integer layer
index would recompile every block. The exception is which streams an attention sees: like blocks have the same, so nothing recompiles.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..compression.store import ResidualCall
from ..errors import InternalError
from .exchange import Exchange
from .partition import Partition
from .providers import provider_for
from .residual import ResidualHeads, ResidualHops
from .schedules import attend_along_ring
from .schedules.call import RingCall
from .ulysses import gather_heads, scatter_heads


@dataclass(slots=True)
class CallContext:
    """One model call: how its tokens are split, how ranks exchange them, and how many attentions ran so far."""

    partition: Partition
    exchange: Exchange
    attentions: int = 0
    """Attentions begun so far: the index of the running one, equal on every rank."""
    kept: list[Tensor] | None = None
    """Where copies of results go while somebody may have to compute what follows them once more; see :class:`.attempt.Attempt`."""
    residuals: ResidualCall | None = None
    """What the exchange knows of the call before, where it sends differences; ``None``: it sends values."""
    replay: deque[Tensor] = field(default_factory=deque)
    """Results that the next attentions give, instead of running."""


_running: ContextVar[CallContext | None] = ContextVar("tutti_running_call", default=None)


@contextmanager
def running_call(context: CallContext) -> Iterator[CallContext]:
    """Make ``context`` the one that the operator sees."""
    reset = _running.set(context)
    try:
        yield context
    finally:
        _running.reset(reset)


def current_call() -> CallContext | None:
    """That of the running model call."""
    return _running.get()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, streams: str = "") -> Tensor:
    """Exact attention over all ranks' tokens; ``[B, n, H, D]`` in and out, n being the tokens of this rank. Collective.

    ``streams``: the names of those that the tokens are of, joined by commas; empty: all of the call's.
    """
    context = _running.get()
    if context is None:
        raise InternalError("An attention ran outside a model call: use Binding.call().")
    if context.replay:
        return context.replay.popleft()
    # Before the exchange, which cannot be taken back where there is no room for this.
    kept = None if context.kept is None else q.new_empty(q.shape)
    context.attentions += 1
    exchange, partition = _exchange_of(context), context.partition.seen_by(streams)
    mesh = exchange.mesh
    held = partition.peers_held(mesh.ring.index)
    if q.shape[1] != held[mesh.ulysses.index]:
        raise InternalError(f"An attention got {q.shape[1]} tokens, but this rank holds {held[mesh.ulysses.index]}.")
    provider = provider_for(q, scale, partition, mesh)
    q, k, v = scatter_heads(q, k, v, held, exchange)
    call = RingCall(q=q, k=k, v=v, scale=scale, partition=partition, exchange=exchange, provider=provider)
    out = gather_heads(attend_along_ring(call), held, mesh.ulysses.index, exchange)
    if kept is not None and context.kept is not None:
        context.kept.append(kept.copy_(out))
    return out


def _exchange_of(context: CallContext) -> Exchange:
    """That of the running attention."""
    if context.residuals is None:
        return context.exchange
    layer = context.attentions
    return Exchange(
        context.exchange.mesh, ResidualHeads(context.residuals, layer), ResidualHops(context.residuals, layer)
    )


@functools.cache
def usp_operator() -> Callable[..., Tensor]:
    """``tutti::usp_attention(q, k, v, token, scale, streams="")``, registered with torch on first use; see :func:`attend`.

    ``token`` is any one-element tensor that lives as long as the model. It is declared as mutated and left alone.
    """

    def usp_attention(q: Tensor, k: Tensor, v: Tensor, token: Tensor, scale: float, streams: str = "") -> Tensor:
        return attend(q, k, v, scale, streams)

    # torch reads the schema from real types, which the postponed annotations of this file hide.
    usp_attention.__annotations__ = {
        **dict.fromkeys(("q", "k", "v", "token", "return"), Tensor),
        "scale": float,
        "streams": str,
    }
    operator = torch.library.custom_op(
        "tutti::usp_attention", usp_attention, mutates_args=("token",), tags=(torch.Tag.cudagraph_unsafe,)
    )

    @operator.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, token: Tensor, scale: float, streams: str = "") -> Tensor:
        return q.new_empty(q.shape)

    return operator
