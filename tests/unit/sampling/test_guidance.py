"""Branches: when they share a call, how they are repeated to the batch, and what guidance makes of the answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.backend.sampling.guidance import (
    BranchInput,
    Conditioning,
    Options,
    combine,
    evaluate_branches,
    repeat_to_batch,
)


class Network:
    """Records its calls; answers ``x + mean(context)`` per entry of the batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, conditioning: Conditioning, options: Options) -> Tensor:
        assert all(tensor.shape[0] == x.shape[0] for tensor in conditioning.values())
        self.batches.append(x.shape[0])
        return x + conditioning["context"].mean((1, 2)).reshape(-1, 1, 1, 1) + float(options.get("offset", 0))


def branch(
    tokens: int, seed: int, *, batch: int = 3, dtype: torch.dtype = torch.float32, **options: float
) -> BranchInput:
    context = torch.randn(batch, tokens, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return BranchInput(conditioning={"context": context}, options=options)


X = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))


def test_branches_of_equal_shape_share_one_call() -> None:
    network = Network()
    positive, negative = evaluate_branches(network, X, [branch(7, 1), branch(7, 2)])
    assert network.batches == [6]
    assert torch.equal(positive, Network()(X, branch(7, 1).conditioning, {}))
    assert torch.equal(negative, Network()(X, branch(7, 2).conditioning, {}))


@pytest.mark.parametrize(
    "other",
    [branch(9, 2), branch(7, 2, offset=1.0), branch(7, 2, dtype=torch.float64)],
    ids=["another length", "other options", "another dtype"],
)
def test_branches_that_differ_in_more_than_numbers_take_a_call_each(other: BranchInput) -> None:
    network = Network()
    answers = evaluate_branches(network, X, [branch(7, 1), other])
    assert network.batches == [3, 3]
    assert torch.equal(answers[1], Network()(X, other.conditioning, other.options))


def test_branches_with_other_names_take_a_call_each() -> None:
    pooled = BranchInput(conditioning={**branch(7, 2).conditioning, "pooled": torch.zeros(3, 4)}, options={})
    network = Network()
    evaluate_branches(network, X, [branch(7, 1), pooled])
    assert network.batches == [3, 3]


def test_a_single_branch_is_not_copied() -> None:
    seen: list[Tensor] = []
    evaluate_branches(lambda x, conditioning, options: seen.append(x) or x, X, [branch(7, 1)])  # type: ignore[func-returns-value]
    assert seen[0] is X


@pytest.mark.parametrize(
    ("have", "batch", "expected"),
    [(1, 3, [0, 0, 0]), (2, 5, [0, 1, 0, 1, 0]), (3, 3, [0, 1, 2]), (4, 2, [0, 1]), (3, 4, [0, 1, 2, 0])],
)
def test_conditioning_is_repeated_in_turn_and_cut_to_the_batch(have: int, batch: int, expected: list[int]) -> None:
    tensor = torch.arange(have, dtype=torch.float32).reshape(have, 1, 1).expand(have, 2, 3)
    assert repeat_to_batch(tensor, batch)[:, 0, 0].tolist() == expected


def test_conditioning_of_the_right_batch_is_not_copied() -> None:
    tensor = torch.zeros(3, 2)
    assert repeat_to_batch(tensor, 3).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, -2.0])
def test_guidance_extrapolates_from_the_negative_through_the_positive(scale: float) -> None:
    positive, negative = torch.full((1, 1), 3.0), torch.full((1, 1), 1.0)
    assert float(combine(positive, negative, scale)) == 1.0 + 2.0 * scale
