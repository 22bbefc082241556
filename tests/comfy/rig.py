"""What the tests of this folder share: prompts over our loader, the stock reference, the packs that a ComfyUI loads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import comfyui, workflows
from tests.support.comfyui import ComfyServer, Prompt, Run
from tests.support.workflows import Build, Workflow

TEXT_WIDTH, POOLED_WIDTH = 64, 32
CHECKPOINT = "flux-tiny.safetensors"
LORAS = {
    name: f"{name.lower().replace(' ', '-')}.safetensors"
    for name in ("kohya", "BFL names", "diffusers", "LoHa", "LoKr", "DoRA")
}
"""Format -> the file of a LoRA for that checkpoint."""
ODD_LORA = "odd.safetensors"
"""One with a key that leads to nothing."""
MAIN_VERSION, SECOND_VERSION = comfyui.COMFYUI_VERSIONS
FIXTURE_NODES = Path(__file__).with_name("fixture_nodes")
PACK = "Renamed-by-its-user.v1"
"""The folder of the pack: users and installers name it as they like, dots included."""
PACKS = {PACK: comfyui.REPOSITORY, "fixture_nodes": FIXTURE_NODES}
WHOLE, STEPWISE = "whole loop in the daemon", "step by step, because"
"""How the node says which way a run went."""

_nonces = itertools.count(1)


def needs(version: str) -> None:
    """Skip, with the command that helps, when ComfyUI `version` is not installed."""
    if comfyui.comfyui_folder(version) is None:
        pytest.skip(f"needs ComfyUI {version}: python3 install.py comfyui --version {version}")


def prompt(build: Build, loader: workflows.Loader | None = None) -> Prompt:
    """The prompt of a workflow over our loader (or another one), never seen before by ComfyUI's cache."""
    chosen = loader or workflows.tutti_loader(CHECKPOINT)
    return workflows.build(build, chosen, text_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, nonce=next(_nonces))


def succeed(server: ComfyServer, wanted: Prompt, **options: Any) -> Run:
    """Run a prompt that must succeed."""
    run = server.run(wanted, **options)
    assert run.status == "success", f"{run.status}: {run.error}"
    return run


def plain(**sampling: Any) -> Build:
    """A KSampler over the loader's MODEL."""
    return lambda w: w.save(w.sample(w.model(), **sampling))


def changed_model(change: str, **sampling: Any) -> Build:
    """A KSampler over a MODEL that another node has changed."""

    def build(w: Workflow) -> None:
        w.save(w.sample(w.link("TestModelChange", model=w.model(), change=change), **sampling))

    return build


def changed_conditioning(change: str, side: str = "positive") -> Build:
    """A KSampler one side of whose conditioning another node has changed."""

    def build(w: Workflow) -> None:
        changed = w.link("TestConditioningChange", conditioning=w.text(1 if side == "positive" else 2), change=change)
        w.save(w.sample(w.model(), **{side: changed}))

    return build


class Stock:
    """Stock ComfyUI in its own process. It never sees the pack; what it computed once is kept."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self._kept: dict[str, list[torch.Tensor]] = {}

    def latents(self, build: Build, checkpoint: str = CHECKPOINT) -> list[torch.Tensor]:
        """What ComfyUI's own loader and weights give."""
        loader = workflows.stock_loader(checkpoint)
        wanted = workflows.build(build, loader, text_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH)
        key = json.dumps(wanted)
        if key not in self._kept:
            self._kept[key] = self.server.latents(succeed(self.server, wanted))
        return self._kept[key]
