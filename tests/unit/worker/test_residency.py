"""Models stay between jobs; what does not fit goes, the longest unused first, and its memory is free afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tutti.backend.errors import BadCheckpoint, OutOfMemory
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.worker.null_rank import NullAdapter
from tutti.backend.worker.residency import ModelKey, ResidentModels, model_budget_bytes, used_bytes

from tests.support.checkpoints import write_tiny_flux

CPU = torch.device("cpu")


class CountingLoader:
    """Makes models of 100 bytes without reading a file, and counts."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.alive: weakref.WeakSet[ResidentModel] = weakref.WeakSet()
        self.fail_next: list[Exception] = []

    def __call__(
        self, path: Path, *, dtype: torch.dtype, device: torch.device, progress: Callable[[float], None]
    ) -> ResidentModel:
        self.loaded.append(path.name)
        progress(1.0)
        if self.fail_next:
            raise self.fail_next.pop()
        model = ResidentModel(
            family="null", num_heads=1, dtype=dtype, device=device, size_bytes=100, adapter=NullAdapter()
        )
        self.alive.add(model)
        return model


def key(name: str, fingerprint: str = "1", dtype: torch.dtype = torch.float32) -> ModelKey:
    return ModelKey(path=f"/models/{name}", fingerprint=fingerprint, dtype=dtype)


def get(models: ResidentModels, name: str, **changes: str) -> ResidentModel:
    return models.get(key(name, **changes), name, lambda fraction: None)


def test_a_model_is_loaded_once() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 1000)
    assert get(models, "a") is get(models, "a")
    assert loader.loaded == ["a"]


def test_another_dtype_is_another_model_with_the_same_name() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 1000)
    models.get(key("a"), "a", lambda fraction: None)
    models.get(key("a", dtype=torch.bfloat16), "a", lambda fraction: None)
    assert loader.loaded == ["a", "a"]
    assert models.names == ("a",)


def test_the_longest_unused_model_goes_first() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 250)
    for name in ("a", "b", "a", "c"):
        get(models, name)
    assert models.names == ("c", "a")
    assert len(loader.alive) == 2


def test_a_model_above_the_budget_is_loaded_all_the_same_and_stays_alone() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 50)
    get(models, "a")
    get(models, "b")
    assert models.names == ("b",)
    assert get(models, "b") is not None
    assert loader.loaded == ["a", "b"]


def test_a_changed_file_replaces_the_old_model() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 1000)
    first = weakref.ref(get(models, "a"))
    get(models, "a", fingerprint="2")
    gc.collect()
    assert first() is None
    assert models.names == ("a",)


def test_room_is_made_for_the_size_of_the_file_before_it_is_read(tmp_path: Path) -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 250)
    get(models, "a")
    big = tmp_path / "big.safetensors"
    big.write_bytes(bytes(200))
    resident: list[int] = []
    models.get(
        ModelKey(path=str(big), fingerprint="", dtype=torch.float32),
        "big",
        lambda _: resident.append(len(loader.alive)),
    )
    assert resident == [0]


@pytest.mark.parametrize(
    "error", [OutOfMemory("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_when_memory_runs_out_the_others_go_and_loading_is_tried_again(error: Exception) -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 1000)
    get(models, "a")
    loader.fail_next = [error]
    get(models, "b")
    assert loader.loaded == ["a", "b", "b"]
    assert models.names == ("b",)


@pytest.mark.parametrize("failures", [[BadCheckpoint("x")], [OutOfMemory("x"), OutOfMemory("x")]])
def test_a_model_that_cannot_be_loaded_is_not_kept(failures: list[Exception]) -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, CPU, 1000)
    get(models, "a")
    loader.fail_next = list(failures)
    with pytest.raises(type(failures[0])):
        get(models, "b")
    assert "b" not in models.names


def test_a_dropped_checkpoint_gives_its_memory_back(tmp_path: Path) -> None:
    """With a real checkpoint: 16 loads one after the other under a budget of one do not add up."""
    path = tmp_path / "tiny.safetensors"
    write_tiny_flux(path, hidden=512, dtype=torch.bfloat16)
    models = ResidentModels(load_model, CPU, 1)
    first = models.get(ModelKey(path=str(path), fingerprint="0", dtype=torch.float32), "tiny", lambda fraction: None)
    size_bytes, before = first.size_bytes, used_bytes(CPU)
    del first
    for turn in range(16):
        models.get(ModelKey(path=str(path), fingerprint=str(turn), dtype=torch.float32), "tiny", lambda fraction: None)
    assert used_bytes(CPU) - before < 4 * size_bytes
    assert models.names == ("tiny",)


def test_ranks_that_share_memory_share_the_budget() -> None:
    assert model_budget_bytes(CPU, 4) == pytest.approx(model_budget_bytes(CPU, 1) / 4, rel=1e-6)
