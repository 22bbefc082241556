"""From trained modules to the files that ship: names as ComfyUI's own loaders expect them, half precision, digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...backend.assets.files import AUTOENCODER, DIGESTS, TRANSFORMER, digest_of
from ...backend.models.families.flux import Flux
from ...backend.models.tiny import to_original
from .flow import GEOMETRY

_FLUX_SCALE, _FLUX_SHIFT = 0.3611, 0.1159
"""ComfyUI's latent format of FLUX.1: what a VAE gives is ``latent / scale + shift``. Its TAESD takes the same two numbers."""
_LICENCE: Final = "Apache-2.0"


def write_assets(transformer: Any, autoencoder: Any, folder: Path) -> None:
    """Write both files and their digests below ``folder``."""
    flux = Flux()
    weights = to_original(
        {name: tensor.detach().float() for name, tensor in transformer.state_dict().items()},
        flux.key_map(GEOMETRY),
        flux.spellings,
    )
    _write(folder, TRANSFORMER, {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    _write(folder, AUTOENCODER, taesd_names(autoencoder.state_dict()))
    digests = {name: digest_of(folder / "models" / name) for name in (TRANSFORMER, AUTOENCODER)}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def taesd_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' ``AutoencoderTiny`` -> TAESD, whose decoder counts its clamp as layer 0. float16, dense."""
    named = {}
    for name, tensor in weights.items():
        part, layers, index, leaf = name.split(".", 3)
        if layers != "layers":
            raise ValueError(f"{name} is no parameter of AutoencoderTiny")
        place = int(index) + (part == "decoder")
        named[f"taesd_{part}.{place}.{leaf}"] = tensor.detach().to(torch.float16)
    return named | {"vae_scale": torch.tensor(_FLUX_SCALE), "vae_shift": torch.tensor(_FLUX_SHIFT)}


def _write(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    path = folder / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata={"license": _LICENCE})
    path.chmod(0o644)  # it is written for its owner alone, and read by whoever installs the package
