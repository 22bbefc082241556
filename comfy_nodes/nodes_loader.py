"""The loader: the one node that a workflow swaps."""

from __future__ import annotations

import re
from typing import Any, Final

from comfy_api.latest import io

from . import compat, host

CATEGORY: Final = "Tutti"
DTYPES: Final = ("default", "bf16", "fp16", "fp32")
AUTO: Final = "auto"
COMPRESSIONS: Final = ("off", "auto", "fast", "balanced", "small")
"""Those of a plan. ``off`` says nothing of it, so that the daemon's own setting counts, which is off too unless it was started with one."""
COMPRESSION_TOOLTIP: Final = (
    "Sends fewer bytes between the ranks: differences to the call before, in a few bits. For slow links. The picture is then approximate, "
    "and the node says by how much. off: exact, unless the daemon was started with a compression."
)
_PART: Final = r"([a-z]+=[0-9]+|(schedule|codec|compression)=[a-z0-9-]+)"
_PLAN: Final = re.compile(rf"{AUTO}(,compression=[a-z]+)?|{_PART}(,{_PART})*")


def compression_input() -> Any:
    """The input of both loaders. It is the last one: files that were saved without it have their values in order."""
    return compat.add_input(
        io.Combo, "compression", options=list(COMPRESSIONS), default=COMPRESSIONS[0], optional=True, advanced=True,
        tooltip=COMPRESSION_TOOLTIP,
    )  # fmt: skip


def plan_text(plan: str, compression: str) -> str:
    """Both inputs as the daemon is asked; empty leaves everything to it."""
    degrees = plan.replace(" ", "")
    parts = ["" if degrees == AUTO else degrees, "" if compression == COMPRESSIONS[0] else f"compression={compression}"]
    return ",".join(filter(None, parts))


def what_is_wrong_with(plan: str, compression: str) -> str:
    """The message for a plan or a compression that is none; empty where both can be asked of the daemon."""
    if compression not in COMPRESSIONS:
        return f"Set compression to one of {', '.join(COMPRESSIONS)}: {compression!r} is none of them."
    if compression != COMPRESSIONS[0] and "compression=" in plan.replace(" ", ""):
        return f"Name one compression: the input says {compression}, and the plan has one of its own."
    if plan.strip() in ("", AUTO) or _PLAN.fullmatch(plan.replace(" ", "")):
        return ""
    return f"Set plan to auto or to degrees such as ulysses=2,ring=1 (and schedule=..., codec=... or compression=...): {plan!r} is not a plan."


def load(name: str, weight_dtype: str, plan: str) -> Any:
    """The MODEL of a checkpoint of the daemon's, by its name in ComfyUI's list; ``plan`` from :func:`plan_text`. No weight is read here."""
    import torch

    from . import checkpoint, remote_model
    from .session import SESSION

    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    described = checkpoint.describe(SESSION, name)
    with SESSION.guarded():
        device = SESSION.client().status(host.raise_if_interrupted).device
    return remote_model.build(
        SESSION,
        described,
        weight_dtype=names.get(weight_dtype),
        plan=plan,
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
                compression_input(),
            ],
            outputs=[io.Model.Output(tooltip="A MODEL for any sampler. Its weights are in the daemon.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, unet_name: str, weight_dtype: str, plan: str = AUTO, compression: str = COMPRESSIONS[0]
    ) -> bool | str:
        """Takes the place of ComfyUI's own check of the lists: the daemon may have models that this page has not heard of."""
        if weight_dtype not in DTYPES:
            return (
                f"Set weight_dtype to one of {', '.join(DTYPES)}: {weight_dtype} stores the weights in 8 bits on ComfyUI's side, "
                "which Tutti does not do; a file that is already in 8 bits loads with default."
            )
        return what_is_wrong_with(plan, compression) or True

    @classmethod
    def fingerprint_inputs(
        cls, unet_name: str, weight_dtype: str, plan: str = AUTO, compression: str = COMPRESSIONS[0]
    ) -> str:
        """A replaced file is loaded again."""
        return host.file_fingerprint(unet_name)

    @classmethod
    def execute(
        cls, unet_name: str, weight_dtype: str, plan: str = AUTO, compression: str = COMPRESSIONS[0]
    ) -> io.NodeOutput:
        """Ask the daemon what the file holds and build the MODEL; no weight is read here."""
        return io.NodeOutput(load(unet_name, weight_dtype, plan_text(plan, compression)))
