"""The loader: the one node that a workflow swaps."""

from __future__ import annotations

import re
from typing import Any, Final

from comfy_api.latest import io

from . import compat, host

CATEGORY: Final = "Tutti"
DTYPES: Final = ("default", "bf16", "fp16", "fp32")
AUTO: Final = "auto"
_PART: Final = r"([a-z]+=[0-9]+|(schedule|codec|compression)=[a-z0-9-]+)"
_PLAN: Final = re.compile(rf"{_PART}(,{_PART})*")


def what_is_wrong_with(plan: str) -> str:
    """The message for a plan that is none; empty for one that is."""
    if plan.strip() in ("", AUTO) or _PLAN.fullmatch(plan.replace(" ", "")):
        return ""
    return f"Set plan to auto or to degrees such as ulysses=2,ring=1 (and schedule=..., codec=... or compression=...): {plan!r} is not a plan."


def load(name: str, weight_dtype: str, plan: str) -> Any:
    """The MODEL of a checkpoint of the daemon's, by its name in ComfyUI's list. No weight is read here."""
    import torch

    from . import checkpoint, remote_model
    from .session import SESSION

    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    described = checkpoint.describe(SESSION, name)
    chosen = plan.replace(" ", "")
    with SESSION.guarded():
        device = SESSION.client().status(host.raise_if_interrupted).device
    return remote_model.build(
        SESSION,
        described,
        weight_dtype=names.get(weight_dtype),
        plan="" if chosen == AUTO else chosen,
        daemon_device=device,
    )


class TuttiLoadDiffusionModel(io.ComfyNode):  # type: ignore[misc]
    """MODEL whose network runs on the daemon's ranks."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs are named as in ComfyUI's own loader, so that swapping it keeps their values."""
        from .catalog import CATALOG

        return compat.schema(
            node_id="TuttiLoadDiffusionModel",
            display_name="Tutti Load Diffusion Model",
            category=CATEGORY,
            description="Loads a diffusion model on all your GPUs at once. Use it in place of Load Diffusion Model: every sampler, "
            "guider and scheduler keeps working.",
            search_aliases=["unet loader", "load diffusion model", "multi gpu", "distributed", "tutti"],
            inputs=[
                compat.add_input(
                    io.Combo, "unet_name", options=CATALOG.names(),
                    tooltip="A file in the diffusion_models folders of ComfyUI or of the daemon.",
                ),
                compat.add_input(
                    io.Combo, "weight_dtype", options=list(DTYPES), default=DTYPES[0], advanced=True,
                    tooltip="What the model computes in. default: what ComfyUI's own loader would take for this file.",
                ),
                compat.add_input(
                    io.String, "plan", default=AUTO, optional=True, advanced=True,
                    tooltip="How the ranks share the work: auto, or for example ulysses=2,ring=2. The product is the number of ranks.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A MODEL for any sampler. Its weights are in the daemon.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, unet_name: str, weight_dtype: str, plan: str = AUTO) -> bool | str:
        """Takes the place of ComfyUI's own check of the lists: the daemon may have models that this page has not heard of."""
        if weight_dtype not in DTYPES:
            return (
                f"Set weight_dtype to one of {', '.join(DTYPES)}: {weight_dtype} stores the weights in 8 bits on ComfyUI's side, "
                "which Tutti does not do; a file that is already in 8 bits loads with default."
            )
        return what_is_wrong_with(plan) or True

    @classmethod
    def fingerprint_inputs(cls, unet_name: str, weight_dtype: str, plan: str = AUTO) -> str:
        """A replaced file is loaded again."""
        return host.file_fingerprint(unet_name)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str, plan: str = AUTO) -> io.NodeOutput:
        """Ask the daemon what the file holds and build the MODEL; no weight is read here."""
        return io.NodeOutput(load(unet_name, weight_dtype, plan))
