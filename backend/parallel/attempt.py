"""A piece of a model call that one rank may have to compute twice, while the others, who do not, wait for nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from .usp import current_call


class Attempt:
    """A block that runs for the first time, as a context manager.

    Its attentions exchange tensors with ranks that will not do so again. While it is entered their results are kept, so that the block can be
    computed once more without an exchange. They are copies: compiled code writes into what it does not need any more.
    """

    def __init__(self, *, keeps: bool) -> None:
        """``keeps``: whether results are kept. Without them only what failed before its first attention can be repeated."""
        self.keeps = keeps
        self._call = current_call()
        self._begun = 0 if self._call is None else self._call.attentions
        self._kept: list[Tensor] = []

    def __enter__(self) -> None:
        if self._call is not None and self.keeps:
            self._call.kept = self._kept

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._call is not None:
            self._call.kept = None

    @property
    def can_be_repeated(self) -> bool:
        """Whether every attention that began is kept. One that failed in the middle of an exchange is not."""
        begun = 0 if self._call is None else self._call.attentions
        return begun - self._begun == len(self._kept)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """The same attentions give what they gave, in their order; those that did not run yet run."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._call is not None:
            self._call.replay = deque(self._kept)
            self._kept.clear()
        try:
            yield
        finally:
            if self._call is not None:
                self._call.replay.clear()
