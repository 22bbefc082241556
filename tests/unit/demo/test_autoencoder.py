"""The shipped autoencoder's file in diffusers: the same network as the one that was trained, under its names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tutti.backend.demo.autoencoder import decode, diffusers_names, load_autoencoder
from tutti.benchmarks.demo_model.autoencoder import new_autoencoder
from tutti.benchmarks.demo_model.export import taesd_names


def test_names_go_there_and_come_back() -> None:
    weights = {name: tensor.half() for name, tensor in new_autoencoder().state_dict().items()}
    back = diffusers_names(taesd_names(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_file_decodes_as_the_trained_network_does(tmp_path: Path) -> None:
    trained = new_autoencoder().half().float()
    save_file({name: tensor.contiguous() for name, tensor in taesd_names(trained.state_dict()).items()}, tmp_path / "v.safetensors")  # fmt: skip
    latents = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    pictures = decode(load_autoencoder(tmp_path / "v.safetensors"), latents)
    assert pictures.shape == (2, 32, 48, 3)
    with torch.no_grad():
        expected = ((trained.decoder(latents).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    # Rounded to whole numbers; another memory layout may sum in another order.
    assert (pictures - expected).abs().max() <= 0.5 + 1e-3
    other = decode(load_autoencoder(tmp_path / "v.safetensors"), latents + 1)
    assert (pictures.float() - other.float()).abs().max() > 1, "the control: the latent matters"


@pytest.mark.parametrize("name", ["decoder.conv_in.weight", "taesd_decoder.x.weight", "vae.1.weight"])
def test_a_file_with_other_names_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no parameter of TAESD"):
        diffusers_names({name: torch.zeros(1)})
