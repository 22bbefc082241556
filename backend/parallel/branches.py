"""CFG parallel: each half of the group computes another branch, and all ranks get every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .mesh import SequenceMesh


def compute_branches(
    mesh: SequenceMesh, shapes: Sequence[tuple[int, ...]], compute: Callable[[int], Tensor]
) -> list[Tensor]:
    """The answers of ``compute(0)``, ``compute(1)``, ..., of these shapes and float32, the same bits on every rank. Collective.

    Every cfg group takes one of each round of calls; where calls run out, the last one is computed once more and its answer left
    out: a group must not stand still while the others exchange control vectors.
    """
    axis = mesh.cfg
    if axis.size == 1:
        return [compute(index) for index in range(len(shapes))]
    answers: list[Tensor] = []
    for start in range(0, len(shapes), axis.size):
        in_round = shapes[start : start + axis.size]
        own = compute(start + min(axis.index, len(in_round) - 1))
        answers += _from_all(mesh, own, in_round)
    return answers


def _from_all(mesh: SequenceMesh, own: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    padded = own.new_zeros(max(sizes))
    padded[: own.numel()] = own.flatten()
    gathered = own.new_empty(mesh.cfg.size, len(padded))
    mesh.transport.all_gather(gathered, padded, mesh.cfg.process_group)
    return [
        gathered[index, :size].reshape(shape) for index, (size, shape) in enumerate(zip(sizes, shapes, strict=True))
    ]
