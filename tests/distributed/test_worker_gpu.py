"""The rank process on an NVIDIA GPU: several ranks on one of them, and NCCL at world size 1."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tutti.backend.wire.messages import Failed, Result

from tests.distributed.test_worker_sample import reference
from tests.support.checkpoints import write_tiny_flux
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.rank_leg import RankGroup, running, sample_of, sample_tensors
from tests.support.reference_flux import ReferenceFlux

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: pytest tests/distributed/test_worker_gpu.py"
    ),
]

GROUPS = [(1, "nccl"), (1, "gloo-host-staged"), (2, "gloo-host-staged"), (4, "gloo-host-staged")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, hidden=512, depth=1, depth_single=1)  # 4 heads: ulysses 4 is legal
    return path


def _cancel_in_the_middle(group: RankGroup, checkpoint: Path) -> object:
    tensors = sample_tensors(sigmas=tuple(1 - step / 5000 for step in range(5001)))
    turn = group.prepare(sample_of(tensors, previews=True), tensors, checkpoint)
    group.wait_prepared(turn)
    group.go(turn)
    while not any(message.step > 2 for message in turn.progress):
        group.take(turn)
    group.cancel(turn)
    return group.wait_done(turn).answer


@pytest.mark.parametrize(("world_size", "transport"), GROUPS)
def test_ranks_on_a_gpu_sample_show_previews_cancel_and_go_on(
    world_size: int, transport: str, checkpoint: Path
) -> None:
    inputs, request = {"batch": 3, "tokens": (5, 9), "latent": True, "mask": True}, {"cfg": 4.0, "sampler": "heun"}
    tensors = sample_tensors(**inputs)  # type: ignore[arg-type]
    latent, x0 = reference(ReferenceFlux(load_file(checkpoint)), tensors, "heun", 4.0)
    with running(world_size, environment={"TUTTI_DEVICE": "cuda", "TUTTI_TRANSPORT": transport}) as group:
        for _ in range(2):
            turn = group.run(sample_of(tensors, previews=True, **request), tensors, checkpoint)  # type: ignore[arg-type]
            assert isinstance(turn.answer, Result), turn
            assert relative_error(turn.tensors["latent"], latent) <= FP32_TOLERANCE
            assert relative_error(turn.tensors["x0"], x0) <= FP32_TOLERANCE
            assert turn.previews
            assert all(preview.dtype == torch.bfloat16 for _, preview in turn.previews)
            assert all(done.memory_bytes > 0 for done in turn.done.values())
            answer = _cancel_in_the_middle(group, checkpoint)
            assert isinstance(answer, Failed)
            assert answer.code == "cancelled"
