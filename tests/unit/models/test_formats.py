"""Every checkpoint format gives the network that the same weights as plain numbers give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.errors import BadCheckpoint
from tutti.backend.models.checkpoint import open_checkpoint
from tutti.backend.models.packed import Packed, PackedRows
from tutti.backend.models.registry import load_model

from tests.support import quantised
from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.meshes import single_rank_mesh
from tests.support.parity import relative_error

EXACT = 1e-6
"""Both sides compute with the same float32 numbers."""
TINY = {"hidden": 256, "depth": 1, "depth_single": 1}

Rewrite = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]

COMFY: dict[str, Rewrite] = {
    **{name: partial(quantised.comfy_tensors, format=name) for name in quantised.COMFY},
    "int8_tensorwise, ConvRot": partial(quantised.comfy_tensors, format="int8_tensorwise", convrot=True),
    "scaled fp8 of old": quantised.old_scaled_fp8,
    "scaled fp8 of old, with a prefix": partial(quantised.old_scaled_fp8, prefix="model.diffusion_model."),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "tiny.safetensors"
    write_tiny_flux(path, **TINY)
    return path


def velocity(path: Path) -> Tensor:
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    model.bind(single_rank_mesh())
    x, timestep, conditioning = FluxCall(height=6, width=4, tokens=3).tensors()
    return model.adapter.velocity(x, timestep, conditioning, {})


@pytest.mark.parametrize("name", COMFY)
def test_a_quantised_layout_of_comfyuis_is_read_as_its_numbers(name: str, tiny: Path, tmp_path: Path) -> None:
    plain = quantised.rewritten(tiny, COMFY[name], out=tmp_path / "quantised.safetensors")
    ours, expected = velocity(tmp_path / "quantised.safetensors"), velocity(plain)
    assert relative_error(ours, expected) <= EXACT
    assert relative_error(ours, velocity(tiny)) > 100 * EXACT, "the control: packing loses something"


@pytest.mark.parametrize("type_name", [*quantised.GGUF_TYPES, *quantised.GGUF_K_TYPES])
def test_gguf_is_read_as_its_numbers(type_name: str, tiny: Path, tmp_path: Path) -> None:
    values = quantised.write_gguf(tmp_path / "tiny.gguf", load_file(tiny), type_name)
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, tmp_path / "plain.safetensors")
    ours = velocity(tmp_path / "tiny.gguf")
    assert relative_error(ours, velocity(tmp_path / "plain.safetensors")) <= EXACT
    assert relative_error(ours, velocity(tiny)) > 10 * EXACT, "the control: packing loses something"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_plain_fp8_is_read_as_its_numbers(dtype: torch.dtype, tiny: Path, tmp_path: Path) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in load_file(tiny).items()}, tmp_path / "fp8.safetensors")
    numbers = {name: tensor.to(dtype).float() for name, tensor in load_file(tiny).items()}
    save_file(numbers, tmp_path / "plain.safetensors")
    ours = velocity(tmp_path / "fp8.safetensors")
    assert relative_error(ours, velocity(tmp_path / "plain.safetensors")) <= EXACT
    assert relative_error(ours, velocity(tiny)) > 100 * EXACT, "the control: packing loses something"


STORED: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "scaled fp8": lambda plain, path: save_file(quantised.old_scaled_fp8(plain)[0], path),
    "nvfp4": lambda plain, path: save_file(quantised.comfy_tensors(plain, "nvfp4")[0], path),
    "Q4_0": lambda plain, path: quantised.write_gguf(path, plain, "Q4_0"),
}


@pytest.mark.parametrize("name", STORED)
def test_a_quantised_model_takes_the_size_of_its_file_in_memory(name: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / ("tiny.gguf" if name.startswith("Q") else "tiny.safetensors")
    STORED[name](load_file(tiny), path)
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    assert model.size_bytes <= 1.02 * path.stat().st_size
    assert model.size_bytes < 0.6 * tiny.stat().st_size
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    ranges = [tuple(int(address, 16) for address in line.split()[0].split("-")) for line in mapped]
    packed = [
        module.packed
        for module in model.adapter.network.modules()  # type: ignore[attr-defined]
        if isinstance(module, Packed) and not isinstance(module, PackedRows)
    ]
    assert packed
    assert all(any(start <= tensor.data_ptr() < end for start, end in ranges) for tensor in packed), "views of the file"


@pytest.mark.parametrize("name", STORED)
def test_packed_weights_move_with_the_network(name: str, tiny: Path, tmp_path: Path) -> None:
    """The device without memory stands for a GPU: no part of a fused tensor, and no scale, stays behind."""
    path = tmp_path / ("tiny.gguf" if name.startswith("Q") else "tiny.safetensors")
    STORED[name](load_file(tiny), path)
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    network: torch.nn.Module = model.adapter.network  # type: ignore[attr-defined]
    network.to("meta")
    packed = [module for module in network.modules() if isinstance(module, Packed)]
    assert {module.unpack(torch.float32).device.type for module in packed} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", *STORED])
def test_what_the_weights_take_is_known_before_they_are_read(
    name: str, dtype: torch.dtype, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / ("tiny.gguf" if name.startswith("Q") else "tiny.safetensors")
    if name == "plain":
        shutil.copy(tiny, path)
    else:
        STORED[name](load_file(tiny), path)
    said: list[int] = []
    model = load_model(
        path,
        dtype=dtype,
        device=torch.device("cpu"),
        progress=lambda _: None,
        make_room=lambda weight_bytes: said.append(weight_bytes(dtype)),
    )
    assert said[0] == pytest.approx(model.size_bytes, rel=0.01)


def test_ranks_of_a_host_share_converted_weights(tiny: Path, tmp_path: Path) -> None:
    shared_file = tmp_path / "shared" / "model.safetensors"

    def load(shared: Path | None) -> Tensor:
        model = load_model(
            tiny, dtype=torch.bfloat16, device=torch.device("cpu"), progress=lambda _: None, shared_file=shared
        )
        model.bind(single_rank_mesh())
        x, timestep, conditioning = FluxCall(height=6, width=4, tokens=3).tensors()
        return model.adapter.velocity(x, timestep, conditioning, {})

    assert torch.equal(load(shared_file), load(None))
    assert shared_file.stat().st_mode & 0o077 == 0
    written = shared_file.stat().st_mtime_ns
    load(shared_file)
    assert shared_file.stat().st_mtime_ns == written, "the second rank maps what the first one wrote"


def test_shards_are_one_checkpoint_whichever_of_them_is_named(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny)
    names = sorted(tensors)
    for number in (1, 2, 3):
        part = {name: tensors[name] for name in names[number - 1 :: 3]}
        save_file(part, tmp_path / f"tiny-{number:05}-of-00003.safetensors")
    for number in (1, 3):
        ours = velocity(tmp_path / f"tiny-{number:05}-of-00003.safetensors")
        assert relative_error(ours, velocity(tiny)) <= EXACT


def test_a_missing_shard_is_named(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny, tmp_path / "tiny-00001-of-00002.safetensors")
    with pytest.raises(BadCheckpoint, match=r"1 of its 2 parts are missing, tiny-00002-of-00002"):
        velocity(tmp_path / "tiny-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("double_blocks.0.img_attn.qkv.weight_scale"), "weight_scale of a quantised weight is missing"),
        (
            lambda t: t.update({"double_blocks.0.img_attn.qkv.comfy_quant": quantised.as_bytes({"format": "int3"})}),
            "stored as 'int3', and float8_e4m3fn",
        ),
        (
            lambda t: t.update({"double_blocks.0.img_attn.qkv.comfy_quant": torch.tensor([1, 2], dtype=torch.uint8)}),
            "not readable",
        ),
        (lambda t: t.update({"some.weight_scale": torch.ones(1)}), "some.weight_scale"),
        (lambda t: t.update({"img_in.pre_quant_scale": torch.ones(1)}), "img_in.pre_quant_scale"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], says: str, tiny: Path, tmp_path: Path
) -> None:
    stored, _ = quantised.comfy_tensors(load_file(tiny), "float8_e4m3fn")
    change(stored)
    save_file(stored, tmp_path / "changed.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        velocity(tmp_path / "changed.safetensors")


QKV = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    ("format", "changed", "says"),
    [
        ("nvfp4", {"weight_scale": torch.zeros(128, 4).to(torch.float8_e4m3fn)}, "weight_scale is of another size"),
        ("nvfp4", {"weight_scale_2": torch.ones(2)}, "weight_scale_2 is of another size"),
        ("nvfp4", {"weight": torch.zeros(8, 8)}, "no matrix of nvfp4"),
        ("nvfp4", {"weight": torch.zeros((), dtype=torch.uint8)}, "no matrix of nvfp4"),
        ("mxfp8", {"weight_scale": torch.zeros(1, dtype=torch.uint8)}, "weight_scale is of another size"),
        ("int8_tensorwise", {"weight_scale": torch.ones(3)}, "weight_scale is of another size"),
        ("float8_e4m3fn", {"weight": torch.zeros(()).to(torch.float8_e4m3fn)}, "no matrix of float8_e4m3fn"),
        (
            "int8_tensorwise",
            {"comfy_quant": quantised.as_bytes({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 7})},
            "not readable",
        ),
    ],
)
def test_a_damaged_quantised_weight_is_refused_before_it_is_used(
    format: str, changed: dict[str, Tensor], says: str, tiny: Path, tmp_path: Path
) -> None:
    stored, _ = quantised.comfy_tensors(load_file(tiny), format)
    stored |= {f"{QKV}.{name}": tensor for name, tensor in changed.items()}
    save_file(stored, tmp_path / "damaged.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        open_checkpoint(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("kept", [0, 3, 100, 10_000])
def test_a_truncated_gguf_file_is_refused(kept: int, tiny: Path, tmp_path: Path) -> None:
    quantised.write_gguf(tmp_path / "tiny.gguf", load_file(tiny), "Q8_0")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:kept])
    with pytest.raises(BadCheckpoint):
        velocity(tmp_path / "cut.gguf")


def test_a_gguf_type_that_is_not_read_is_named_with_those_that_are(tiny: Path, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(tmp_path / "odd.gguf", "flux")
    packed = torch.zeros(256, 66, dtype=torch.uint8).numpy()
    writer.add_tensor("double_blocks.0.img_attn.qkv.weight", packed, raw_dtype=GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadCheckpoint, match=r"is IQ2_XXS, and .*Q4_K"):
        velocity(tmp_path / "odd.gguf")
