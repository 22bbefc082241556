"""FLUX.2: both namings, whose files it takes, and what it refuses before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tutti.backend.errors import BadCheckpoint, BadRequest, TuttiError, UnsupportedFamily, UnsupportedInput, WrongFamily
from tutti.backend.models.adapter import Adapter, CallSpec
from tutti.backend.models.checkpoint import Checkpoint, open_checkpoint
from tutti.backend.models.families.flux import Flux
from tutti.backend.models.families.flux2 import Flux2, Flux2Geometry
from tutti.backend.models.registry import ResidentModel, find_family, load_model
from tutti.backend.models.tiny import Naming, write_tiny

from tests.support.checkpoints import write_tiny_flux

DEV = Flux2Geometry(
    hidden=128, depth=1, depth_single=2, in_channels=128, out_channels=128, context_dim=24, guidance=True
)
KLEIN = replace(DEV, guidance=False)
NAMINGS: tuple[Naming, ...] = ("original", "diffusers")


def load(path: Path) -> ResidentModel:
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)


def weights(model: ResidentModel) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = model.adapter.network.state_dict()  # type: ignore[attr-defined]
    return state


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny(path, Flux2(), DEV)
    return path


@pytest.fixture(scope="module")
def model(written: Path) -> ResidentModel:
    return load(written)


@pytest.fixture(scope="module")
def adapter(model: ResidentModel) -> Adapter:
    return model.adapter


@pytest.mark.parametrize(
    ("naming", "respell", "prefix"),
    [
        ("original", True, ""),
        ("original", False, "model.diffusion_model."),
        ("diffusers", False, ""),
        ("diffusers", False, "transformer."),
    ],
)
def test_every_naming_gives_the_same_network(
    naming: Naming, respell: bool, prefix: str, model: ResidentModel, tmp_path: Path
) -> None:
    write_tiny(tmp_path / "tiny.safetensors", Flux2(), DEV, naming=naming, respell=respell, prefix=prefix)
    found = load(tmp_path / "tiny.safetensors")
    assert (found.family, found.num_heads) == ("flux2", 1)
    ours, theirs = weights(found), weights(model)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not tensor.equal(theirs[name])] == []


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("geometry", [DEV, KLEIN])
def test_the_geometry_is_read_off_the_shapes(geometry: Flux2Geometry, naming: Naming, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.safetensors", Flux2(), geometry, naming=naming)
    assert Flux2().geometry_of(open_checkpoint(tmp_path / "tiny.safetensors")) == geometry


def test_query_and_key_norms_have_the_epsilon_that_comfyuis_have(model: ResidentModel) -> None:
    """torch's own for the dtype: with diffusers' 1e-6, queries of size 0.01 come out 0.4 per cent smaller."""
    norms = [
        module
        for module in model.adapter.network.modules()  # type: ignore[attr-defined]
        if isinstance(module, nn.RMSNorm)
    ]
    assert len(norms) == 4 * DEV.depth + 2 * DEV.depth_single
    assert {norm.eps for norm in norms} == {None}


def named(names: Iterable[str]) -> Checkpoint:
    """A file of which only the names are looked at."""
    return Checkpoint(None, {name: name for name in names}, {})


@pytest.mark.parametrize("naming", NAMINGS)
def test_flux_1_and_flux_2_refuse_each_others_files(naming: Naming, tmp_path: Path) -> None:
    write_tiny(tmp_path / "2.safetensors", Flux2(), DEV, naming=naming)
    write_tiny_flux(
        tmp_path / "1.safetensors",
        hidden=128,
        depth=1,
        depth_single=1,
        format="bfl" if naming == "original" else "diffusers",
    )
    first, second = (open_checkpoint(tmp_path / f"{number}.safetensors") for number in (1, 2))
    assert (Flux().recognises(first), Flux2().recognises(first)) == (True, False)
    assert (Flux().recognises(second), Flux2().recognises(second)) == (False, True)


@pytest.mark.parametrize(
    "other",
    [
        "vector_in.in_layer.weight",
        "double_blocks.0.img_mod.lin.weight",
        "distilled_guidance_layer.layers.0.in_layer.weight",
        "txt_norm.scale",
        "double_blocks.0.img_mlp.gate_proj.weight",
        "time_text_embed.text_embedder.linear_1.weight",
    ],
)
def test_a_file_with_names_of_a_related_architecture_is_refused(other: str, written: Path) -> None:
    names = open_checkpoint(written).names
    assert find_family(named(names))[0].name == "flux2"
    with pytest.raises(UnsupportedFamily, match="Choose a checkpoint of a family that this release runs"):
        find_family(named([*names, other]))


def test_a_width_that_is_not_whole_heads_is_refused(written: Path, tmp_path: Path) -> None:
    tensors = load_file(written)
    tensors["img_in.weight"] = tensors["img_in.weight"][:100].contiguous()
    save_file(tensors, tmp_path / "narrow.safetensors")
    with pytest.raises(BadCheckpoint, match=r"Choose another checkpoint: .* this one is 100 wide"):
        load(tmp_path / "narrow.safetensors")


GOOD = CallSpec(x_shape=(2, 128, 11, 9), conditioning={"context": (2, 512, 24), "guidance": (2,)})


def with_conditioning(**changes: Any) -> CallSpec:
    merged = {**GOOD.conditioning, **changes}
    return replace(
        GOOD, conditioning={name.replace("__", "."): shape for name, shape in merged.items() if shape is not None}
    )


REFERENCES = with_conditioning(ref_latents__0=(1, 128, 8, 8), ref_latents__1=(2, 128, 5, 3))


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        with_conditioning(guidance=None),
        with_conditioning(context=(2, 1, 24)),
        REFERENCES,
        replace(REFERENCES, options={"ref_latents_method": "index"}),
        replace(REFERENCES, options={"ref_latents_method": "index_timestep_zero"}),
        replace(REFERENCES, options={"ref_latents_method": "offset"}),
        replace(REFERENCES, options={"ref_latents_method": "uxo"}),
    ],
)
def test_a_call_that_comfyui_would_run_is_accepted(request_: CallSpec, adapter: Adapter) -> None:
    adapter.check(request_)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 128, 3, 11, 9)), WrongFamily, "Use an image latent of FLUX.2"),
        (replace(GOOD, x_shape=(2, 16, 11, 9)), WrongFamily, "got 16 channels, this checkpoint takes 128"),
        (with_conditioning(context=None), BadRequest, "Connect a text conditioning"),
        (
            with_conditioning(context=(2, 512, 4096)),
            WrongFamily,
            r"Use the text encoder that belongs to this FLUX.2 \(Mistral .*this FLUX.2 checkpoint takes \[batch, tokens, 24\]",
        ),
        (with_conditioning(context=(1, 512, 24)), BadRequest, "Give context for every picture"),
        (with_conditioning(guidance=(2, 1)), BadRequest, "one number per picture"),
        (with_conditioning(pooled=(2, 768)), UnsupportedInput, "Disconnect what gives pooled: FLUX.2 has no such"),
        (with_conditioning(attention_mask=(2, 512)), UnsupportedInput, "Disconnect what gives attention_mask"),
        (
            with_conditioning(ref_latents__0=(1, 16, 8, 8)),
            WrongFamily,
            "Encode the reference image with the VAE of FLUX.2",
        ),
        (replace(GOOD, options={"frame_rate": 25}), UnsupportedInput, "Disconnect what sets frame_rate"),
        (
            replace(REFERENCES, options={"ref_latents_method": "diagonal"}),
            UnsupportedInput,
            "Choose the reference method index, index_timestep_zero, offset or uxo",
        ),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: Adapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)
