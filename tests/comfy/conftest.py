"""Real ComfyUI servers, one stock and one with the pack, and real daemons for the second one to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.comfy.rig import CHECKPOINT, FIXTURE_NODES, MAIN_VERSION, PACKS, POOLED_WIDTH, TEXT_WIDTH, Stock, needs
from tests.support import comfyui, daemon
from tests.support.checkpoints import write_tiny_flux
from tests.support.comfyui import ComfyServer
from tests.support.daemon import Daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts servers: mark it so, and allow for a slow first start."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.comfy)
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with small random checkpoints; 4 heads, so that every plan of up to 4 ranks is legal."""
    folder = tmp_path_factory.mktemp("models")
    files = folder / "diffusion_models"
    files.mkdir()
    geometry = {"hidden": 512, "depth": 1, "depth_single": 2, "context_dim": TEXT_WIDTH, "pooled_dim": POOLED_WIDTH}
    write_tiny_flux(files / CHECKPOINT, **geometry)
    write_tiny_flux(files / "schnell.safetensors", guidance=False, prefix="model.diffusion_model.", **geometry)
    write_tiny_flux(files / "diffusers.safetensors", format="diffusers", **geometry)
    write_tiny_flux(files / "bf16.safetensors", dtype=torch.bfloat16, **geometry)
    write_tiny_flux(files / "fill.safetensors", in_channels=96, **geometry)
    (files / "damaged.safetensors").write_bytes((files / CHECKPOINT).read_bytes()[:5000])
    return folder


@pytest.fixture(scope="session")
def stock(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The reference of every comparison."""
    needs(MAIN_VERSION)
    base = tmp_path_factory.mktemp("stock")
    with comfyui.running(MAIN_VERSION, base, packs={"fixture_nodes": FIXTURE_NODES}, models=models) as server:
        yield Stock(server)


@pytest.fixture(scope="session")
def comfy_state_dir() -> Iterator[Path]:
    """Where the ComfyUI with the pack looks for its daemon."""
    with daemon.private_state_dir() as path:
        yield path


@pytest.fixture(scope="session")
def comfy(models: Path, comfy_state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """ComfyUI with the pack. Daemons come and go; it finds the present one by itself."""
    needs(MAIN_VERSION)
    environment = {"TUTTI_STATE_DIR": str(comfy_state_dir), "TUTTI_START_DAEMON": "0"}
    base = tmp_path_factory.mktemp("comfy")
    with comfyui.running(MAIN_VERSION, base, packs=PACKS, models=models, environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def two_ranks(models: Path, comfy_state_dir: Path) -> Iterator[Daemon]:
    """Two CPU ranks, ulysses 2."""
    with daemon.running(models, comfy_state_dir, ranks=2, plan="ulysses=2,ring=1") as started:
        yield started
