"""Local attention, the merge of partial results, and the operator on one rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.backend.errors import InternalError
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.merge import Merger
from tutti.backend.parallel.partition import Partition
from tutti.backend.parallel.providers import Attended, AttentionProvider, CpuFlash, MathFallback, choose_provider
from tutti.backend.parallel.schedules.call import pack_keys
from tutti.backend.parallel.usp import CallContext, attend, running_call, usp_operator

from tests.support.meshes import single_rank_mesh
from tests.support.parity import relative_error

CPU = torch.device("cpu")
# The rounding of one attention in each dtype, as a share of the largest value: a few units in the last place.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
    scores = q.double() @ k.double().transpose(-1, -2) * scale
    return Attended(scores.softmax(-1) @ v.double(), scores.logsumexp(-1))


@pytest.mark.parametrize("provider", [CpuFlash(), MathFallback()], ids=lambda provider: provider.name)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("batch", "queries", "keys", "head_dim"), [(1, 7, 13, 128), (3, 1, 1, 16), (2, 40, 5, 24)])
def test_a_provider_gives_output_and_log_sum_exp(
    provider: AttentionProvider, dtype: torch.dtype, batch: int, queries: int, keys: int, head_dim: int
) -> None:
    q = draw(batch, 2, queries, head_dim, dtype=dtype, seed=1)
    k, v = (draw(batch, 2, keys, head_dim, dtype=dtype, seed=seed) for seed in (2, 3))
    got, expected = provider(q, k, v, 0.3), exact(q, k, v, 0.3)
    assert got.out.dtype == dtype
    assert relative_error(got.out, expected.out) <= TOLERANCE[dtype]
    assert relative_error(got.lse, expected.lse) <= TOLERANCE[dtype]


def test_the_check_of_providers_notices_another_scale() -> None:
    q, k, v = (draw(1, 2, 9, 16, seed=seed) for seed in (1, 2, 3))
    assert relative_error(CpuFlash()(q, k, v, 0.301).out, exact(q, k, v, 0.3).out) > 10 * TOLERANCE[torch.float32]


def test_providers_take_strided_views() -> None:
    fused = draw(9, 3, 2, 4, 16)  # tokens, (q k v), batch, heads, head_dim
    q, k, v = fused.permute(1, 2, 3, 0, 4).unbind(0)
    assert not q.is_contiguous()
    assert relative_error(CpuFlash()(q, k, v, 0.25).out, exact(q, k, v, 0.25).out) <= TOLERANCE[torch.float32]


def test_the_choice_depends_on_device_and_dtype_only() -> None:
    assert choose_provider(CPU, torch.float32, 128).name == "torch-cpu-flash"
    assert choose_provider(torch.device("cuda"), torch.float32, 128).name == "torch-cuda-efficient"
    assert choose_provider(torch.device("cuda"), torch.float64, 128).name == "math"
    with pytest.raises(InternalError):
        choose_provider(CPU, torch.int32, 128)


@pytest.mark.parametrize("pieces", [(13,), (5, 8), (1, 11, 1)])
def test_merged_parts_equal_the_whole(pieces: tuple[int, ...]) -> None:
    q, k, v = draw(2, 3, 7, 32, seed=1), draw(2, 3, 13, 32, seed=2), draw(2, 3, 13, 32, seed=3)
    merger = Merger()
    for part_k, part_v in zip(k.split(pieces, 2), v.split(pieces, 2), strict=True):
        merger.add(CpuFlash()(q, part_k, part_v, 0.2))
    assert relative_error(merger.result(q.dtype, q.shape, CPU), exact(q, k, v, 0.2).out) <= TOLERANCE[torch.float32]


def test_parts_with_very_different_sums_merge_without_overflow() -> None:
    q, k, v = 30 * draw(1, 1, 4, 16, seed=1), 30 * draw(1, 1, 10, 16, seed=2), draw(1, 1, 10, 16, seed=3)
    merger = Merger()
    for part in (slice(0, 5), slice(5, 10)):
        merger.add(CpuFlash()(q, k[:, :, part], v[:, :, part], 1.0))
    assert relative_error(merger.result(q.dtype, q.shape, CPU), exact(q, k, v, 1.0).out) <= 1e-5


def test_nothing_to_attend_to_gives_zeros() -> None:
    assert Merger().result(torch.bfloat16, torch.Size((1, 2)), CPU).tolist() == [[0.0, 0.0]]


def test_padded_keys_are_dropped_while_they_are_packed() -> None:
    k, v = draw(2, 5, 3, 4, seed=1), draw(2, 5, 3, 4, seed=2)
    assert pack_keys(k, v, None).equal(torch.stack((k, v)))
    assert pack_keys(k, v, torch.tensor([0, 3])).equal(torch.stack((k[:, [0, 3]], v[:, [0, 3]])))


@pytest.fixture
def call() -> CallContext:
    return CallContext(Partition.equal({"image": 9}, ring=1, ulysses=1), Exchange(single_rank_mesh(), RawCodec()))


def test_the_operator_keeps_torchs_rules(call: CallContext) -> None:
    q, k, v = (draw(2, 9, 4, 16, seed=seed) for seed in (1, 2, 3))
    with running_call(call):
        torch.library.opcheck(usp_operator(), (q, k, v, torch.zeros(1), 0.25))


def test_the_operator_counts_its_calls_and_never_touches_its_token(call: CallContext) -> None:
    q, k, v = (draw(2, 9, 4, 16, seed=seed) for seed in (1, 2, 3))
    token = torch.zeros(1)
    with running_call(call):
        out = usp_operator()(q, k, v, token, 0.25)
        usp_operator()(q, k, v, token, 0.25)
    assert call.attentions == 2
    assert token.item() == 0
    expected = exact(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.25).out.transpose(1, 2)
    assert relative_error(out, expected) <= TOLERANCE[torch.float32]


def test_the_operator_attends_to_the_streams_that_it_is_told() -> None:
    partition = Partition.equal({"text": 3, "image": 9}, ring=1, ulysses=1)
    call = CallContext(partition, Exchange(single_rank_mesh(), RawCodec()))
    q, k, v = (draw(2, 9, 4, 16, seed=seed) for seed in (1, 2, 3))
    with running_call(call):
        out = usp_operator()(q, k, v, torch.zeros(1), 0.25, "image")
        with pytest.raises(InternalError, match="9 tokens, but this rank holds 12"):
            usp_operator()(q, k, v, torch.zeros(1), 0.25)
    expected = exact(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.25).out.transpose(1, 2)
    assert relative_error(out, expected) <= TOLERANCE[torch.float32]


def test_an_attention_outside_a_model_call_is_a_bug_and_said_so() -> None:
    q = draw(1, 4, 2, 16)
    with pytest.raises(InternalError, match="outside a model call"):
        attend(q, q, q, 1.0)


def test_a_length_that_nobody_announced_is_refused(call: CallContext) -> None:
    q = draw(1, 8, 2, 16)
    with running_call(call), pytest.raises(InternalError, match="8 tokens"):
        attend(q, q, q, 1.0)
