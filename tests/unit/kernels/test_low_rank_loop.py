"""Low-rank residuals from step to step: bases that stay equal, a warm start that pays, and an error that does not drift."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.kernels.low_rank import add_decoded, factorise, pack
from tutti.kernels.low_rank.reference import start

from tests.support.bits import same_bits
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.residuals import generator, relative_error, walk

N, C, R = 96, 128, 8


def errors(steps: list[Tensor], how: str) -> list[float]:
    """Lengths of what the receiver lacks, step by step, after a key frame. ``how``: warm, cold (two iterations), cold once, or open loop.

    Not as a share of x, which grows as it walks.
    """
    base, sender, warm = steps[0].clone(), steps[0].clone(), None
    found = []
    for x in steps[1:]:
        cold = start(N, C, R, x.device)
        u, v, warm = factorise(x, sender, {"cold": None, "cold once": cold}.get(how, warm), rank=R)
        payload = pack(u, v)
        add_decoded(payload, base)
        sender = x if how == "open loop" else base
        found.append(float((base - x).norm()))
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_the_bases_of_both_ends_are_equal_to_the_bit_after_every_one_of_50_steps(dtype: torch.dtype) -> None:
    steps = [x.to(dtype) for x in walk(37, 61, 50)]
    sender, warm = steps[0].clone(), None
    receiver, in_need = sender.clone(), sender.clone()
    threads = torch.get_num_threads()
    for number, x in enumerate(steps[1:]):
        u, v, warm = factorise(x, sender, warm, rank=R)
        payload = pack(u, v)
        add_decoded(payload, sender)
        arrived = payload.clone()
        try:
            torch.set_num_threads(1 + number % 3)
            add_decoded(arrived, receiver)
        finally:
            torch.set_num_threads(threads)
        assert same_bits(sender, receiver), f"step {number}"
        if number == 25:
            arrived[-1] ^= 1
        add_decoded(arrived, in_need)
        assert same_bits(sender, in_need) == (number < 25), (
            "negative control: one bit of one payload is never forgotten"
        )
    assert relative_error(receiver, steps[-1]) < 0.3


def test_the_error_does_not_drift_since_what_was_not_sent_is_sent_later() -> None:
    steps = list(walk(N, C, 120))
    closed = errors(steps, "warm")
    # 1.1: the mean of 40 steps of one walk is not exact; an error that adds up, as below, grows by sqrt(100 / 40) from one to the other.
    assert mean(closed[80:]) <= 1.1 * mean(closed[30:70])
    opened = errors(steps, "open loop")
    assert mean(opened[80:]) > 1.2 * mean(opened[30:70]), "negative control: the sender forgets what it has not sent"
    assert mean(closed[80:]) < 0.7 * mean(opened[80:])


def test_a_residual_is_far_better_than_the_tensor_itself() -> None:
    """At the same bytes: whoever sends x itself at rank R loses every direction beyond R at every step."""
    steps = list(walk(N, C, 30))
    alone = []
    for x in steps[20:]:
        received = torch.zeros_like(x)
        add_decoded(pack(*factorise(x, received, rank=R)[:2]), received)
        alone.append(float((received - x).norm()))
    assert mean(errors(steps, "warm")[19:]) < mean(alone) / 2


def test_with_its_warm_start_one_iteration_is_nearly_two_and_more_than_one_from_nothing() -> None:
    steps = list(walk(N, C, 60))
    warm, cold, once = (mean(errors(steps, how)[20:]) for how in ("warm", "cold", "cold once"))
    assert warm <= 1.2 * cold, "it reads the residual once where the cold start reads it twice"
    assert once > 1.3 * warm, "negative control: no warm start, one iteration"


def test_a_slowly_turning_subspace_is_followed() -> None:
    draws = generator(1)
    left, right, turn_left, turn_right = (torch.randn(n, R, generator=draws) for n in (N, C, N, C))
    sizes, warm, zeros = 1.3 ** -torch.arange(R), None, torch.zeros(N, C)
    followed, from_nothing = [], []
    for step in range(12):
        angle = torch.tensor(0.03 * step)
        x = (left * angle.cos() + turn_left * angle.sin()) * sizes @ (right * angle.cos() + turn_right * angle.sin()).mT
        x = x + 0.3 * torch.randn(N, C, generator=draws)
        best = torch.linalg.svdvals(x)[R:].norm() / x.norm()
        u, v, warm = factorise(x, zeros, warm, rank=R)
        followed.append(float(relative_error(u @ v.mT, x) / best))
        u, v, _ = factorise(x, zeros, start(N, C, R, x.device))
        from_nothing.append(float(relative_error(u @ v.mT, x) / best))
    assert max(followed[1:]) <= 1.01, "of what the best R directions leave"
    assert min(from_nothing) > 1.2
