"""What would change the picture and cannot be done in the daemon, and what only changes speed and is skipped with a line.

Every key here is checked against a list of what we know to be harmless; what is not on it is refused, so that a new node of tomorrow gives
a clear error and never a silently different picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from ..backend.errors import UnsupportedInput, WrongFamily
from .families import Family

TRAJECTORY_KEY: Final = "tutti_trajectory"
"""Where a running loop's Evaluate trajectories travel in ``transformer_options``."""
RECORDER_KEY: Final = "tutti_recorder"
"""Where a :class:`.branches.Recorder` travels in ``transformer_options``."""
SKIPPED_COMPILE: Final = "tutti_skipped_compile"
"""Attachment of a MODEL that somebody tried to compile."""

# What ComfyUI itself puts into transformer_options for bookkeeping; the networks that we run read none of it.
_HARMLESS: Final = frozenset(
    {
        "wrappers", "callbacks", "sample_sigmas", "sigmas", "cond_or_uncond", "uuids", "prefetch_dynamic_vbars", "context_window",
        TRAJECTORY_KEY, RECORDER_KEY,
    }
)  # fmt: skip
_ATTENTION: Final = "optimized_attention_override"
# The words in the names that attention patchers (KJNodes and its relatives) give to a kernel that computes the same attention faster,
# and parts of the names of kernels that leave some of it out.
_FASTER_ATTENTION: Final = re.compile(r"(?<![a-z])((sage|flash)(attn|attention)?[0-9]*|xformers|sdpa)(?![a-z0-9])")
_OTHER_ATTENTION: Final = re.compile(r"sparse|radial")
_BLOCK_SWAP: Final = "block_swap_args"
_COMPILE_WRAPPER: Final = "torch.compile"
_COMPILE_OPTION: Final = "torch_compile_kwargs"


def weight_patches() -> UnsupportedInput:
    """For merges and everything else that changes weights and is no LoRA."""
    return UnsupportedInput(
        "Remove the node that changes this MODEL's weights (LoRA, merge, ...), or load a file that has the change merged into it: "
        "the weights are in the daemon, where only LoRAs and their relatives are applied."
    )


def weight_hooks() -> UnsupportedInput:
    """For weight hooks on conditioning."""
    return UnsupportedInput(
        "Remove the hooks from the conditioning (Create Hook LoRA, Set Hooks, ...): weights cannot change during a run in the daemon."
    )


def no_weights_here() -> UnsupportedInput:
    """For saving, merging and extracting."""
    return UnsupportedInput(
        "Load the file with ComfyUI's own loader to save, merge or extract it: a Tutti MODEL has no weights in this process."
    )


def _control_net() -> UnsupportedInput:
    return UnsupportedInput(
        "Remove the ControlNet, or load the model with ComfyUI's own loader: a ControlNet runs in ComfyUI, and what it adds inside the "
        "network cannot reach the daemon."
    )


def compute_dtype() -> UnsupportedInput:
    """For another compute dtype: the daemon has to know it before it loads."""
    return UnsupportedInput("Set weight_dtype on the Tutti loader instead: it is what the model computes in.")


def reaches_in(name: str) -> UnsupportedInput:
    """For reading a module of the network."""
    return UnsupportedInput(
        f"Remove the node that reaches into the network, such as a LoRA in bypass mode (it asked for {name!r}): the network of a Tutti "
        "MODEL is in the daemon. Use Load LoRA or Tutti Load LoRA without bypass."
    )


def inside_the_network(what: str) -> UnsupportedInput:
    """For everything that changes what the network computes."""
    return UnsupportedInput(
        f"Remove the node that sets {what}, or load the model with ComfyUI's own loader: it changes the picture from inside the network, "
        "which is in the daemon."
    )


def check_conditioning(entries: Iterable[Mapping[str, Any]]) -> None:
    """Refuse what is attached to conditioning and works inside the network.

    Raises:
        UnsupportedInput: a ControlNet, a hook or a GLIGEN model.
    """
    for entry in entries:
        if entry.get("control") is not None:
            raise _control_net()
        if entry.get("hooks") is not None:
            raise weight_hooks()
        if entry.get("gligen") is not None:
            raise inside_the_network("a GLIGEN model")


