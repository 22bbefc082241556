"""The seam to diffusers: every selected attention of a network runs our operator, and the network's inputs are sharded around it.

diffusers asks each attention *processor* for its backend and hands the backend whatever lies in ``processor._parallel_config``. We set both, on
the processors of one network only: other models in the process, and diffusers' process-wide active backend, stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..compression.store import ResidualCall
from ..errors import InternalError
from .codecs import codec_of
from .compile import CompiledNetwork, Compiler
from .compile_modes import OFF
from .exchange import Exchange, HeadCodec
from .hooks import Gather, Sharder, Split, SplitOutput
from .mesh import SequenceMesh
from .partition import Partition
from .usp import CallContext, running_call, usp_operator

_BACKEND = "tutti_usp"


class SeamLayer:
    """What lies in one processor's ``_parallel_config``: the token buffer of its network, which streams its attention sees, and whether
    the processor was ever reached."""

    def __init__(self, name: str, token: Tensor, streams: Sequence[str] = ()) -> None:
        self.name = name
        self.token = token
        self.streams = ",".join(streams)
        """As the operator takes them; empty: all of the call's."""
        self.reached = False


@functools.cache
def diffusers_backend() -> Any:
    """Register our attention backend with diffusers, once; returns the name by which processors ask for it."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    # A free-standing member: dispatch wants an instance of the enumeration, which itself stays as it is.
    backend = str.__new__(AttentionBackendName, _BACKEND)
    backend._name_, backend._value_ = _BACKEND.upper(), _BACKEND
    operator = usp_operator()

    def tutti_usp(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        _parallel_config: SeamLayer | None = None,
    ) -> Tensor:
        if _parallel_config is None:
            raise InternalError("An attention asks for our backend without having been bound.")
        if attn_mask is not None or dropout_p or is_causal or enable_gqa:
            raise InternalError(
                f"{_parallel_config.name} asks for an attention that is not plain: mask, dropout, causal or grouped heads."
            )
        if not torch.compiler.is_compiling():
            _parallel_config.reached = True
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return operator(query, key, value, _parallel_config.token, scale, _parallel_config.streams)

    _AttentionBackendRegistry.register(backend, constraints=[], supports_context_parallel=True)(tutti_usp)
    return backend


class Binding:
    """A network on a mesh. Made by :func:`bind`; undone by :meth:`remove`."""

    def __init__(
        self,
        mesh: SequenceMesh,
        codec: HeadCodec,
        sharder: Sharder,
        layers: list[SeamLayer],
        undo: list[Callable[[], None]],
        compiled: CompiledNetwork,
    ) -> None:
        self.mesh = mesh
        self._exchange = Exchange(mesh, codec)
        self._sharder = sharder
        self._layers = layers
        self._undo = undo
        self._compiled = compiled
        self._partitions: dict[tuple[tuple[str, int], ...], Partition] = {}

    @contextmanager
    def call(self, stream_lengths: Mapping[str, int], residuals: ResidualCall | None = None) -> Iterator[CallContext]:
        """Run one forward of the network inside. Streams come in the order in which the joint attention sees them.

        ``residuals``: what this call's differences refer to; without it values travel by the plan's codec.

        Raises :class:`InternalError` at the end when not every expected attention was reached: such a network would have
        attended to its own shard only, and looked almost right.
        """
        context = CallContext(self._partition(stream_lengths), self._exchange, residuals=residuals)
        self._sharder.partition = context.partition
        with running_call(context), self._compiled.call():
            yield context
        if context.attentions != len(self._layers):
            # A compiled layer does not say that it was reached.
            ran_eager = any(layer.reached for layer in self._layers)
            missed = [layer.name for layer in self._layers if ran_eager and not layer.reached]
            names = f": {', '.join(missed[:8])} never asked for it" if missed else ""
            raise InternalError(
                f"{context.attentions} of {len(self._layers)} attentions ran in parallel{names}. The model is refused."
            )

    def _partition(self, stream_lengths: Mapping[str, int]) -> Partition:
        key = tuple(stream_lengths.items())
        if key not in self._partitions:
            if len(self._partitions) >= 64:
                self._partitions.clear()
            plan = self.mesh.plan
            self._partitions[key] = Partition.equal(stream_lengths, ring=plan.ring, ulysses=plan.ulysses)
        return self._partitions[key]

    def remove(self) -> None:
        """Give the network back as it was before."""
        while self._undo:
            self._undo.pop()()


def bind(
    network: nn.Module,
    mesh: SequenceMesh,
    *,
    splits: Sequence[Split | SplitOutput],
    gather: Gather,
    is_joint_attention: Callable[[str], bool],
    streams_of: Callable[[str], Sequence[str]] = lambda name: (),
    compiler: Compiler | None = None,
) -> Binding:
    """Install the seam on ``network``.

    ``splits`` and ``gather`` say which tensors are cut and which output is put together again; ``is_joint_attention`` selects, by module
    name, the attentions that see the tokens of all ranks, and ``streams_of`` says of which streams (empty: of all). What the
    all-to-all carries is the plan's codec. Without a ``compiler`` the network runs eager. Raises :class:`InternalError` when a selected
    attention has no seam, and :class:`BadPlan` when this device has no such codec.
    """
    selected = [
        (name, module.processor)
        for name, module in network.named_modules()
        if getattr(module, "processor", None) is not None and is_joint_attention(name)
    ]
    if not selected:
        raise InternalError("No attention of the network was selected: nothing would run in parallel.")
    for name, processor in selected:
        if not (hasattr(processor, "_attention_backend") and hasattr(processor, "_parallel_config")):
            raise InternalError(
                f"{name} has a {type(processor).__name__}, which lets no backend in. The model is refused."
            )
    codec = codec_of(mesh.plan, mesh.device)  # first: it may refuse, and nothing is installed yet
    token = torch.zeros(1, device=mesh.device)
    layers = [SeamLayer(name, token, streams_of(name)) for name, _ in selected]
    undo = [_install(processor, layer) for (_, processor), layer in zip(selected, layers, strict=True)]
    sharder = Sharder(mesh, splits, gather)
    undo.append(sharder.install(network))
    compiled = (compiler or Compiler(OFF, mesh.device)).install(network, [name for name, _ in selected])
    undo.append(compiled.remove)
    return Binding(mesh, codec, sharder, layers, undo, compiled)


def _install(processor: Any, layer: SeamLayer) -> Callable[[], None]:
    before = processor._attention_backend, processor._parallel_config
    processor._attention_backend, processor._parallel_config = diffusers_backend(), layer

    def restore() -> None:
        processor._attention_backend, processor._parallel_config = before

    return restore
