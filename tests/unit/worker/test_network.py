"""One model call is cast, concatenated and timed as ComfyUI's ``BaseModel._apply_model`` does it; a whole Sample stands on that."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from tutti.backend.errors import BadRequest
from tutti.backend.models.registry import ResidentModel
from tutti.backend.parallel.mesh import SequenceMesh
from tutti.backend.wire.messages import Branch, ModelRef, Sample
from tutti.backend.worker.control import Action, CallGate
from tutti.backend.worker.network import GatedNetwork
from tutti.backend.worker.null_rank import NullAdapter
from tutti.backend.worker.trajectory import check_sigmas, run_sample

from tests.support.meshes import single_rank_mesh

CPU = torch.device("cpu")


class Recorder(NullAdapter):
    """Keeps what the network was given; answers a curved velocity of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, dict[str, Tensor], dict[str, object]]] = []

    def bind(self, mesh: SequenceMesh, compiler: object = None) -> None:
        raise AssertionError("nobody binds here")

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        conditioning: Mapping[str, Tensor],
        options: Mapping[str, object],
        residuals: object = None,
    ) -> Tensor:
        self.seen.append((x, timestep, dict(conditioning), dict(options)))
        offset = conditioning["context"].float().mean((1, 2)).reshape(-1, 1, 1, 1)
        return (x[:, :2].float() + offset).tanh() * (1 + timestep.reshape(-1, 1, 1, 1) / 1000)


def network(adapter: NullAdapter, dtype: torch.dtype = torch.float32) -> GatedNetwork:
    model = ResidentModel(family="null", num_heads=1, dtype=dtype, device=CPU, size_bytes=0, adapter=adapter)
    return GatedNetwork(model, open_gate(), single_rank_mesh())


def open_gate() -> CallGate:
    """The gate of a group of one."""
    return CallGate(
        exchange=lambda vector: lambda: vector[None],
        asks=lambda: Action.CONTINUE,
        wait_for_device=lambda: None,
        sequence=1,
    )


def sample(cfg: float = 1.0, *, branches: int = 1, sampler: str = "euler", multiplier: float = 1000.0) -> Sample:
    kinds = ("positive", "negative")[:branches]
    return Sample(
        job_id="0" * 32,
        node_id="3",
        on=ModelRef(model="m", family="null", dtype="F32"),
        sampler=sampler,  # type: ignore[arg-type]
        cfg=cfg,
        timestep_multiplier=multiplier,
        branches=tuple(Branch(kind=kind) for kind in kinds),  # type: ignore[arg-type]
        previews=False,
    )


