"""LoRA files: every key is understood or named, changes go in and out without a trace, and all ranks of a host share them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from tutti.backend.errors import BadCheckpoint, OutOfMemory
from tutti.backend.models.checkpoint import open_checkpoint
from tutti.backend.models.families.flux import Flux, FluxGeometry
from tutti.backend.models.host_share import Shared, forget, shared_tensors
from tutti.backend.models.lora.adapters import Adapter, Patch, patch_weight
from tutti.backend.models.lora.read import Target, read_lora, targets_of
from tutti.backend.models.lora.variant import OriginalWeights, Variant, merged_weights
from tutti.backend.models.lora.variants import NONE, Lora
from tutti.backend.models.registry import load_model

from tests.support import loras, quantised
from tests.support.checkpoints import write_tiny_flux

CPU = torch.device("cpu")
GEOMETRY = FluxGeometry(
    hidden=256, depth=1, depth_single=1, in_channels=16, out_channels=16, context_dim=64, pooled_dim=32, guidance=True
)
LAYER = "diffusion_model.double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    return targets_of(Flux(), GEOMETRY)


def original(path: Path) -> OriginalWeights:
    return OriginalWeights(Flux(), GEOMETRY, open_checkpoint(path))


def some_lora(layer: str = LAYER, rows: int = 768, columns: int = 256) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.ones(2, columns), f"{layer}.lora_B.weight": torch.ones(rows, 2)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.update({"diffusion_model.nothing.lora_A.weight": torch.ones(1)}),
            "1 of its 3 keys lead to nothing",
        ),
        (lambda t: t.update({f"{LAYER}.surprise": torch.ones(1)}), f"{LAYER}.surprise"),
        (lambda t: t.pop(f"{LAYER}.lora_A.weight"), "half of an adapter, down is missing"),
    ],
)
def test_a_key_that_leads_to_nothing_is_named(
    change: Callable[[dict[str, Tensor]], object], says: str, targets: dict[str, Target]
) -> None:
    tensors = some_lora()
    change(tensors)
    with pytest.raises(BadCheckpoint, match=says):
        read_lora(tensors, targets, strength=1.0)


def test_a_lora_of_another_family_is_said_to_be_one(targets: dict[str, Target]) -> None:
    with pytest.raises(BadCheckpoint, match="Choose a LoRA for this model: none of its 2 keys fits"):
        read_lora(some_lora("diffusion_model.blocks.0.self_attn.q"), targets, strength=1.0)


def test_a_lora_of_another_width_is_refused_by_its_weight(targets: dict[str, Target], tmp_path: Path) -> None:
    write_tiny_flux(tmp_path / "tiny.safetensors", hidden=256, depth=1, depth_single=1)
    patches = read_lora(some_lora(rows=1536), targets, strength=1.0)
    with pytest.raises(BadCheckpoint, match=r"it changes double_blocks\.0\.img_attn\.qkv\.weight"):
        merged_weights(original(tmp_path / "tiny.safetensors"), patches, torch.float32, tmp_path / "merged.safetensors")


def test_patches_are_applied_in_order() -> None:
    weight = torch.ones(2, 3)
    value = Adapter(kind="set", tensors={"value": torch.full((2, 3), 5.0)})
    diff = Adapter(kind="diff", tensors={"value": torch.ones(2, 3)})
    both = [Patch(weight="w", adapter=value), Patch(weight="w", adapter=diff, strength=-2.0)]
    assert torch.equal(patch_weight(weight.clone(), both), torch.full((2, 3), 3.0))
    assert torch.equal(patch_weight(weight.clone(), both[::-1]), torch.full((2, 3), 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_original_weight_may_be_written_to(dtype: torch.dtype, tmp_path: Path) -> None:
    """One that needs no conversion is a view of the mapped file, which the network uses: it is copied."""
    write_tiny_flux(tmp_path / "tiny.safetensors", hidden=256, depth=1, depth_single=1, dtype=dtype)
    weights = original(tmp_path / "tiny.safetensors")
    before = weights.load("img_in.weight").clone()
    weights.load("img_in.weight").zero_()
    assert torch.equal(weights.load("img_in.weight"), before)
    assert bool(before.any())


HOSTILE = {
    "a product that no memory holds": ("lora", {"up": torch.ones(10**6, 1), "down": torch.ones(1, 10**6)}),
    "factors of factors": (
        "lokr",
        {"w1_a": torch.ones(10**6, 1), "w1_b": torch.ones(1, 10**6), "w2": torch.ones(1, 1)},
    ),
    "a Hadamard product": (
        "loha",
        {"w1_a": torch.ones(10**6, 1), "w1_b": torch.ones(1, 10**6), "w2_a": torch.ones(1, 1), "w2_b": torch.ones(1, 1)},
    ),
    "a core of a rank beyond all use": (
        "lokr",
        {"w1": torch.ones(1), "t2": torch.ones(10**6, 1, 1, 1), "w2_a": torch.ones(10**6, 2), "w2_b": torch.ones(1, 3)},
    ),
    "no rank": ("lora", {"up": torch.ones(2, 0), "down": torch.ones(0, 3)}),
    "no dimensions": ("lora", {"up": torch.ones(()), "down": torch.ones(())}),
    "complex numbers": ("diff", {"value": torch.ones(2, 3, dtype=torch.complex64)}),
    "a magnitude without dimensions": ("lora", {"up": torch.ones(2, 1), "down": torch.ones(1, 3), "dora_scale": torch.ones(())}),
    "magnitudes of another size": ("lora", {"up": torch.ones(2, 1), "down": torch.ones(1, 3), "dora_scale": torch.ones(7)}),
    "magnitudes of three dimensions": ("lora", {"up": torch.ones(2, 1), "down": torch.ones(1, 3), "dora_scale": torch.ones(8, 8, 8)}),
    "no magnitudes": ("lora", {"up": torch.ones(2, 1), "down": torch.ones(1, 3), "dora_scale": torch.ones(0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_adapter_is_refused_before_it_takes_memory(name: str) -> None:
    kind, tensors = HOSTILE[name]
    adapter = Adapter(kind=kind, tensors=tensors, alpha=1.0)
    with pytest.raises(BadCheckpoint, match=r"w do not fit one another|Choose a LoRA for this model"):
        patch_weight(torch.ones(2, 3), [Patch(weight="w", adapter=adapter)])


def test_rows_beyond_the_weight_are_refused() -> None:
    adapter = Adapter(kind="diff", tensors={"value": torch.ones(4, 3)})
    with pytest.raises(BadCheckpoint, match="changes the rows 4 to 20 of w, which has 8"):
        patch_weight(torch.ones(8, 3), [Patch(weight="w", adapter=adapter, rows=(4, 20))])


def tiny_checkpoint(folder: Path, stored: str) -> Path:
    path = folder / "tiny.safetensors"
    write_tiny_flux(path, hidden=256, depth=1, depth_single=1)
    if stored == "plain":
        return path
    quantised.write_gguf(folder / "tiny.gguf", load_file(path), "Q8_0")
    return folder / "tiny.gguf"


@pytest.mark.parametrize("stored", ["plain", "packed"])
def test_what_is_taken_out_leaves_the_very_same_weights(
    stored: str, targets: dict[str, Target], tmp_path: Path
) -> None:
    path = tiny_checkpoint(tmp_path, stored)
    flux = Flux()
    model = load_model(path, dtype=torch.float32, device=CPU, progress=lambda _: None)
    network = model.adapter.network  # type: ignore[attr-defined]
    parameters = dict(network.named_parameters())
    to_q = network.transformer_blocks[0].attn.to_q
    before = to_q.weight.clone()
    patches = read_lora(loras.formats(GEOMETRY)["kohya"], targets, strength=1.0)
    variant = Variant(network, flux.key_map(GEOMETRY).source)
    merged = merged_weights(original(path), patches, torch.float32, tmp_path / "merged.safetensors").tensors
    variant.apply(merged, CPU)
    x = torch.randn(1, 256)
    changed = to_q(x) - torch.nn.functional.linear(x, before, to_q.bias)
    assert float(changed.abs().max()) > 0.01
    variant.remove()
    assert torch.equal(to_q.weight, before)
    assert {name: id(parameter) for name, parameter in network.named_parameters()} == {
        name: id(parameter) for name, parameter in parameters.items()
    }, "the same parameters: nothing compiled is compiled again"


@pytest.mark.parametrize(("stored", "graphs"), [("plain", 1), ("packed", 2)])
def test_a_swap_compiles_nothing_anew(stored: str, graphs: int, tmp_path: Path) -> None:
    """A packed weight has a graph of its own, with the unpacking in it; from the first LoRA on both are there."""
    path = tmp_path / "tiny.safetensors"
    write_tiny_flux(path, hidden=256, depth=1, depth_single=1)
    if stored == "packed":
        save_file(quantised.old_scaled_fp8(load_file(path))[0], tmp_path / "fp8.safetensors")
        path = tmp_path / "fp8.safetensors"
    save_file(loras.formats(GEOMETRY)["kohya"], tmp_path / "lora.safetensors")
    model = load_model(path, dtype=torch.float32, device=CPU, progress=lambda _: None)
    variants = model.variants
    assert variants is not None
    block = model.adapter.network.transformer_blocks[0]  # type: ignore[attr-defined]
    x = torch.randn(1, 256)

    def layers(x: Tensor) -> Tensor:
        queries: Tensor = block.attn.to_q(x)
        return block.ff(queries) + queries

    counter = CompileCounter()
    compiled = torch.compile(layers, backend=counter, fullgraph=True)
    keys = [
        variants.prepare(
            [Lora(path=str(tmp_path / "lora.safetensors"), fingerprint="1", strength=strength)],
            identity="x",
            folder=tmp_path / "variants",
        )
        for strength in (1.0, -0.5)
    ]
    outputs = {}
    for key in (NONE, *keys, NONE, *keys):
        variants.switch(key)
        outputs[key] = compiled(x)
        assert torch.equal(outputs[key], layers(x))
    assert counter.frame_count == graphs
    assert not torch.equal(outputs[keys[0]], outputs[keys[1]]), "the control: the swap changes something"
    variants.close()


def test_a_file_in_diffusers_naming_has_the_same_original_weights(tmp_path: Path) -> None:
    for name, format in (("one", "bfl"), ("other", "diffusers")):
        write_tiny_flux(tmp_path / f"{name}.safetensors", hidden=256, depth=1, depth_single=1, format=format)  # type: ignore[arg-type]
    one, other = original(tmp_path / "one.safetensors"), original(tmp_path / "other.safetensors")
    for name in ("single_blocks.0.linear1.weight", "final_layer.adaLN_modulation.1.weight", "img_in.bias"):
        assert torch.equal(one.load(name), other.load(name))
        assert one.shape(name) == other.shape(name) == tuple(one.load(name).shape)


def test_a_part_of_a_weight_is_named_in_brackets(targets: dict[str, Target]) -> None:
    tensors = some_lora(f"{LAYER}[256:512]", rows=256)
    (patch,) = read_lora(tensors, targets, strength=1.0)
    assert (patch.weight, patch.rows, patch.swap_halves) == ("double_blocks.0.img_attn.qkv.weight", (256, 512), False)
    (patch,) = read_lora(some_lora(f"{LAYER}[swapped]"), targets, strength=1.0)
    assert (patch.rows, patch.swap_halves) == (None, True)
    for odd in ("[1:2", "[x]", "[256:512][odd]"):
        with pytest.raises(BadCheckpoint, match="none of its 2 keys fits"):
            read_lora(some_lora(f"{LAYER}{odd}"), targets, strength=1.0)


def test_ranks_of_one_host_compute_changed_weights_once(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Tensor:
        made.append(name)
        return torch.arange(4.0)

    def share(_: int) -> Shared:
        return shared_tensors(tmp_path / "variant.safetensors", {"w": (4,)}, torch.bfloat16, make)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(share, range(4)))
    assert made == ["w"]
    assert all(torch.equal(result.tensors["w"], torch.arange(4.0).bfloat16()) for result in results)
    assert len({result.checksum for result in results}) == 1


def test_where_nothing_can_be_shared_each_rank_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = {"w": (3, 5), "b": (7,)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    shared = shared_tensors(tmp_path / "a" / "x.safetensors", shapes, torch.float32, values.__getitem__)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    alone = shared_tensors(tmp_path / "b" / "x.safetensors", shapes, torch.float32, values.__getitem__)
    assert "each rank keeps its own copy" in caplog.text
    assert not (tmp_path / "b" / "x.safetensors").exists()
    assert all(torch.equal(alone.tensors[name], shared.tensors[name]) for name in shapes)
    assert alone.checksum == shared.checksum
    values["w"][2, 4] += 1
    other = shared_tensors(tmp_path / "c" / "x.safetensors", shapes, torch.float32, values.__getitem__)
    assert other.checksum != shared.checksum, "the control: other values, another checksum"


def test_nobody_forgets_what_another_rank_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    begun, may_end = threading.Event(), threading.Event()

    def make(name: str) -> Tensor:
        begun.set()
        assert may_end.wait(20)
        return torch.full((4,), 7.0)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(shared_tensors, path, {"w": (4,)}, torch.float32, make)
        assert begun.wait(20)
        forget(path)
        may_end.set()
        assert torch.equal(other.result(20).tensors["w"], torch.full((4,), 7.0))
    assert path.exists()
    forget(path)
    assert not path.exists()


def test_ranks_without_room_for_copies_of_their_own_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**12))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OutOfMemory, match=r"Free 0\.0 GB where the daemon keeps its state"):
        shared_tensors(tmp_path / "x.safetensors", {"w": (4,)}, torch.float32, lambda _: torch.ones(4))


def test_a_disk_that_fills_up_while_writing_leaves_nothing_half_written(tmp_path: Path) -> None:
    def make(name: str) -> Tensor:
        if name == "b":
            raise OSError(28, "No space left on device")
        return torch.zeros(3)

    with pytest.raises(OSError, match="No space"):  # alone it is made again, and fails again: nothing else could
        shared_tensors(tmp_path / "x.safetensors", {"a": (3,), "b": (3,)}, torch.float32, make)
    assert {path.name for path in tmp_path.iterdir()} == {"x.lock"}


@pytest.mark.parametrize("stored", ["plain", "packed"])
def test_a_set_that_does_not_go_in_leaves_the_network_as_it_was(
    stored: str, targets: dict[str, Target], tmp_path: Path
) -> None:
    path = tiny_checkpoint(tmp_path, stored)
    model = load_model(path, dtype=torch.float32, device=CPU, progress=lambda _: None)
    network = model.adapter.network  # type: ignore[attr-defined]
    patches = read_lora(loras.formats(GEOMETRY)["full difference"], targets, strength=1.0)
    merged = merged_weights(original(path), patches, torch.float32, tmp_path / "merged.safetensors").tensors
    x = torch.randn(1, 256)
    to_q = network.transformer_blocks[0].attn.to_q
    before = to_q(x)
    variant = Variant(network, Flux().key_map(GEOMETRY).source)
    variant.apply(merged, CPU)
    assert not torch.equal(to_q(x), before), "weights and biases are changed"
    variant.remove()
    assert torch.equal(to_q(x), before)
    last = list(merged)[-1]
    with pytest.raises(AttributeError):
        variant.apply({**merged, last: None}, CPU)  # type: ignore[dict-item]
    assert torch.equal(to_q(x), before), "what went in before it failed is out again"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{LAYER}.lora_A.weight"), "half of an adapter"),
        (lambda t: [t.pop(f"{LAYER}.lora_A.weight"), t.pop(f"{LAYER}.lora_B.weight"), t.update({f"{LAYER}.alpha": torch.tensor(1.0)})], "half of an adapter"),
        (lambda t: t.update({f"{LAYER}.lora_down.weight": torch.ones(2, 2)}), "says twice"),
        (lambda t: t.update({f"{LAYER}.alpha": torch.ones(3)}), "is no single number"),
        (lambda t: t.update({f"{LAYER}.lokr_w1": torch.ones(2, 2)}), "half of an adapter"),
        (lambda t: t.update({"lora_te1_text_model.x.lora_up.weight": torch.ones(2, 2)}), "Load this LoRA with ComfyUI's own Load LoRA node"),
    ],
)  # fmt: skip
def test_half_a_lora_is_named(
    change: Callable[[dict[str, Tensor]], object], says: str, targets: dict[str, Target]
) -> None:
    tensors = some_lora()
    change(tensors)
    with pytest.raises(BadCheckpoint, match=says):
        read_lora(tensors, targets, strength=1.0)


def test_tensors_that_do_not_fit_one_another_are_refused_by_their_weight(
    targets: dict[str, Target], tmp_path: Path
) -> None:
    write_tiny_flux(tmp_path / "tiny.safetensors", hidden=256, depth=1, depth_single=1)
    tensors = some_lora()
    tensors[f"{LAYER}.lora_A.weight"] = tensors[f"{LAYER}.lora_A.weight"][:-1]
    patches = read_lora(tensors, targets, strength=1.0)
    with pytest.raises(BadCheckpoint, match="do not fit one another"):
        merged_weights(original(tmp_path / "tiny.safetensors"), patches, torch.float32, tmp_path / "merged.safetensors")
