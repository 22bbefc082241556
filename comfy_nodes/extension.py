"""The list of nodes that ComfyUI gets. Loading it imports no torch, no zmq and touches no network."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes_demo import TuttiDemoLoader, TuttiDemoPrompt
from .nodes_loader import TuttiLoadDiffusionModel
from .nodes_lora import TuttiLoadLora
from .nodes_sampler import TuttiSampler
from .nodes_status import TuttiStatus


class TuttiExtension(ComfyExtension):  # type: ignore[misc]
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return [TuttiLoadDiffusionModel, TuttiLoadLora, TuttiSampler, TuttiStatus, TuttiDemoLoader, TuttiDemoPrompt]


async def comfy_entrypoint() -> TuttiExtension:
    """What ComfyUI calls when it loads the pack."""
    return TuttiExtension()
