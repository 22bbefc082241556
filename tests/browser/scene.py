"""The ComfyUI that the browser tests look at: the pack, the models that the shared workflows name, and the input picture of a new ComfyUI."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tests.comfy.rig import FIXTURE_NODES, MAIN_VERSION, POOLED_WIDTH, TEXT_WIDTH
from tests.support import comfyui
from tests.support.checkpoints import write_tiny_flux
from tests.support.comfyui import ComfyServer, comfyui_folder

PACK = "tutti"
"""The pack's folder here. The page cuts a folder's name at its first dot when it looks for help pages, so this one has none."""
FLUX = "flux1-dev.safetensors"
FOLDERS = {
    "TuttiLoadDiffusionModel": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "DualCLIPLoader": "text_encoders",
    "TripleCLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "CheckpointLoaderSimple": "checkpoints",
}
"""Node -> the folder of the files that it names."""


def named_models() -> set[str]:
    """The files below ``models/`` that the shared workflows name. A page that misses one of them draws its node as an error."""
    workflows = [
        json.loads(file.read_text(encoding="utf-8")) for file in (comfyui.REPOSITORY / "workflows").glob("*.json")
    ]
    return {
        f"{FOLDERS[node['type']]}/{value}"
        for workflow in workflows
        for node in workflow["nodes"]
        if node["type"] in FOLDERS
        for value in node["widgets_values"]
        if str(value).endswith(".safetensors")
    }


def write_models(folder: Path) -> None:
    """A small random FLUX.1, and empty files for the rest: only their names are looked at here."""
    for name in named_models():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_tiny_flux(
        folder / "diffusion_models" / FLUX, hidden=512, depth=1, depth_single=2, context_dim=TEXT_WIDTH, pooled_dim=POOLED_WIDTH
    )  # fmt: skip


@contextlib.contextmanager
def serve(folder: Path, state_dir: Path | None = None) -> Iterator[ComfyServer]:
    """Start ComfyUI over the new folders ``folder/models`` and ``folder/base``; its daemon is looked for in `state_dir`."""
    installed = comfyui_folder(MAIN_VERSION)
    if installed is None:
        raise RuntimeError(f"Run `python3 install.py comfyui --version {MAIN_VERSION}` first.")
    write_models(folder / "models")
    pictures = folder / "base" / "input"
    pictures.mkdir(parents=True)
    (pictures / "example.png").symlink_to(installed / "ComfyUI" / "input" / "example.png")
    environment = {"TUTTI_STATE_DIR": str(state_dir or folder / "no-daemon"), "TUTTI_START_DAEMON": "0"}
    packs = {PACK: comfyui.REPOSITORY, "fixture_nodes": FIXTURE_NODES}
    with comfyui.running(
        MAIN_VERSION, folder / "base", packs=packs, models=folder / "models", extra_environment=environment
    ) as server:
        yield server
