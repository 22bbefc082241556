"""Golden numbers: our solvers, flow maths, inpainting and guidance against ComfyUI's own functions, run in ComfyUI's own process."""

from __future__ import annotations

import itertools
import math
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tutti.backend.sampling import flow, guidance, solvers

from tests.support.comfyui import comfyui_folder
from tests.support.parity import relative_error
from tests.unit.sampling.toy_flow import CASES, SIGMAS, Case, inputs, velocity, write_cases

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
"""Float32: 24 steps of a smooth map, each rounded at 6e-8 in another order of operations. Float64: the same with 1e-16, and coefficients
that ComfyUI computes in float64 as well."""


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = comfyui_folder("0.30.0")
    if folder is None:
        pytest.skip("ComfyUI 0.30.0 is not installed: run `python3 install.py comfyui`")
    work = tmp_path_factory.mktemp("golden")
    write_cases(work / "cases.json")
    script = Path(__file__).with_name("comfyui_runs.py")
    command = [
        folder / "venv/bin/python",
        script,
        folder / "ComfyUI",
        work / "cases.json",
        work / "results.safetensors",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, check=False, cwd=work)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(work / "results.safetensors")


def run(case: Case, *, solver: solvers.Solver | None = None) -> tuple[Tensor, Tensor]:
    """The case with our functions: the final latent and the last denoised."""
    given = inputs(case.dtype)

    def network(x: Tensor, conditioning: guidance.Conditioning, options: guidance.Options) -> Tensor:
        return velocity(x, current_sigma, int(options["branch"]))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        nonlocal current_sigma
        current_sigma = sigma
        branches = [
            guidance.BranchInput(conditioning={}, options={"branch": b}) for b in range(1 if case.cfg == 1 else 2)
        ]
        answers = [flow.denoised_from_velocity(x, v, sigma) for v in guidance.evaluate_branches(network, x, branches)]
        return answers[0] if len(answers) == 1 else guidance.combine(answers[0], answers[1], case.cfg)

    current_sigma = 0.0
    noise, latent = given["noise"], given["latent"]
    if case.masked:
        denoise_ = flow.inpainting(denoise, mask=given["mask"], noise=noise, latent=latent)
    else:
        denoise_ = denoise
    sigmas = torch.tensor(SIGMAS[case.sigmas], dtype=getattr(torch, case.dtype))
    last: list[Tensor] = []
    x = flow.scale_noise(float(sigmas[0]), noise, latent)
    x = (solver or solvers.SOLVERS[case.sampler])(denoise_, x, sigmas, lambda step, denoised: last.append(denoised))
    return flow.unscale_noise(float(sigmas[-1]), x), last[-1]


@pytest.mark.comfy
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_gives_the_numbers_of_comfyui(case: Case, golden: dict[str, Tensor]) -> None:
    x, denoised = run(case)
    assert x.dtype == golden[f"{case.name}/x"].dtype
    assert relative_error(x, golden[f"{case.name}/x"]) <= TOLERANCE[case.dtype]
    assert relative_error(denoised, golden[f"{case.name}/denoised"]) <= TOLERANCE[case.dtype]


@pytest.mark.comfy
def test_the_check_sees_a_solver_of_the_wrong_kind(golden: dict[str, Tensor]) -> None:
    """Negative control: the neighbouring solver fails the same check by orders of magnitude."""
    pairs = {"euler": "heun", "heun": "dpmpp_2m", "dpmpp_2m": "euler"}
    for case in CASES:
        if case.sigmas != "one_step":
            x, _ = run(case, solver=solvers.SOLVERS[pairs[case.sampler]])
            assert relative_error(x, golden[f"{case.name}/x"]) > 1000 * TOLERANCE[case.dtype], case.name


@pytest.mark.comfy
def test_the_check_sees_the_half_log_snr_definition_of_dpmpp_2m(golden: dict[str, Tensor]) -> None:
    """Negative control: with diffusers' ``lambda = log((1 - sigma) / sigma)`` the step sizes differ, and so does the picture."""

    def half_log_snr(denoise: flow.Denoise, x: Tensor, sigmas: Tensor, on_step: solvers.OnStep) -> Tensor:
        lambdas, previous = ((1 - sigmas) / sigmas).log().tolist(), None
        for step, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas.tolist())):
            denoised, h = denoise(x, sigma), lambdas[step + 1] - lambdas[step]
            on_step(step, denoised)
            half_r = h / (2 * (lambdas[step] - lambdas[step - 1])) if step else 0.0
            target = denoised if previous is None else (1 + half_r) * denoised - half_r * previous
            x, previous = (sigma_next / sigma) * x - (1 - sigma_next) * math.expm1(-h) * target, denoised
        return x

    case = Case(sampler="dpmpp_2m", sigmas="middle_part", dtype="float64")
    x, _ = run(case, solver=half_log_snr)
    assert relative_error(x, golden[f"{case.name}/x"]) > 1e-4
