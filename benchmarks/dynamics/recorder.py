"""Norms, step differences and cosines of what goes through the attention seam: queries, keys, values and the attention's output.

The recorder listens to torch's dispatcher for our one opaque operator. Nothing of the back end is changed, and what is seen is what
ranks exchange: keys after their norm and rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...backend.errors import InternalError
from ...backend.parallel.usp import usp_operator

KINDS: Final = ("query", "key", "value", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tensor of one layer at one step, averaged over prompts."""

    layer: str
    kind: str
    step: int
    norm: float
    """``||x||``, Frobenius, over tokens and channels of one prompt."""
    change: float | None
    """``||x - x of the step before|| / ||x||``; None in the first step."""
    cosine: float | None
    """Of the angle between x and x of the step before; None in the first step."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records while it is entered. Every model call is one step, and reaches every layer once, in order."""

    def __init__(self, layers: Sequence[str], *, text_tokens: int = 0) -> None:
        """``text_tokens``: how many come before the image's; they hardly change, and are left out."""
        super().__init__()  # type: ignore[no-untyped-call]
        usp_operator()  # registers it
        self._operator = torch.ops.tutti.usp_attention.default
        self._layers = layers
        self._text_tokens = text_tokens
        self._seen = 0
        self._before: dict[tuple[str, str], Tensor] = {}
        self.rows: list[Row] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is self._operator:
            self._take((*args[:3], result))
        return result

    def _take(self, tensors: Sequence[Tensor]) -> None:
        step, place = divmod(self._seen, len(self._layers))
        self._seen += 1
        for kind, tensor in zip(KINDS, tensors, strict=True):
            key, x = (self._layers[place], kind), tensor[:, self._text_tokens :].flatten(1).double()
            self.rows.append(_row(*key, step, x, self._before.get(key)))
            self._before[key] = x.clone()

    @property
    def steps(self) -> int:
        """Whole steps recorded. Raises :class:`InternalError` when the last one is not whole: the layers were not what they were said to be."""
        steps, rest = divmod(self._seen, len(self._layers))
        if rest:
            raise InternalError(f"{self._seen} attentions ran, which is no multiple of {len(self._layers)} layers.")
        return steps


def _row(layer: str, kind: str, step: int, x: Tensor, before: Tensor | None) -> Row:
    """``x``, ``before``: ``[B, N]``."""
    norm = x.norm(dim=1)
    if before is None:
        return Row(layer=layer, kind=kind, step=step, norm=float(norm.mean()), change=None, cosine=None)
    change = (x - before).norm(dim=1) / norm
    cosine = torch.nn.functional.cosine_similarity(x, before, dim=1)
    return Row(
        layer=layer, kind=kind, step=step, norm=float(norm.mean()), change=float(change.mean()), cosine=float(cosine.mean())
    )  # fmt: skip


def over_layers(rows: Sequence[Row], kind: str, value: Callable[[Row], float | None]) -> list[float]:
    """A value's mean over the layers at each step that has one."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        number = value(row)
        if row.kind == kind and number is not None:
            by_step.setdefault(row.step, []).append(number)
    return [sum(numbers) / len(numbers) for _, numbers in sorted(by_step.items())]
