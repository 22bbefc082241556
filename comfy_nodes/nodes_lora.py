"""A LoRA by its name: only the name travels, the daemon reads the file. ComfyUI's own LoRA loaders work too."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import compat, host
from .nodes_loader import CATEGORY


class TuttiLoadLora(io.ComfyNode):  # type: ignore[misc]
    """MODEL with one LoRA more."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs are named as in ComfyUI's own loader, so that swapping it keeps their values."""
        return compat.schema(
            node_id="TuttiLoadLora",
            display_name="Tutti Load LoRA",
            category=CATEGORY,
            description="Puts a LoRA on a Tutti MODEL by its name: the daemon reads the file itself, which is the fastest way. ComfyUI's own LoRA "
            "loaders work on a Tutti MODEL too. A key of the file that leads to nothing in the model is an error that names it.",
            search_aliases=["lora", "load lora", "loha", "lokr", "dora", "tutti"],
            inputs=[
                compat.add_input(io.Model, "model", tooltip="The MODEL of a Tutti loader."),
                compat.add_input(
                    io.Combo, "lora_name", options=host.local_loras(), tooltip="A file in the loras folders of ComfyUI or of the daemon."
                ),
                compat.add_input(
                    io.Float, "strength_model", default=1.0, min=-100.0, max=100.0, step=0.01,
                    tooltip="How strongly it counts. Negative values take away, 0 changes nothing.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL with this LoRA behind those that it had.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name: str, strength_model: float) -> bool | str:
        """Takes the place of ComfyUI's own check of the list: the daemon may have files that this page has not heard of."""
        return True

    @classmethod
    def fingerprint_inputs(cls, model: Any, lora_name: str, strength_model: float) -> str:
        """A replaced file is applied again."""
        return host.file_fingerprint(lora_name, host.LORA_FOLDER)

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength_model: float) -> io.NodeOutput:
        """Note the name; the daemon reads the file when the model runs.

        Raises:
            UnsupportedInput: the MODEL is not one of Tutti's.
        """
        from ..backend.errors import UnsupportedInput
        from .loras import NamedLora

        if not hasattr(model, "with_lora"):
            raise UnsupportedInput(
                "Connect the MODEL of a Tutti loader, or use ComfyUI's own Load LoRA: this MODEL is not in the daemon."
            )
        if strength_model == 0.0:
            return io.NodeOutput(model)
        name = f"{host.LORA_FOLDER}/{lora_name}".replace("\\", "/")
        return io.NodeOutput(model.with_lora(NamedLora(name=name, strength=float(strength_model))))
