"""An older ComfyUI loads the same pack and gives the latent that its own loader gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.comfy.rig import FIXTURE_NODES, PACKS, SECOND_VERSION, STEPWISE, WHOLE, Stock, needs, plain, prompt, succeed
from tests.support import comfyui
from tests.support.comfyui import ComfyServer
from tests.support.daemon import Daemon
from tests.support.parity import FP32_TOLERANCE, relative_error

BUILDS = {WHOLE: plain(), STEPWISE: plain(sampler_name="euler_ancestral")}


@dataclass(frozen=True)
class Older:
    """The older ComfyUI with the pack, and what the same version gave without it."""

    server: ComfyServer
    expected: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def older(models: Path, comfy_state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Older]:
    needs(SECOND_VERSION)
    base = tmp_path_factory.mktemp("older-stock")
    with comfyui.running(SECOND_VERSION, base, packs={"fixture_nodes": FIXTURE_NODES}, models=models) as server:
        stock = Stock(server)
        expected = {way: stock.latents(build)[0] for way, build in BUILDS.items()}
    base = tmp_path_factory.mktemp("older")
    environment = {"TUTTI_STATE_DIR": str(comfy_state_dir), "TUTTI_START_DAEMON": "0"}
    with comfyui.running(SECOND_VERSION, base, packs=PACKS, models=models, extra_environment=environment) as server:
        yield Older(server, expected)


def test_the_pack_loads(older: Older) -> None:
    info = older.server.get_json("/object_info/TuttiLoadDiffusionModel")["TuttiLoadDiffusionModel"]
    assert info["input"]["optional"]["plan"][1]["advanced"], (
        "an option that this version's constructor may lack arrives all the same"
    )


@pytest.mark.parametrize("way", BUILDS)
def test_it_gives_the_latent_of_its_own_loader(older: Older, two_ranks: Daemon, way: str) -> None:
    run = succeed(older.server, prompt(BUILDS[way]), preview_method="latent2rgb")
    assert way in run.all_texts
    (ours,) = older.server.latents(run)
    assert relative_error(ours, older.expected[way]) <= FP32_TOLERANCE
    assert run.previews


def test_cancel_works_where_the_interrupt_is_an_ordinary_exception(older: Older, two_ranks: Daemon) -> None:
    run = older.server.run(
        prompt(plain(steps=5000)),
        interrupt_when=lambda run: any(kind == "progress" and data["value"] >= 2 for _, kind, data in run.events),
    )
    assert run.status == "interrupted", run.error
    assert run.interrupted_at_s is not None
    assert run.seconds - run.interrupted_at_s < 3.0
