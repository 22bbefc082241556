"""Models stay between jobs; what does not fit goes, the longest unused first, and its memory is free afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tutti.backend.errors import BadCheckpoint, OutOfMemory
from tutti.backend.models.registry import ResidentModel, WeightBytes, load_model
from tutti.backend.worker.memory import Memory
from tutti.backend.worker.null_rank import NullAdapter
from tutti.backend.worker.residency import ModelKey, ResidentModels

from tests.support.checkpoints import write_tiny_flux

CPU = torch.device("cpu")


class CountingLoader:
    """Makes models of 100 bytes without reading a file, and counts."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.weights = 100
        """Bytes that the next models say to take in float32."""
        self.alive: weakref.WeakSet[ResidentModel] = weakref.WeakSet()
        self.fail_next: list[Exception] = []

    def __call__(
        self,
        path: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None],
        make_room: Callable[[WeightBytes], None],
        shared_file: Path | None,
    ) -> ResidentModel:
        self.loaded.append(path.name)
        make_room(lambda dtype: self.weights * dtype.itemsize // 4)
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
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=1000)
    assert get(models, "a") is get(models, "a")
    assert loader.loaded == ["a"]


def test_another_dtype_is_another_model_with_the_same_name() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=1000)
    models.get(key("a"), "a", lambda fraction: None)
    models.get(key("a", dtype=torch.bfloat16), "a", lambda fraction: None)
    assert loader.loaded == ["a", "a"]
    assert models.names == ("a",)


def test_the_longest_unused_model_goes_first() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=250)
    for name in ("a", "b", "a", "c"):
        get(models, name)
    assert models.names == ("c", "a")
    assert len(loader.alive) == 2


def test_a_model_above_the_budget_is_loaded_all_the_same_and_stays_alone() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=50)
    get(models, "a")
    get(models, "b")
    assert models.names == ("b",)
    assert get(models, "b") is not None
    assert loader.loaded == ["a", "b"]


def test_a_changed_file_replaces_the_old_model() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=1000)
    first = weakref.ref(get(models, "a"))
    get(models, "a", fingerprint="2")
    gc.collect()
    assert first() is None
    assert models.names == ("a",)


def test_room_is_made_for_the_weights_before_they_are_read() -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=250)
    get(models, "a")
    loader.weights = 200
    resident: list[int] = []
    models.get(key("big"), "big", lambda _: resident.append(len(loader.alive)))
    assert resident == [0]


def test_what_does_not_fit_is_refused_before_it_is_read_with_what_would(caplog: pytest.LogCaptureFixture) -> None:
    memory, loader = Memory(CPU, 1), CountingLoader()
    models = ResidentModels(loader, memory, budget_bytes=10**18)
    loader.weights = int(memory.free_bytes * 1.5)
    with pytest.raises(
        OutOfMemory, match=r"^Choose the weight dtype BF16 for big \([\d.]+ GB\): its weights take [\d.]+ GB as asked"
    ) as refusal:
        get(models, "big")
    asked = float(str(refusal.value).split("take ")[1].split(" GB")[0])
    assert asked == pytest.approx(loader.weights / 1e9, abs=0.06)
    loader.weights *= 2
    with pytest.raises(
        OutOfMemory, match=r"^Choose a quantised file of big \(fp8 or GGUF\) of less than [\d.]+ GB: its weights"
    ):
        get(models, "big")
    assert models.names == ()
    with caplog.at_level("INFO"):
        loader.weights = 100
        get(models, "small")
    assert "loading small: weights of 0.0 GB" in caplog.text


@pytest.mark.parametrize(
    "error", [OutOfMemory("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_when_memory_runs_out_the_others_go_and_loading_is_tried_again(error: Exception) -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=1000)
    get(models, "a")
    loader.fail_next = [error]
    get(models, "b")
    assert loader.loaded == ["a", "b", "b"]
    assert models.names == ("b",)


@pytest.mark.parametrize("failures", [[BadCheckpoint("x")], [OutOfMemory("x"), OutOfMemory("x")]])
def test_a_model_that_cannot_be_loaded_is_not_kept(failures: list[Exception]) -> None:
    loader = CountingLoader()
    models = ResidentModels(loader, Memory(CPU, 1), budget_bytes=1000)
    get(models, "a")
    loader.fail_next = list(failures)
    with pytest.raises(type(failures[0])):
        get(models, "b")
    assert "b" not in models.names


def test_a_dropped_checkpoint_gives_its_memory_back(tmp_path: Path) -> None:
    """With a real checkpoint: 16 loads one after the other under a budget of one do not add up, shared weights included."""
    path, shared = tmp_path / "tiny.safetensors", tmp_path / "shared"
    write_tiny_flux(path, hidden=512, dtype=torch.bfloat16)
    memory = Memory(CPU, 1)
    models = ResidentModels(load_model, memory, budget_bytes=1, shared_folder=shared)
    first = models.get(ModelKey(path=str(path), fingerprint="0", dtype=torch.float32), "tiny", lambda fraction: None)
    size_bytes, before = first.size_bytes, memory.used_bytes
    del first
    for turn in range(16):
        models.get(ModelKey(path=str(path), fingerprint=str(turn), dtype=torch.float32), "tiny", lambda fraction: None)
    assert memory.used_bytes - before < 4 * size_bytes
    assert models.names == ("tiny",)
    assert len(list(shared.glob("*.safetensors"))) == 1


def test_ranks_with_weights_of_their_own_in_one_memory_share_its_budget() -> None:
    assert Memory(CPU, 4).budget_bytes == pytest.approx(Memory(CPU, 1).budget_bytes / 4, rel=1e-6)
