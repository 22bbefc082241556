"""What each rank runs for test_branches: branches that tell who computed them, of unequal shapes."""

from __future__ import annotations

import torch
from torch import Tensor
from tutti.backend.parallel.branches import compute_branches
from tutti.backend.parallel.plan import Plan

from tests.support.ranks import this_rank


def main() -> None:
    rank = this_rank()
    computed: dict[str, list[int]] = {}
    for case in rank.arguments["cases"]:
        shapes = [tuple(shape) for shape in case["shapes"]]
        made: list[int] = []

        def compute(index: int, shapes: list[tuple[int, ...]] = shapes, made: list[int] = made) -> Tensor:
            made.append(index)
            return torch.full(shapes[index], float(index + 1))

        answers = compute_branches(rank.group.mesh(Plan.parse(case["plan"])), shapes, compute)
        rank.tensors |= {f"{case['name']}/{index}": answer for index, answer in enumerate(answers)}
        computed[case["name"]] = made
    rank.facts = {"computed": computed}
    rank.finish()


if __name__ == "__main__":
    main()
