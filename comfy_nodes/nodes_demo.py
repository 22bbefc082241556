"""The demo model that ships with Tutti: a loader and a prompt node. Everything between them is stock."""

from __future__ import annotations

from typing import Any, Final

from comfy_api.latest import io

from ..backend.assets.advice import EXAMPLE, GUIDANCE, vocabulary
from . import compat, host
from .nodes_loader import AUTO, CATEGORY, COMPRESSIONS, DTYPES, compression_input, load, plan_text, what_is_wrong_with

TEXT_TOOLTIP: Final = (
    "What the picture shows: up to three objects joined by 'and', then 'on a ... background'. Empty: no prompt, for the negative side. "
    f"The demo model knows only these words. {vocabulary()}"
)


class TuttiDemoLoader(io.ComfyNode):  # type: ignore[misc]
    """MODEL and VAE of the demo model."""

    @classmethod
    def define_schema(cls) -> Any:
        """Nothing has to be chosen."""
        return compat.schema(
            node_id="TuttiDemoLoader",
            display_name="Tutti Demo Loader",
            category=CATEGORY,
            description="Loads the small FLUX.1 model that ships with Tutti, on all your GPUs or CPU ranks at once, and its VAE. Nothing has to "
            "be downloaded: connect a Tutti Demo Prompt, an Empty SD3 Latent Image of 128 to 256 pixels, a KSampler and a VAE Decode.",
            search_aliases=["demo", "tutti", "example model", "tiny flux"],
            inputs=[
                compat.add_input(
                    io.String, "plan", default=AUTO, optional=True, advanced=True,
                    tooltip="How the ranks share the work: auto, or for example ulysses=2,ring=1. The product is the number of ranks.",
                ),
                compression_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="A MODEL for any sampler; use cfg 1. Its weights are in the daemon."),
                io.Vae.Output(tooltip="The VAE that belongs to it, for a VAE Decode. It runs in ComfyUI."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, plan: str = AUTO, compression: str = COMPRESSIONS[0]) -> bool | str:
        """Said before anything is queued."""
        return what_is_wrong_with(plan, compression) or True

    @classmethod
    def execute(cls, plan: str = AUTO, compression: str = COMPRESSIONS[0]) -> io.NodeOutput:
        """Check both files, then load as the other loader does.

        Raises:
            BadCheckpoint: a shipped file is missing or damaged, here or where the daemon runs.
        """
        from ..backend.assets.files import AUTOENCODER, TRANSFORMER, shipped_file
        from ..backend.errors import BadCheckpoint, UnknownModel
        from .catalog import PREFIX

        vae_file = shipped_file(AUTOENCODER)
        shipped_file(TRANSFORMER)
        try:
            model = load(TRANSFORMER.removeprefix(PREFIX), DTYPES[0], plan_text(plan, compression))
        except (UnknownModel, BadCheckpoint) as error:
            # The files here are whole: this is about the daemon's box.
            raise BadCheckpoint(
                "Install this version of Tutti again where the daemon runs, and start the daemon again: its demo model is missing or damaged."
            ) from error
        return io.NodeOutput(model, host.load_vae(str(vae_file)))


class TuttiDemoPrompt(io.ComfyNode):  # type: ignore[misc]
    """Plain text as conditioning of the demo model, which has no text encoder."""

    @classmethod
    def define_schema(cls) -> Any:
        """The vocabulary is in the tooltip: there is no other place where a user would look for it."""
        least, usual, most = GUIDANCE
        return compat.schema(
            node_id="TuttiDemoPrompt",
            display_name="Tutti Demo Prompt",
            category=CATEGORY,
            description="Turns plain text into conditioning for the demo model. It says how it understood the text, and which words have no effect.",
            search_aliases=["demo", "tutti", "prompt", "text encode"],
            inputs=[
                compat.add_input(io.String, "text", multiline=True, dynamic_prompts=True, default=EXAMPLE, tooltip=TEXT_TOOLTIP),
                compat.add_input(
                    io.Float, "guidance", default=usual, min=least, max=most, step=0.1,
                    tooltip="How closely the picture keeps to the text: 1 to 5, what the demo model was taught.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive or the negative side of a sampler with the demo model.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, text: str, guidance: float) -> io.NodeOutput:
        """Say how the text was understood, and build the conditioning.

        Raises:
            BadRequest: no word of the text is known.
        """
        import torch

        from ..backend.assets import advice

        prompt = advice.read_prompt(text)
        host.say("\n".join((f"Tutti: {advice.understood(prompt)}", *advice.warnings(prompt))))
        context = torch.tensor([prompt.context()])
        return io.NodeOutput([[context, {"pooled_output": torch.tensor([prompt.pooled()]), "guidance": guidance}]])