def check_latent(family: Family, latent_format: Any, latent: torch.Tensor, *, is_whole: bool = True) -> None:
    """Raises :class:`WrongFamily` for a latent of another model's shape. ``is_whole``: what is sampled, not a picture beside it."""
    dimensions = getattr(latent_format, "latent_dimensions", 2) + 2
    channels = latent_format.latent_channels
    if (is_whole and latent.ndim != dimensions) or latent.shape[1] != channels:
        raise WrongFamily(
            f"Connect a latent for {family.name} ({family.advice}): this one has {latent.shape[1]} channels and "
            f"{latent.ndim} dimensions, the model takes {channels} and {dimensions}."
        )


def check_patcher(patcher: Any) -> None:
    """Refuse what other nodes have attached to the MODEL itself.

    Raises:
        UnsupportedInput: weight patches, weight hooks, injections, object patches inside the network, hooks on it or another in its place.
    """
    network = patcher.model.diffusion_model
    if not getattr(type(network), "stands_in", False):
        raise inside_the_network(f"another network ({type(network).__name__})")
    if network._forward_hooks or network._forward_pre_hooks:
        raise inside_the_network("a hook on the network")
    if patcher.patches or getattr(patcher, "weight_wrapper_patches", None):
        raise weight_patches()
    if patcher.hook_patches:
        raise weight_hooks()
    if patcher.injections:
        raise inside_the_network(f"an injection ({', '.join(map(str, patcher.injections))})")
    for name in patcher.object_patches:
        if name.split(".")[0] == "diffusion_model":
            raise inside_the_network(f"an object patch ({name})")


def check_transformer_options(options: Mapping[str, Any]) -> None:
    """Refuse options that the network of this MODEL would have read.

    An option that has the name of a wrapper is that wrapper's own state (EasyCache keeps its cache so); wrappers run here.

    Raises:
        UnsupportedInput: an option that is not known to be harmless.
    """
    owners = {key for kind in (options.get("wrappers") or {}).values() for key in kind}
    for name, value in options.items():
        if name in _HARMLESS or name in owners or value is None or (isinstance(value, dict | list) and not value):
            continue
        if name == _ATTENTION and _is_faster_attention(value):
            continue
        if name == _BLOCK_SWAP:
            continue
        if name in ("patches", "patches_replace") and not any(value.values()):
            continue
        detail = f"{name} ({', '.join(map(str, value))})" if name in ("patches", "patches_replace") else name
        raise inside_the_network(detail)


def skip_speed_only(runs: Iterable[dict[str, Any]], patcher: Any) -> list[str]:
    """Take out what only changes the speed of a local network, and say for each what replaces it.

    Changes the model options of `runs`, which belong to one run each.
    """
    found: set[str] = set()
    for model_options in runs:
        options = model_options.get("transformer_options", {})
        if _is_faster_attention(options.get(_ATTENTION)):
            del options[_ATTENTION]
            found.add("attention patch skipped: the daemon chooses its attention kernel itself")
        if options.pop(_BLOCK_SWAP, None) is not None:
            found.add("block swap skipped: the weights are in the daemon, where the plan splits the work")
        applied = options.get("wrappers", {}).get("apply_model", {}).pop(_COMPILE_WRAPPER, None)
        if applied or model_options.pop(_COMPILE_OPTION, None) is not None or patcher.get_attachment(SKIPPED_COMPILE):
            model_options.pop(_COMPILE_OPTION, None)
            found.add("torch.compile skipped: it would compile a network that is not here")
    return sorted(found)


def is_compiled(value: Any) -> bool:
    """Whether an object patch is a torch.compile'd module."""
    return type(value).__name__ == "OptimizedModule" and type(value).__module__.startswith("torch._dynamo")


def _is_faster_attention(value: Any) -> bool:
    name = str(getattr(value, "__name__", "")).lower()
    return _FASTER_ATTENTION.search(name) is not None and _OTHER_ATTENTION.search(name) is None
