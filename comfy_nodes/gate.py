"""Whether a whole sampling loop may run in the daemon. A whitelist by subset: what is not known to be reproduced exactly says no.

Each check returns the reason why not, as the end of a sentence ("because ..."), or None. Nothing here refuses a run: a no means step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import FunctionType
from typing import Any, Final, Literal

import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch
import torch.utils._contextlib

from . import conditioning, host
from .branches import WRAPPER_KEY
from .families import SAMPLERS, Family

_MODEL_OPTIONS: Final = frozenset({"transformer_options", "to_load_options"})
_TRANSFORMER_OPTIONS: Final = frozenset({"wrappers", "callbacks", "sample_sigmas"})
_OBJECT_PATCHES: Final = frozenset({"model_sampling"})
# What only ComfyUI's extra_conds reads: it has become model_conds, and those are checked by themselves.
# Everything else a conditioning entry can say changes when, where or how strongly it counts, and ComfyUI's own loop knows how.
_CONDITIONING: Final = frozenset(
    {
        "cross_attn", "pooled_output", "model_conds", "uuid", "guidance", "reference_latents", "reference_latents_method",
        "concat_latent_image", "concat_mask", "concat_mask_index", "attention_mask", "clip_vision_output", "frame_rate", "keyframe_idxs",
        "guiding_frame_index", "ref_latent",
    }
)  # fmt: skip
_MODEL_SAMPLING: Final = (
    (comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST),
    (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST),
)
_REPRODUCED: Final[tuple[tuple[Any, tuple[tuple[Any, str], ...]], ...]] = (
    (
        comfy.samplers,
        (
            (comfy.samplers, "sampling_function"),
            (comfy.samplers, "cfg_function"),
            (comfy.samplers, "calc_cond_batch"),
            (comfy.samplers.KSamplerX0Inpaint, "__call__"),
            (comfy.samplers.KSAMPLER, "sample"),
            (comfy.samplers.CFGGuider, "predict_noise"),
        ),
    ),
    (
        comfy.model_sampling,
        tuple(
            (comfy.model_sampling.CONST, name)
            for name in ("calculate_input", "calculate_denoised", "noise_scaling", "inverse_noise_scaling")
        ),
    ),
)
"""ComfyUI's own functions that the daemon's loop stands for, by the module they must come from."""
_MODEL_METHODS: Final = ("apply_model", "_apply_model", "scale_latent_inpaint")
_GUIDER_METHODS: Final = ("__call__", "outer_predict_noise", "predict_noise", "inner_sample", "outer_sample", "sample")


def why_not_whole(
    *,
    executor: Any,
    guider: Any,
    model_options: Mapping[str, Any],
    sigmas: torch.Tensor,
    callback: Callable[..., Any] | None,
    masked: bool,
    family: Family,
) -> str | None:
    """The first reason why this loop must run in ComfyUI, or None when the daemon gives the same result."""
    checks: Iterable[Callable[[], str | None]] = (
        lambda: _sampler(executor.class_obj),
        lambda: _sigmas(sigmas),
        lambda: _guider(guider),
        lambda: _model(guider.inner_model),
        lambda: _own_masking(guider.inner_model) if masked else None,
        lambda: _model_sampling(guider.inner_model.model_sampling),
        lambda: _options(executor, guider, model_options),
        lambda: _object_patches(guider.model_patcher),
        lambda: _conditioning({side: guider.conds[side] for side in sides(guider)}, family),
        lambda: None if host.is_stock_callback(callback) else "another node wants to see every step",
        _patched_comfyui,
    )  # fmt: skip
    return next((reason for check in checks if (reason := check()) is not None), None)


def sides(guider: Any) -> list[Literal["positive", "negative"]]:
    """The branches that ComfyUI would run: at scale 1 the negative one says nothing."""
    alone = math.isclose(guider.cfg, 1.0) or "negative" not in guider.conds
    return ["positive"] if alone else ["positive", "negative"]


def sampler_name(sampler: Any) -> str | None:
    """The daemon's name of a sampler, or None when it does not have exactly this one."""
    if type(sampler) is not comfy.samplers.KSAMPLER:
        return None
    for name in SAMPLERS:
        if sampler.sampler_function is getattr(comfy.k_diffusion.sampling, f"sample_{name}", None):
            return name
    return None


def _sampler(sampler: Any) -> str | None:
    name = sampler_name(sampler)
    if name is None:
        shown = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
        return f"the sampler {shown.removeprefix('sample_')} runs in ComfyUI"
    if not _is_original(sampler.sampler_function, comfy.k_diffusion.sampling):
        return f"another node pack has replaced the sampler {name}"
    if sampler.extra_options or sampler.inpaint_options:
        return f"the sampler {name} has options"
    replaced = sorted(key for key, value in vars(sampler).items() if callable(value) and key != "sampler_function")
    return f"a node has replaced {', '.join(replaced)} of the sampler {name}" if replaced else None