def tensors(
    batch: int = 3, *, tokens: tuple[int, ...] = (5,), sigmas: tuple[float, ...] = (1.0, 0.5, 0.0)
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {"noise": torch.randn(batch, 2, 4, 6, generator=generator), "sigmas": torch.tensor(sigmas)}
    for index, count in enumerate(tokens):
        made[f"branch.{index}.context"] = torch.randn(1 + index, count, 8, generator=generator)
    return made


def ignore(step: int, denoised: Tensor) -> None:
    """Wants nothing."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_but_the_timestep_is_cast_to_the_compute_dtype(dtype: torch.dtype) -> None:
    adapter = Recorder()
    given = tensors() | {
        "branch.0.concat": torch.randn(1, 7, 4, 6),
        "branch.0.ids": torch.arange(3),
        "branch.0.mask": torch.ones(3, 5) > 0,
    }
    outcome = run_sample(sample(), given, network(adapter, dtype), ignore)
    assert outcome.latent.dtype == outcome.x0.dtype == torch.float32
    for x, timestep, conditioning, _ in adapter.seen:
        assert (x.dtype, timestep.dtype) == (dtype, torch.float32)
        assert conditioning["context"].dtype == dtype
        assert conditioning["ids"].dtype == torch.int64
        assert conditioning["mask"].dtype == dtype
        assert x.shape == (3, 9, 4, 6)
        assert torch.equal(x[:, 2:], given["branch.0.concat"].to(dtype).expand(3, -1, -1, -1))
        assert "concat" not in conditioning


def test_the_timestep_is_sigma_times_the_multiplier_in_float32() -> None:
    adapter = Recorder()
    sigmas = (0.9871, 0.3333, 0.0)
    run_sample(sample(multiplier=1000.0), tensors(sigmas=sigmas), network(adapter), ignore)
    expected = torch.tensor(sigmas[:-1]) * 1000.0
    assert [timestep.tolist() for _, timestep, _, _ in adapter.seen] == [[value] * 3 for value in expected.tolist()]


def test_conditioning_is_repeated_to_the_batch() -> None:
    adapter = Recorder()
    given = tensors(batch=5, tokens=(5, 5))
    run_sample(sample(4.0, branches=2), given, network(adapter), ignore)
    context = adapter.seen[0][2]["context"]
    negative = given["branch.1.context"]
    assert torch.equal(context[:5], given["branch.0.context"].expand(5, -1, -1))
    assert torch.equal(context[5:], torch.cat([negative, negative, negative])[:5])


@pytest.mark.parametrize(("tokens", "calls"), [((5, 5), 2), ((5, 7), 4)], ids=["equal prompts", "unequal prompts"])
def test_prompts_share_a_call_only_when_they_are_equally_long(tokens: tuple[int, ...], calls: int) -> None:
    adapter = Recorder()
    run_sample(sample(4.0, branches=2), tensors(tokens=tokens), network(adapter), ignore)
    assert len(adapter.seen) == calls


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_gives_what_its_pictures_give_one_by_one(sampler: str, masked: bool) -> None:
    given = tensors(tokens=(5, 7), sigmas=(1.0, 0.7, 0.4, 0.1))
    given["latent"] = torch.randn(3, 2, 4, 6)
    given["branch.0.context"], given["branch.1.context"] = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    if masked:
        given["mask"] = torch.rand(3, 1, 4, 6)
    together = run_sample(sample(4.0, branches=2, sampler=sampler), given, network(Recorder()), ignore)
    for row in range(3):
        one = {name: t if name == "sigmas" else t[row : row + 1] for name, t in given.items()}
        alone = run_sample(sample(4.0, branches=2, sampler=sampler), one, network(Recorder()), ignore)
        assert torch.allclose(together.latent[row], alone.latent[0], rtol=1e-6, atol=1e-6)
        assert torch.allclose(together.x0[row], alone.x0[0], rtol=1e-6, atol=1e-6)


def test_where_the_mask_is_zero_the_latent_stays() -> None:
    given = tensors(sigmas=(1.0, 0.5, 0.0)) | {"latent": torch.randn(3, 2, 4, 6), "mask": torch.zeros(1, 1, 4, 6)}
    given["mask"][..., :3] = 1
    outcome = run_sample(sample(), given, network(Recorder()), ignore)
    assert torch.allclose(outcome.latent[..., 3:], given["latent"][..., 3:], atol=1e-6)
    assert not torch.allclose(outcome.latent[..., :3], given["latent"][..., :3], atol=1e-1)


def test_a_run_without_steps_returns_the_latent_at_its_own_scale() -> None:
    given = tensors(sigmas=(0.25,)) | {"latent": torch.randn(3, 2, 4, 6)}
    adapter = Recorder()
    outcome = run_sample(sample(), given, network(adapter), ignore)
    assert adapter.seen == []
    assert torch.allclose(outcome.latent, given["latent"] + given["noise"] / 3, rtol=1e-5, atol=1e-6)
    assert outcome.x0 is outcome.latent


@pytest.mark.parametrize(
    "sigmas", [(1.0, float("nan")), (float("inf"), 0.0), (1.0, -0.5), (0.0, 0.5), (1.0, 0.0, 0.5)], ids=str
)
def test_sigmas_that_no_solver_can_use_are_refused_before_any_call(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(BadRequest, match="sigmas"):
        check_sigmas(torch.tensor(sigmas))


def test_numbers_that_a_family_refuses_are_refused_where_every_rank_sees_them() -> None:
    """Before the branches part: with cfg parallel a rank computes one of them, and must refuse for both."""

    class Picky(Recorder):
        def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
            if bool((conditioning["attention_mask"] == 0).all()):
                raise BadRequest("Give every picture a prompt.")

    good = {"context": torch.ones(1, 5, 8), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}
    prepared = network(Picky()).prepare(good, 2)
    assert prepared["attention_mask"].dtype == torch.int64
    with pytest.raises(BadRequest, match="Give every picture"):
        network(Picky()).prepare(good | {"attention_mask": torch.zeros(1, 5, dtype=torch.int64)}, 2)
