"""What the solvers promise whatever the model: order of convergence, numbers of calls, and the edges of a sigma list."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor
from tutti.backend.sampling.flow import denoised_from_velocity
from tutti.backend.sampling.solvers import SOLVERS

from tests.unit.sampling.toy_flow import shifted, velocity

CALLS = {"euler": lambda steps: steps, "heun": lambda steps: 2 * steps - 1, "dpmpp_2m": lambda steps: steps}


def ignore(step: int, denoised: Tensor) -> None:
    """An ``on_step`` that wants nothing."""


def integrate(sampler: str, steps: int) -> float:
    """Error at sigma 0.2 of ``dx/dsigma = v`` with ``v = cos(3 sigma) x``, whose solution is known."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return denoised_from_velocity(x, x * math.cos(3 * sigma), sigma)

    sigmas = torch.linspace(1.0, 0.2, steps + 1, dtype=torch.float64)
    x = SOLVERS[sampler](denoise, torch.ones(1, 1, 1, 1, dtype=torch.float64), sigmas, ignore)
    return abs(float(x) - math.exp((math.sin(0.6) - math.sin(3.0)) / 3))


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_error_falls_with_the_order_of_the_solver(sampler: str, order: int) -> None:
    measured = math.log2(integrate(sampler, 64) / integrate(sampler, 128))
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_is_reported_once_with_its_first_denoised(sampler: str, steps: int) -> None:
    calls: list[tuple[float, Tensor]] = []
    reported: list[tuple[int, Tensor]] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append((sigma, denoised_from_velocity(x, velocity(x, sigma, 0), sigma)))
        return calls[-1][1]

    sigmas = torch.tensor(shifted(steps))
    SOLVERS[sampler](denoise, torch.ones(1, 2, 3, 3), sigmas, lambda step, denoised: reported.append((step, denoised)))
    assert len(calls) == CALLS[sampler](steps)
    assert [step for step, _ in reported] == list(range(steps))
    by_identity = {id(denoised): sigma for sigma, denoised in calls}
    assert [by_identity[id(denoised)] for _, denoised in reported] == sigmas[:-1].tolist()


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("sigmas", [[], [0.7]], ids=["none", "one"])
def test_fewer_than_two_sigmas_give_x_back_without_a_call(sampler: str, sigmas: list[float]) -> None:
    def refuse(x: Tensor, sigma: float) -> Tensor:
        raise AssertionError("called")

    x = torch.randn(1, 2, 3, 3)
    assert SOLVERS[sampler](refuse, x, torch.tensor(sigmas), ignore) is x


@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_last_step_to_sigma_zero_lands_on_the_denoised_latent(sampler: str) -> None:
    x = SOLVERS[sampler](lambda x, sigma: x * 0 + 0.25, torch.ones(1, 1, 2, 2), torch.tensor([1.0, 0.5, 0.0]), ignore)
    assert torch.allclose(x, torch.full_like(x, 0.25), rtol=1e-6)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_repeated_sigma_changes_nothing(sampler: str) -> None:
    def run(sigmas: list[float]) -> Tensor:
        return SOLVERS[sampler](
            lambda x, s: x - s * velocity(x, s, 0), torch.ones(1, 2, 3, 3), torch.tensor(sigmas), ignore
        )

    repeated = run([0.9, 0.6, 0.6])
    assert torch.isfinite(run([0.9, 0.6, 0.6, 0.3, 0.0])).all()
    assert torch.equal(repeated, run([0.9, 0.6]))


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_input_is_left_alone_and_the_bits_are_always_the_same(sampler: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(1))
    before, digests = x.clone(), set()
    for _ in range(3):
        result = SOLVERS[sampler](lambda x, s: x - s * velocity(x, s, 0), x, torch.tensor(shifted(5)), ignore)
        digests.add(hashlib.sha256(result.numpy().tobytes()).hexdigest())
        assert result.dtype == dtype
    assert len(digests) == 1
    assert torch.equal(x, before)