def _sigmas(sigmas: torch.Tensor) -> str | None:
    values = sigmas.tolist()
    if len(values) < 2:
        return "there is no step to make"
    falling = all(above > below for above, below in pairwise(values))
    if not falling or values[-1] < 0.0 or values[0] > 1.0 + 1e-6:
        return "the sigmas do not fall from 1 towards 0"
    return None


def _guider(guider: Any) -> str | None:
    for name in _GUIDER_METHODS:
        if name in vars(guider) or getattr(type(guider), name) is not getattr(comfy.samplers.CFGGuider, name):
            return f"the guider {type(guider).__name__} runs in ComfyUI"
    if not set(guider.conds) <= {"positive", "negative"} or "positive" not in guider.conds:
        return f"the guider {type(guider).__name__} has other branches than positive and negative"
    if "negative" not in guider.conds and not math.isclose(guider.cfg, 1.0):
        return f"the guider {type(guider).__name__} has no negative conditioning"
    return None


def _model(model: Any) -> str | None:
    """Methods that somebody has replaced, on this one object or on its class. (ComfyUI itself puts a function of its own on objects.)"""
    replaced = sorted(
        name for name, value in vars(model).items() if callable(value) and not _is_original(value, comfy.model_base)
    )
    replaced += [name for name in _MODEL_METHODS if not _is_original(getattr(type(model), name), comfy.model_base)]
    return f"a node has replaced {', '.join(replaced)} of the model" if replaced else None


def _own_masking(model: Any) -> str | None:
    """Some models keep what is masked clean, or give it a timestep of its own."""
    for name in ("scale_latent_inpaint", "process_timestep"):
        if getattr(type(model), name) is not getattr(comfy.model_base.BaseModel, name):
            return "this model has its own way with masks"
    return None


def _model_sampling(sampling: Any) -> str | None:
    kind = type(sampling)
    own = [
        name
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType | property | classmethod | staticmethod)
    ]
    if kind.__bases__ not in _MODEL_SAMPLING or own or any(callable(value) for value in vars(sampling).values()):
        return f"the model sampling {kind.__name__} is not one that the daemon has"
    if getattr(sampling, "noise_scale", 1.0) != 1.0:
        return "the noise is scaled"
    return None


def _options(executor: Any, guider: Any, model_options: Mapping[str, Any]) -> str | None:
    if len(executor.wrappers) != 1:
        return "another node has put a wrapper around the sampler"
    for options in (guider.model_options, model_options):
        others = _foreign_wrappers(options)
        if others:
            return f"another node has put a wrapper around {', '.join(others)}"
    unknown = sorted(set(model_options) - _MODEL_OPTIONS)
    unknown += sorted(set(model_options.get("transformer_options", {})) - _TRANSFORMER_OPTIONS)
    return f"a node has set {', '.join(unknown)}" if unknown else None


def _foreign_wrappers(model_options: Mapping[str, Any]) -> list[str]:
    """The kinds of wrappers and callbacks that are there, beside our own ones. (How many are around the sampler its executor tells.)"""
    options = model_options.get("transformer_options", {})
    sampler = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
    found = [
        kind
        for kind, keyed in options.get("wrappers", {}).items()
        if kind != sampler and any(wrappers for key, wrappers in keyed.items() if key != WRAPPER_KEY)
    ]
    found += [kind for kind, keyed in options.get("callbacks", {}).items() if any(keyed.values())]
    return sorted(found)


def _object_patches(patcher: Any) -> str | None:
    unknown = sorted(set(patcher.object_patches) - _OBJECT_PATCHES)
    return f"a node has replaced {', '.join(unknown)}" if unknown else None


def _conditioning(conds: Mapping[str, list[dict[str, Any]]], family: Family) -> str | None:
    for side, entries in conds.items():
        if len(entries) != 1:
            return f"the {side} conditioning has {len(entries)} parts"
        unknown = sorted(key for key, value in entries[0].items() if key not in _CONDITIONING and value is not None)
        if unknown:
            return f"the {side} conditioning has {', '.join(unknown)}"
        unknown = conditioning.unknown_keys(family, entries[0]["model_conds"])
        if unknown:
            return f"the {side} conditioning gives the network {', '.join(unknown)}"
    return None


def _patched_comfyui() -> str | None:
    """Old node packs replace functions of ComfyUI itself; then its loop is not the one that the daemon reproduces."""
    for module, functions in _REPRODUCED:
        for owner, name in functions:
            if not _is_original(getattr(owner, name), module):
                return f"another node pack has replaced ComfyUI's {name}"
    return None


def _is_original(function: Any, module: Any) -> bool:
    """Whether a function's code, under torch's own decorators, comes from `module`'s file."""
    while hasattr(function, "__wrapped__"):
        if function.__code__.co_filename != torch.utils._contextlib.__file__:
            return False
        function = function.__wrapped__
    return isinstance(function, FunctionType) and function.__code__.co_filename == module.__file__
