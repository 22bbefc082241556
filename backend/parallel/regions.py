"""What is compiled: a module whose ``forward`` asks, at every call, whether it runs compiled, and what it hides from the compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .attempt import Attempt
from .memory import is_out_of_memory


class Decides(Protocol):
    """Who a region asks: :class:`.compile.CompiledNetwork`."""

    def form_of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled form of a class's ``forward``."""

    def decide(self, region: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether a region of this name runs compiled now."""

    @property
    def on_trial(self) -> bool:
        """Whether no call of this shape has run compiled to its end yet."""

    def give_up(self, region: str, error: Exception) -> None:
        """Compiling it failed, or its first run did for want of memory."""


class Region:
    """What stands in for a module's ``forward``."""

    def __init__(self, compiler: Decides, module: nn.Module) -> None:
        self._compiler = compiler
        self._name = type(module).__name__
        self._eager = module.forward
        self._compiled = functools.partial(compiler.form_of(type(module).forward), module)
        functools.update_wrapper(self, module.forward)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self._compiler.decide(self._name, arguments, named):
            return self._eager(*arguments, **named)
        attempt = Attempt(keeps=self._compiler.on_trial)
        try:
            with attempt:
                return self._compiled(*map(plain, arguments), **{name: plain(value) for name, value in named.items()})
        except Exception as error:
            is_ours = isinstance(error, _compilation_errors()) or (attempt.keeps and is_out_of_memory(error))
            if is_ours:
                self._compiler.give_up(self._name, error)
            if not is_ours or not attempt.can_be_repeated:
                raise
        # Out of the except block, whose traceback keeps alive what was allocated.
        with attempt.repeated():
            return self._eager(*arguments, **named)


def repeated_blocks(network: nn.Module, attentions: Sequence[str]) -> list[nn.Module]:
    """The blocks that hold attentions of these names: of ``layers.3.attention`` it is ``layers.3``, the first module of a numbered row."""
    paths: dict[str, None] = {}
    for name in attentions:
        parts = name.split(".")
        end = next((i + 1 for i, part in enumerate(parts) if part.isdecimal()), None)
        if end is not None:
            paths[".".join(parts[:end])] = None
    return [network.get_submodule(path) for path in paths]


def shapes(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Hashable, ...]:
    """What a graph is compiled for, as far as it changes from job to job."""
    everything = (*arguments, *(named[name] for name in sorted(named)))
    return tuple((tuple(value.shape), value.dtype) for value in everything if isinstance(value, Tensor))


def plain(value: Any) -> Any:
    """A tensor, or a tuple of them, without what else a graph would be compiled for: odd strides, and the tensor that it is a view of.

    A block that gets a slice of the last one's output would compile once more. Where only a batch of one has an odd stride nothing is copied.
    """
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if not isinstance(value, Tensor):
        return value
    value = value.contiguous()
    strides = _strides(value.shape)
    if value.stride() != strides:
        value = value.as_strided(value.shape, strides)
    return value.detach() if value._is_view() else value


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a tensor that was made in this shape. By hand: it is asked for every argument of every block of every call."""
    strides, stride = [], 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


@functools.cache
def _compilation_errors() -> tuple[type[Exception], ...]:
    """What a compilation can fail with. Errors of a region that runs are not among them."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit
