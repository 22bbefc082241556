"""Workflows in ComfyUI's API format, one function each, that run unchanged over the stock loader and over ours.

:data:`PARITY_CASES` is the list that parity is promised for. Every workflow ends in SaveLatent nodes. Text and image inputs come from the
test-only nodes of ``tests/comfy/fixture_nodes``; everything else is stock ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .comfyui import Prompt

Link = list[Any]
"""[node id, output index]."""

STEPS = 5
LATENT = (16, 16, 16)
"""FLUX.1's, of a picture of 128 x 128."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """The node that makes the MODEL: the only difference between the two sides of a comparison."""

    class_type: str
    inputs: dict[str, Any]


def stock_loader(name: str) -> Loader:
    """ComfyUI's own loader for the diffusion model `name`."""
    return Loader(class_type="UNETLoader", inputs={"unet_name": name, "weight_dtype": "default"})


def tutti_loader(name: str, **inputs: Any) -> Loader:
    """Our loader for the diffusion model `name`."""
    return Loader(class_type="TuttiLoadDiffusionModel", inputs={"unet_name": name, "weight_dtype": "default", **inputs})


@dataclass(kw_only=True, slots=True)
class Workflow:
    """A workflow under construction, with the widths that its checkpoint asks for."""

    loader: Loader
    text_width: int
    pooled_width: int
    latent_shape: tuple[int, ...] = LATENT
    """Channels, frames of a video, height, width."""
    text_mask: bool = False
    """Whether prompts come with a mask of their tokens."""
    nonce: int = 0
    """Changes nothing in the picture; a new value makes ComfyUI run everything again instead of taking it from its cache."""
    prompt: Prompt = field(default_factory=dict)

    def add(self, class_type: str, **inputs: Any) -> str:
        """Add a node and return its id. Links are given as :meth:`link` makes them."""
        node_id = str(len(self.prompt) + 1)
        self.prompt[node_id] = {"class_type": class_type, "inputs": inputs}
        return node_id

    def link(self, class_type: str, **inputs: Any) -> Link:
        """Add a node and return a link to its first output."""
        return [self.add(class_type, **inputs), 0]

    def model(self) -> Link:
        """The MODEL of the loader under test."""
        return self.link(self.loader.class_type, **self.loader.inputs)

    def text(self, seed: int, tokens: int = 13, *, pooled: bool = True) -> Link:
        """CONDITIONING of one prompt."""
        width = self.pooled_width if pooled else 0
        return self.link(
            "TestConditioning",
            seed=seed,
            tokens=tokens,
            width=self.text_width,
            pooled_width=width,
            masked=self.text_mask,
            nonce=self.nonce,
        )

    def latent(
        self, seed: int, *, height: int | None = None, width: int | None = None, batch: int = 1, scale: float = 1.0
    ) -> Link:
        """LATENT as a VAE encoder would give it; `scale` 0 makes the empty latent."""
        channels, *frames, own_height, own_width = self.latent_shape
        return self.link(
            "TestLatent",
            seed=seed,
            batch=batch,
            channels=channels,
            frames=frames[0] if frames else 0,
            height=height or own_height,
            width=width or own_width,
            scale=scale,
            nonce=self.nonce,
        )

    def sample(self, model: Link, **changes: Any) -> Link:
        """A stock KSampler with the inputs that most cases share, changed as `changes` says."""
        inputs: dict[str, Any] = {
            "seed": 11, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        } | changes  # fmt: skip
        if "positive" not in inputs:
            inputs["positive"] = self.text(1)
        if "negative" not in inputs:
            inputs["negative"] = self.text(2)
        if "latent_image" not in inputs:
            inputs["latent_image"] = self.latent(3, scale=0.0)
        return self.link("KSampler", model=model, **inputs)

    def save(self, latent: Link) -> None:
        """Write a LATENT where the test finds it."""
        self.add("SaveLatent", samples=latent, filename_prefix="parity")


Build = Callable[[Workflow], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of the parity table."""

    name: str
    build: Build
    path: str
    """Which way it must go over our MODEL: ``sample`` (the whole loop in the daemon) or ``evaluate`` (call by call)."""


def ksampler(**changes: Any) -> Build:
    """A plain text-to-image KSampler."""

    def build(w: Workflow) -> None:
        w.save(w.sample(w.model(), **changes))

    return build


def unequal_prompts(w: Workflow) -> None:
    w.save(w.sample(w.model(), positive=w.text(1, 19), negative=w.text(2, 7)))


def denoise_half(w: Workflow) -> None:
    w.save(w.sample(w.model(), latent_image=w.latent(3), denoise=0.5))


def odd_size(height: int, width: int) -> Build:
    def build(w: Workflow) -> None:
        w.save(w.sample(w.model(), latent_image=w.latent(3, height=height, width=width, scale=0.0)))

    return build


def batch_of_three(w: Workflow) -> None:
    """Three latents cut out of five, so that the noise follows their batch_index."""
    cut = w.link("LatentFromBatch", samples=w.latent(3, batch=5), batch_index=1, length=3)
    w.save(w.sample(w.model(), latent_image=cut, denoise=0.7))


def two_stages(w: Workflow) -> None:
    """KSamplerAdvanced twice: the second continues the first one's unfinished latent."""
    model, positive, negative = w.model(), w.text(1), w.text(2)
    latent = w.latent(3, scale=0.0)
    stages: tuple[dict[str, Any], ...] = (
        {"add_noise": "enable", "start_at_step": 0, "end_at_step": 3, "return_with_leftover_noise": "enable"},
        {"add_noise": "disable", "start_at_step": 3, "end_at_step": 10000, "return_with_leftover_noise": "disable"},
    )
    for stage in stages:
        latent = w.link(
            "KSamplerAdvanced", model=model, positive=positive, negative=negative, latent_image=latent, noise_seed=11, steps=6,
            cfg=4.0, sampler_name="euler", scheduler="simple", **stage,
        )  # fmt: skip
        w.save(latent)


def custom_advanced(w: Workflow) -> None:
    """SamplerCustomAdvanced stopped half way, so that its two outputs differ; both are saved."""
    model = w.model()
    guided = w.link("FluxGuidance", conditioning=w.text(1), guidance=2.5)
    sigmas = w.link("BasicScheduler", model=model, scheduler="beta", steps=6, denoise=1.0)
    node = w.add(
        "SamplerCustomAdvanced",
        noise=w.link("RandomNoise", noise_seed=11),
        guider=w.link("CFGGuider", model=model, positive=guided, negative=w.text(2), cfg=3.0),
        sampler=w.link("KSamplerSelect", sampler_name="euler"),
        sigmas=w.link("SplitSigmas", sigmas=sigmas, step=4),
        latent_image=w.latent(3, scale=0.0),
    )
    w.save([node, 0])
    w.save([node, 1])


def kontext_reference(w: Workflow) -> None:
    reference = w.link("ReferenceLatent", conditioning=w.text(1), latent=w.latent(4, height=12, width=10))
    w.save(w.sample(w.model(), positive=reference, cfg=1.0))


def masked(w: Workflow, *, soft: bool) -> Link:
    """A latent with a noise mask over its right half (`soft`: a slope instead of an edge)."""
    half = w.link(
        "MaskComposite",
        destination=w.link("SolidMask", value=0.0, width=128, height=128),
        source=w.link("SolidMask", value=1.0, width=64, height=128),
        x=64, y=0, operation="add",
    )  # fmt: skip
    if soft:
        half = w.link("FeatherMask", mask=half, left=96, top=32, right=32, bottom=0)
    return w.link("SetLatentNoiseMask", samples=w.latent(3), mask=half)


def inpaint_mask(w: Workflow) -> None:
    w.save(w.sample(w.model(), latent_image=masked(w, soft=False)))


def model_sampling_flux(w: Workflow) -> None:
    model = w.link("ModelSamplingFlux", model=w.model(), max_shift=1.5, base_shift=0.4, width=1152, height=896)
    w.save(w.sample(model))


def dual_cfg(w: Workflow) -> None:
    model = w.model()
    guider = w.link(
        "DualCFGGuider", model=model, cond1=w.text(1), cond2=w.text(5), negative=w.text(2), cfg_conds=3.0, cfg_cond2_negative=2.0,
        style="regular",
    )  # fmt: skip
    node = w.add(
        "SamplerCustomAdvanced",
        noise=w.link("RandomNoise", noise_seed=11),
        guider=guider,
        sampler=w.link("KSamplerSelect", sampler_name="euler"),
        sigmas=w.link("BasicScheduler", model=model, scheduler="simple", steps=STEPS, denoise=1.0),
        latent_image=w.latent(3, scale=0.0),
    )
    w.save([node, 0])


def rescale_cfg(w: Workflow) -> None:
    w.save(w.sample(w.link("RescaleCFG", model=w.model(), multiplier=0.7)))


def combined_conditioning(w: Workflow) -> None:
    both = w.link("ConditioningCombine", conditioning_1=w.text(1), conditioning_2=w.text(5, 9))
    w.save(w.sample(w.model(), positive=both))


def start_end_percent(w: Workflow) -> None:
    early = w.link("ConditioningSetTimestepRange", conditioning=w.text(1), start=0.0, end=0.5)
    late = w.link("ConditioningSetTimestepRange", conditioning=w.text(5), start=0.5, end=1.0)
    w.save(w.sample(w.model(), positive=w.link("ConditioningCombine", conditioning_1=early, conditioning_2=late)))


def easycache(w: Workflow) -> None:
    """A threshold at which EasyCache skips some of the calls and makes the others (proven by the log line it prints)."""
    model = w.link(
        "EasyCache", model=w.model(), reuse_threshold=0.5, start_percent=0.1, end_percent=0.95, verbose=False
    )
    w.save(w.sample(model, steps=10))


def differential_diffusion(w: Workflow) -> None:
    model = w.link("DifferentialDiffusion", model=w.model(), strength=1.0)
    w.save(w.sample(model, latent_image=masked(w, soft=True)))


SAMPLE_CASES: dict[str, Build] = {
    **{
        f"{name}_cfg{cfg}": ksampler(sampler_name=name, cfg=float(cfg))
        for name in ("euler", "heun", "dpmpp_2m")
        for cfg in (1, 4)
    },
    "unequal_prompts": unequal_prompts,
    "denoise_half": denoise_half,
    "odd_11x9": odd_size(11, 9),
    "odd_13x7": odd_size(13, 7),
    "batch_of_three": batch_of_three,
    "two_stages": two_stages,
    "custom_advanced": custom_advanced,
    "kontext_reference": kontext_reference,
    "inpaint_mask": inpaint_mask,
    "model_sampling_flux": model_sampling_flux,
}
EVALUATE_CASES: dict[str, Build] = {
    **{name: ksampler(sampler_name=name) for name in ("euler_ancestral", "dpmpp_2m_sde", "uni_pc", "res_multistep")},
    "dual_cfg": dual_cfg,
    "rescale_cfg": rescale_cfg,
    "combined_conditioning": combined_conditioning,
    "start_end_percent": start_end_percent,
    "easycache": easycache,
    "differential_diffusion": differential_diffusion,
}
PARITY_CASES: tuple[Case, ...] = (
    *(Case(name=name, build=build, path="sample") for name, build in SAMPLE_CASES.items()),
    *(Case(name=name, build=build, path="evaluate") for name, build in EVALUATE_CASES.items()),
)
"""Every row of the parity table that parity with stock ComfyUI is promised for."""


def build(
    build_case: Build,
    loader: Loader,
    *,
    text_width: int,
    pooled_width: int,
    latent_shape: tuple[int, ...] = LATENT,
    text_mask: bool = False,
    nonce: int = 0,
) -> Prompt:
    """The prompt of one case over `loader`."""
    workflow = Workflow(
        loader=loader,
        text_width=text_width,
        pooled_width=pooled_width,
        latent_shape=latent_shape,
        text_mask=text_mask,
        nonce=nonce,
    )
    build_case(workflow)
    return workflow.prompt
