"""An explicit sampler for beginners: only what a whole loop in the daemon can do, with defaults that suit FLUX."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import compat
from .families import SAMPLERS
from .nodes_loader import CATEGORY


class TuttiSampler(io.ComfyNode):  # type: ignore[misc]
    """Goes the same way as ComfyUI's KSampler, which works just as well."""

    @classmethod
    def define_schema(cls) -> Any:
        """A KSampler with fewer choices."""
        import comfy.samplers

        return compat.schema(
            node_id="TuttiSampler",
            display_name="Tutti Sampler",
            category=CATEGORY,
            description="Samples on the daemon's ranks. ComfyUI's KSampler does the same with a Tutti MODEL; this node offers only what "
            "runs there as a whole.",
            search_aliases=["ksampler", "sampler", "tutti"],
            inputs=[
                compat.add_input(io.Model, "model", tooltip="From Tutti Load Diffusion Model."),
                compat.add_input(io.Conditioning, "positive", tooltip="What the picture should show."),
                compat.add_input(io.Latent, "latent_image", tooltip="An empty latent, or a picture to start from (with denoise below 1)."),
                compat.add_input(
                    io.Conditioning, "negative", optional=True, tooltip="What it should not show. Counts only when cfg is not 1."
                ),
                compat.add_input(
                    io.Int, "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="The same seed gives the same noise."
                ),
                compat.add_input(io.Int, "steps", default=20, min=1, max=10000, tooltip="More steps take longer and change less and less."),
                compat.add_input(
                    io.Float, "cfg", default=1.0, min=0.0, max=100.0, step=0.1,
                    tooltip="How strongly the negative prompt pushes away. 1 for FLUX.1 dev and schnell: then the negative prompt costs nothing.",
                ),
                compat.add_input(io.Combo, "sampler_name", options=list(SAMPLERS), default="euler", tooltip="The solver."),
                compat.add_input(
                    io.Combo, "scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), default="simple", tooltip="How the steps are spaced."
                ),
                compat.add_input(
                    io.Float, "denoise", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="1 starts from noise; less keeps more of the latent.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The finished latent, for a VAE Decode.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, positive: Any, latent_image: Any, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
        denoise: float, negative: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        """ComfyUI's own KSampler function."""
        import nodes

        from ..backend.errors import BadRequest

        if negative is None:
            if cfg != 1.0:
                raise BadRequest(
                    "Connect a negative prompt, or set cfg to 1: a cfg above 1 weighs the one against the other."
                )
            negative = positive
        (latent,) = nodes.common_ksampler(
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
        )
        return io.NodeOutput(latent)
