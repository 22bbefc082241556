"""The attention kernels of an NVIDIA GPU, and the choice among them. TF32 is off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.plan import SCHEDULES
from tutti.backend.parallel.providers import AttentionProvider, MathFallback
from tutti.backend.parallel.providers.cache import TimesCache, versions
from tutti.backend.parallel.providers.case import AttentionCase, draw
from tutti.backend.parallel.providers.check import fault
from tutti.backend.parallel.providers.choice import PROVIDERS, Choices
from tutti.backend.parallel.providers.kernels import CudaCudnn, CudaEfficient, CudaFlash

from tests.support.meshes import single_rank_mesh
from tests.support.providers import case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs an NVIDIA GPU: run `python3 install.py test -- tests/gpu/test_attention_providers.py` on a machine that has one",
    ),
]

KERNELS: list[AttentionProvider] = [CudaFlash(), CudaCudnn(), CudaEfficient()]
SHAPES = [(1, 24, 128, 4608, 4608), (3, 5, 64, 63, 97), (1, 3, 128, 1, 1), (2, 12, 128, 48, 2304)]


def asked(
    dtype: torch.dtype, shape: tuple[int, int, int, int, int], *, exchanged: bool, schedule: str = "ring"
) -> AttentionCase:
    batch, heads, head_dim, queries, keys = shape
    return AttentionCase(
        dtype=dtype,
        batch=batch,
        heads=heads,
        head_dim=head_dim,
        queries=queries,
        keys=keys,
        scale=head_dim**-0.5,
        needs_lse=True,
        from_exchange=exchanged,
        schedule=schedule,
        compacted=True,
    )


@pytest.mark.parametrize("provider", KERNELS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_torchs_kernels_are_right_with_their_log_sum_exp(
    provider: AttentionProvider,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int],
    exchanged: bool,
    schedule: str,
) -> None:
    device = torch.device("cuda", 0)
    if not provider.takes(device, dtype, shape[2]):
        assert dtype == torch.float32
        assert not isinstance(provider, CudaEfficient)
        return
    one = asked(dtype, shape, exchanged=exchanged, schedule=schedule)
    for call in one.calls:
        assert fault(provider, *draw(one, device, call), one.scale, needs_lse=True) is None


def test_the_check_notices_another_scale_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    one = asked(torch.bfloat16, SHAPES[0], exchanged=False)
    q, k, v = draw(one, device)

    class OwnScale(CudaFlash):
        def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float):  # type: ignore[no-untyped-def]
            return super().__call__(q, k, v, 1.2 * scale)

    assert fault(OwnScale(), q, k, v, one.scale, needs_lse=True) is not None


def test_a_right_kernel_is_chosen_and_its_time_kept(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    cache = TimesCache(tmp_path, versions(device))
    one = asked(torch.bfloat16, SHAPES[0], exchanged=False)
    chosen = Choices(PROVIDERS, device, cache).get(one, single_rank_mesh())
    assert chosen.exact
    assert not isinstance(chosen, MathFallback)
    times = cache.get(one.key)
    assert len(times) >= 2
    assert times[chosen.name] <= min(times.values()) / 0.97
    assert case().key not in times
