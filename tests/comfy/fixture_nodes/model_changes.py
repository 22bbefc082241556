"""A node that does to a MODEL what some other pack might do: one small, recognisable change per name.

Those under ``KEPT`` leave the mathematics as it is, so that a run over any MODEL must give the unchanged picture; those under ``INSIDE`` reach
into the network; those under ``FASTER`` only claim to make a local network faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import comfy.patcher_extension as pe

Change = Callable[[Any], None]


def _cfg_function(m: Any) -> None:
    m.set_model_sampler_cfg_function(lambda a: a["uncond"] + (a["cond"] - a["uncond"]) * a["cond_scale"])


def _post_cfg_function(m: Any) -> None:
    m.set_model_sampler_post_cfg_function(lambda a: a["denoised"])


def _pre_cfg_function(m: Any) -> None:
    m.set_model_sampler_pre_cfg_function(lambda a: a["conds_out"])


def _calc_cond_batch_function(m: Any) -> None:
    import comfy.samplers

    m.set_model_sampler_calc_cond_batch_function(
        lambda a: comfy.samplers.calc_cond_batch(a["model"], a["conds"], a["input"], a["sigma"], a["model_options"])
    )


def _model_function_wrapper(m: Any) -> None:
    m.set_model_unet_function_wrapper(lambda apply, a: apply(a["input"], a["timestep"], **a["c"]))


def _no_cfg1_shortcut(m: Any) -> None:
    m.disable_model_cfg1_optimization()


def _denoise_mask_function(m: Any) -> None:
    m.set_model_denoise_mask_function(lambda sigma, mask, extra_options: mask)


def _unknown_model_option(m: Any) -> None:
    m.model_options["somebody_elses_option"] = True


def _passing_wrapper(kind: str) -> Change:
    def change(m: Any) -> None:
        m.add_wrapper_with_key(kind, "somebody", lambda executor, *args, **kwargs: executor(*args, **kwargs))

    return change


def _callback(m: Any) -> None:
    m.add_callback_with_key(pe.CallbacksMP.ON_CLEANUP, "somebody", lambda patcher: None)


def _wrapper_with_state(m: Any) -> None:
    _passing_wrapper(pe.WrappersMP.DIFFUSION_MODEL)(m)
    m.model_options["transformer_options"]["somebody"] = {"state": "of the wrapper of the same name"}


def _other_object(m: Any) -> None:
    m.add_object_patch("concat_keys", ())


def _own_model_sampling(m: Any) -> None:
    class OwnNoise(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        def noise_scaling(self, *args: Any, **kwargs: Any) -> Any:
            return super().noise_scaling(*args, **kwargs)

    m.add_object_patch("model_sampling", OwnNoise(m.model.model_config))


def _replaced_method(name: str) -> Change:
    """Not a patch of the MODEL: it stays on the model object, which all clones share."""

    def change(m: Any) -> None:
        own = getattr(m.model, name)
        setattr(m.model, name, lambda *args, **kwargs: own(*args, **kwargs))

    return change


KEPT: dict[str, Change] = {
    "sampler_cfg_function": _cfg_function,
    "sampler_post_cfg_function": _post_cfg_function,
    "sampler_pre_cfg_function": _pre_cfg_function,
    "sampler_calc_cond_batch_function": _calc_cond_batch_function,
    "model_function_wrapper": _model_function_wrapper,
    "disable_cfg1_optimization": _no_cfg1_shortcut,
    "denoise_mask_function": _denoise_mask_function,
    "somebody_elses_option": _unknown_model_option,
    **{
        kind: _passing_wrapper(kind)
        for kind in (
            pe.WrappersMP.OUTER_SAMPLE,
            pe.WrappersMP.PREPARE_SAMPLING,
            pe.WrappersMP.SAMPLER_SAMPLE,
            pe.WrappersMP.PREDICT_NOISE,
            pe.WrappersMP.CALC_COND_BATCH,
            pe.WrappersMP.APPLY_MODEL,
            pe.WrappersMP.DIFFUSION_MODEL,
        )
    },
    "on_cleanup": _callback,
    "wrapper_with_state": _wrapper_with_state,
    "concat_keys": _other_object,
    "OwnNoise": _own_model_sampling,
    "replaced apply_model": _replaced_method("apply_model"),
    "replaced scale_latent_inpaint": _replaced_method("scale_latent_inpaint"),
}


def _attention(name: str) -> Change:
    def change(m: Any) -> None:
        def override(func: Any, *args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        override.__name__ = name
        m.model_options["transformer_options"]["optimized_attention_override"] = override

    return change


def _transformer_option(name: str, value: Any) -> Change:
    def change(m: Any) -> None:
        m.model_options["transformer_options"][name] = value

    return change


def _injection(m: Any) -> None:
    m.set_injections("somebody", [pe.PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)])


def _in_network(name: str) -> Change:
    return lambda m: setattr(m.model.diffusion_model, name, lambda *args, **kwargs: None)


INSIDE: dict[str, Change] = {
    "attn1_patch": lambda m: m.set_model_attn1_patch(lambda *args: args),
    "dit": lambda m: m.set_model_patch_replace(
        lambda args, extra: extra["original_block"](args), "dit", "double_block", 0
    ),
    "double_block": lambda m: m.set_model_patch(lambda args: args, "double_block"),
    "rope_options": lambda m: m.set_model_rope_options(1.0, 0.0, 1.0, 0.0, 1.0, 0.0),
    "optimized_attention_override": _attention("regional_attention"),
    "message_attention": _attention("message_attention"),
    "sparse_sage": _attention("sparse_sage_attention"),
    "pulid_ca": _in_network("pulid_ca"),
    "forward": _in_network("forward"),
    "forward hook": lambda m: m.model.diffusion_model.register_forward_hook(lambda *args: None),
    "unheard_of": _transformer_option("unheard_of", 1),
    "injection": _injection,
    "diffusion_model.img_in": lambda m: m.add_object_patch("diffusion_model.img_in", None),
    "weights": lambda m: m.add_patches({}, 1.0, 0.5),  # a merge: the weights themselves count less
    "weight_wrapper": lambda m: m.add_weight_wrapper("diffusion_model.img_in.weight", lambda weight: weight),
    "network": lambda m: m.get_model_object("diffusion_model").double_blocks,
    "saving": lambda m: m.state_dict_for_saving(),
    "merging": lambda m: m.get_key_patches("diffusion_model."),
}


def _compiled_object(m: Any) -> None:
    import torch

    m.add_object_patch("diffusion_model", torch.compile(m.get_model_object("diffusion_model")))


FASTER: dict[str, Change] = {
    "sage": _attention("attention_override_sage"),
    "block_swap": _transformer_option("block_swap_args", {"blocks_to_swap": 20}),
    "compiled_object": _compiled_object,
}

CHANGES: dict[str, Change] = {**KEPT, **INSIDE, **FASTER}


class TestModelChange:
    """MODEL in, the same MODEL with one change out."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "change"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "change": (list(CHANGES),)}}

    def change(self, model: Any, change: str) -> tuple[Any]:
        changed = model.clone()
        CHANGES[change](changed)
        return (changed,)
