"""Real ComfyUI servers, one stock and one with the pack, and real daemons for the second one to talk to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tutti.backend.models.families.flux import FluxGeometry
from tutti.backend.wire.codec import Received
from tutti.backend.wire.messages import Branch, ModelRef, Progress, Sample
from tutti.backend.wire.tensors import WireTensor
from tutti.comfy_nodes.tensors import to_wire

from tests.comfy.rig import (
    CHECKPOINT,
    FIXTURE_NODES,
    LORAS,
    MAIN_VERSION,
    ODD_LORA,
    PACKS,
    POOLED_WIDTH,
    TEXT_WIDTH,
    Stock,
    needs,
)
from tests.comfy.served_families import EDITING, SERVED, SMALL_DETECTION
from tests.support import comfyui, daemon, loras
from tests.support.checkpoints import write_tiny_flux
from tests.support.comfyui import ComfyServer
from tests.support.daemon import Daemon
from tests.support.quantised import as_bytes, write_gguf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts servers: mark it so, and allow for a slow first start."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.comfy)
            item.add_marker(pytest.mark.timeout(400))


SIZES: dict[str, int] = {
    "hidden": 512, "depth": 1, "depth_single": 2, "context_dim": TEXT_WIDTH, "pooled_dim": POOLED_WIDTH
}  # fmt: skip


def geometry() -> FluxGeometry:
    """Of the checkpoint that most tests use."""
    return FluxGeometry(**SIZES, in_channels=16, out_channels=16, guidance=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with small random checkpoints; 4 heads, so that every plan of up to 4 ranks is legal."""
    folder = tmp_path_factory.mktemp("models")
    files = folder / "diffusion_models"
    files.mkdir()
    write_tiny_flux(files / CHECKPOINT, **SIZES)
    write_tiny_flux(files / "schnell.safetensors", guidance=False, prefix="model.diffusion_model.", **SIZES)
    write_tiny_flux(files / "diffusers.safetensors", format="diffusers", **SIZES)
    write_tiny_flux(files / "bf16.safetensors", dtype=torch.bfloat16, **SIZES)
    write_tiny_flux(files / "fill.safetensors", in_channels=96, **SIZES)
    values = write_gguf(files / "q8.gguf", load_file(files / CHECKPOINT), "Q8_0")
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, files / "q8-as-numbers.safetensors")
    (files / "sub").mkdir()
    write_tiny_flux(files / "sub" / "folder.safetensors", seed=5, **SIZES)
    for family in {served.file: served for served in (*SERVED.values(), *EDITING.values())}.values():
        family.write(files)
    _write_what_cannot_be_loaded(files)
    _write_loras(folder / "loras")
    return folder


def _write_loras(folder: Path) -> None:
    folder.mkdir()
    files = loras.formats(geometry())
    for name, file in LORAS.items():
        save_file({key: tensor.contiguous() for key, tensor in files[name].items()}, folder / file)
    odd = dict(files["kohya"]) | {"lora_unet_double_blocks_7_img_attn_qkv.alpha": torch.tensor(1.0)}
    save_file({key: tensor.contiguous() for key, tensor in odd.items()}, folder / ODD_LORA)


def _write_what_cannot_be_loaded(files: Path) -> None:
    whole = (files / CHECKPOINT).read_bytes()
    (files / "damaged.safetensors").write_bytes(whole[:5000])
    (files / "cut-off.safetensors").write_bytes(whole[:-4])
    save_file({"something": torch.zeros(4, 4)}, files / "no-model.safetensors")
    odd_format = load_file(files / CHECKPOINT) | {"img_in.comfy_quant": as_bytes({"format": "int3"})}
    save_file(odd_format, files / "quantised.safetensors")
    # The tensors by which ComfyUI's detection knows AuraFlow.
    names = {
        "double_layers.0.attn.w1q.weight": (64, 64),
        "positional_encoding": (1, 16, 64),
        "cond_seq_linear.weight": (64, 2048),
    }
    another = {name: torch.zeros(shape) for name, shape in names.items()}
    save_file(another, files / "another-family.safetensors")


@pytest.fixture(scope="session")
def stock(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The reference of every comparison."""
    needs(MAIN_VERSION)
    base = tmp_path_factory.mktemp("stock")
    packs = {"fixture_nodes": FIXTURE_NODES}
    with comfyui.running(MAIN_VERSION, base, packs=packs, models=models, extra_environment=SMALL_DETECTION) as server:
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
    environment = {"TUTTI_STATE_DIR": str(comfy_state_dir), "TUTTI_START_DAEMON": "0", **SMALL_DETECTION}
    base = tmp_path_factory.mktemp("comfy")
    with comfyui.running(MAIN_VERSION, base, packs=PACKS, models=models, extra_environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def two_ranks(models: Path, comfy_state_dir: Path) -> Iterator[Daemon]:
    """Two CPU ranks, ulysses 2."""
    with daemon.running(models, comfy_state_dir, ranks=2, plan="ulysses=2,ring=1") as started:
        yield started


@pytest.fixture
def busy_daemon(two_ranks: Daemon) -> Iterator[None]:
    """Another client's long job runs in the daemon while the test does."""
    started, stop = threading.Event(), threading.Event()

    def listen(received: Received) -> None:
        if isinstance(received.message, Progress) and received.message.phase == "sampling":
            started.set()

    def interrupt_at_the_end() -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    def occupy() -> None:
        message, tensors = long_sample(f"diffusion_models/{CHECKPOINT}")
        with two_ranks.client() as client, contextlib.suppress(KeyboardInterrupt):
            client.sample(message, tensors, listen, interrupt_at_the_end)

    thread = threading.Thread(target=occupy, name="other-client")
    thread.start()
    try:
        assert started.wait(30.0), "the other client's job did not start"
        yield
    finally:
        stop.set()
        thread.join()


def long_sample(model: str) -> tuple[Sample, dict[str, WireTensor]]:
    """A Sample that takes minutes."""
    steps = 5000
    tensors = {
        "noise": torch.randn(1, 16, 16, 16),
        "sigmas": torch.linspace(1.0, 0.0, steps + 1),
        "branch.0.context": torch.randn(1, 7, TEXT_WIDTH),
        "branch.0.pooled": torch.randn(1, POOLED_WIDTH),
        "branch.0.guidance": torch.full((1,), 3.5),
    }
    message = Sample(
        job_id="ab" * 16,
        node_id="other",
        on=ModelRef(model=model, family="flux", dtype="F32"),
        sampler="euler",
        cfg=1.0,
        timestep_multiplier=1.0,
        branches=(Branch(kind="positive"),),
        previews=False,
    )
    return message, {name: to_wire(tensor) for name, tensor in tensors.items()}
