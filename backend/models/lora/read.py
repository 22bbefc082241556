"""A LoRA file as patches: every key is understood or named in an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from ...errors import BadCheckpoint
from ..checkpoint import Source
from ..family import Family
from .adapters import Adapter, Patch

_BIAS: Final = "diff of the bias"
_KINDS: Final = ("lora", "loha", "lokr", "diff", "set")
"""What changes a weight. Of several that a file has for one layer ComfyUI's loader keeps the last in this order."""
_PARTS: Final[Mapping[str, tuple[str, str]]] = {
    # Ending of a key -> kind, part. Longer endings come first.
    ".lora_linear_layer.up.weight": ("lora", "up"),
    ".lora_linear_layer.down.weight": ("lora", "down"),
    ".lora_B.default.weight": ("lora", "up"),
    ".lora_A.default.weight": ("lora", "down"),
    ".lora_up.weight": ("lora", "up"),
    ".lora_down.weight": ("lora", "down"),
    ".lora_mid.weight": ("lora", "mid"),
    ".lora_B.weight": ("lora", "up"),
    ".lora_A.weight": ("lora", "down"),
    ".lora.up.weight": ("lora", "up"),
    ".lora.down.weight": ("lora", "down"),
    "_lora.up.weight": ("lora", "up"),
    "_lora.down.weight": ("lora", "down"),
    ".lora_B": ("lora", "up"),
    ".lora_A": ("lora", "down"),
    **{f".hada_{part}": ("loha", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": ("lokr", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "w1", "w2", "t2")},
    ".diff": ("diff", "value"),
    ".diff_b": (_BIAS, "value"),
    ".set_weight": ("set", "value"),
}
_SHARED: Final = {".alpha": "alpha", ".dora_scale": "dora_scale"}
_NEEDED: Final = {"lora": ("up", "down"), "loha": ("w1_a", "w1_b", "w2_a", "w2_b"), "lokr": ()}
_FACTORS: Final = (("w1", ("w1_a", "w1_b")), ("w2", ("w2_a", "w2_b")))
"""Of a LoKr: each is there as it is, or as two."""
_FUSED_WITH_MLP: Final = ".linear1"
"""How the name of a layer ends that makes query, key and value, and behind them the MLP's first half; FLUX's own trainers also name the three."""
_TEXT_ENCODERS: Final = ("lora_te", "text_encoder", "te1_", "te2_", "lycoris_te")
_NAMED: Final = 6
_ROWS: Final = re.compile(r"(\d{1,9}):(\d{1,9})\]")
_SWAPPED: Final = "swapped]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the name of a layer in a LoRA file leads."""

    layer: str
    """In the original checkpoint, without ``.weight``."""
    rows: tuple[int, int] | None = None
    swap_halves: bool = False


def targets_of(family: Family[Any], geometry: Any) -> dict[str, Target]:
    """Every name that trainers give to a layer of this network -> the layer.

    kohya: ``lora_unet_`` (Wan Fun: ``lora_unet__``) and the original name with underscores. ComfyUI and the authors: ``diffusion_model.`` and
    the original name; diffusion-pipe: the same, or with ``transformer.``. An original name is ComfyUI's or that of published checkpoints.
    diffusers and PEFT: ``transformer.`` (or nothing, or ``base_model.model.``) and diffusers' name; OneTrainer and SimpleTuner: the same with
    underscores behind ``lora_transformer_`` and ``lycoris_``.
    """
    targets: dict[str, Target] = {}
    names = family.key_map(geometry)
    for parameter in family.empty_network(geometry).state_dict():
        if not parameter.endswith(".weight"):
            continue
        source = names.source(parameter) if family.original_marks else Source(parameter)
        ours, original = parameter.removesuffix(".weight"), source.name.removesuffix(".weight")
        part = Target(layer=original, rows=source.rows, swap_halves=source.swap_halves)
        for prefix in ("transformer.", "", "base_model.model.", "diffusion_model."):
            targets[f"{prefix}{ours}"] = part
        for prefix in ("lora_transformer_", "lycoris_", "lora_unet_"):
            targets[f"{prefix}{ours.replace('.', '_')}"] = part
        _add_original(targets, original, family, geometry)
    return targets


def _add_original(targets: dict[str, Target], original: str, family: Family[Any], geometry: Any) -> None:
    whole = Target(layer=original)
    targets[f"diffusion_model.{original}"] = whole
    targets[f"lora_unet_{original.replace('.', '_')}"] = whole
    # What follows never takes the place of a name that already leads somewhere.
    for name in _spellings(original, family):
        for prefix in ("diffusion_model.", "transformer."):
            targets.setdefault(f"{prefix}{name}", whole)
        for prefix in ("lora_unet_", "lora_unet__"):
            targets.setdefault(f"{prefix}{name.replace('.', '_')}", whole)
    if original.endswith(_FUSED_WITH_MLP):
        queries_keys_values = Target(layer=original, rows=(0, 3 * geometry.hidden))
        targets.setdefault(f"diffusion_model.{original}_qkv", queries_keys_values)


def _spellings(original: str, family: Family[Any]) -> Iterator[str]:
    """A layer's original name in ComfyUI's spelling, and in that of published checkpoints where it is another."""
    yield original
    weight = f"{original}.weight"
    for usual, other in family.spellings.items():
        if weight.endswith(usual):  # of several ends that fit, the first is the right one
            yield f"{weight.removesuffix(usual)}{other}".rpartition(".")[0]
            return


def read_lora(tensors: Mapping[str, Tensor], targets: Mapping[str, Target], *, strength: float) -> list[Patch]:
    """The patches of a file, in the order of its layers.

    Raises:
        BadCheckpoint: a key that nothing of the model answers to, half of an adapter, or one layer under two names.
    """
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    alphas: dict[str, float] = {}
    found: dict[str, Target] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        layer, kind, part = _taken_apart(key)
        target = _target(layer, targets)
        if target is None:
            unknown.append(key)
            continue
        found[layer] = target
        if part == "alpha":
            if tensor.numel() != 1:
                raise BadCheckpoint(f"Download the LoRA again: {key} is no single number.")
            alphas[layer] = float(tensor)
            layers.setdefault(layer, {})
        elif part in layers.setdefault(layer, {}).setdefault(kind, {}):
            raise BadCheckpoint(f"Choose another LoRA: it says twice what {layer} is changed by, as {key} too.")
        else:
            layers[layer][kind][part] = tensor
    _refuse_unknown(unknown, len(tensors))
    patches: dict[tuple[str, tuple[int, int] | None, bool], Patch] = {}
    for layer, kinds in layers.items():
        for patch in _patches(layer, kinds, alphas.get(layer), found[layer], strength):
            place = (patch.weight, patch.rows, patch.swap_halves)
            if place in patches:
                raise BadCheckpoint(
                    f"Choose another LoRA: it says twice what {patch.weight} is changed by, the second time as {layer}."
                )
            patches[place] = patch
    return list(patches.values())


def _target(layer: str, targets: Mapping[str, Target]) -> Target | None:
    """Where a layer's name leads. ``layer[0:256]`` and ``layer[swapped]`` are parts of one: what ComfyUI's own patches say."""
    whole, *marks = layer.split("[")
    target = targets.get(whole)
    for mark in marks:
        rows = _ROWS.fullmatch(mark)
        if target is None or (rows is None and mark != _SWAPPED):
            return None
        target = replace(target, rows=(int(rows[1]), int(rows[2]))) if rows else replace(target, swap_halves=True)
    return target


def _taken_apart(key: str) -> tuple[str, str, str]:
    """(layer, kind, part) of a key; an empty layer for one that no trainer writes."""
    for ending, (kind, part) in _PARTS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), kind, part
    for ending, part in _SHARED.items():
        if key.endswith(ending):
            return key.removesuffix(ending), "shared", part
    return "", "", ""


def _refuse_unknown(unknown: list[str], count: int) -> None:
    if not unknown:
        return
    named = ", ".join(sorted(unknown)[:_NAMED]) + (" and others" if len(unknown) > _NAMED else "")
    if all(key.startswith(_TEXT_ENCODERS) for key in unknown):
        raise BadCheckpoint(
            f"Load this LoRA with ComfyUI's own Load LoRA node: {len(unknown)} of its {count} keys are for the text encoder, which is "
            f"ComfyUI's: {named}."
        )
    if len(unknown) == count:
        raise BadCheckpoint(f"Choose a LoRA for this model: none of its {count} keys fits, such as {named}.")
    raise BadCheckpoint(
        f"Choose another LoRA: {len(unknown)} of its {count} keys lead to nothing in this model, and leaving them out would change the "
        f"picture: {named}."
    )


def _patches(
    layer: str, kinds: Mapping[str, Mapping[str, Tensor]], alpha: float | None, target: Target, strength: float
) -> list[Patch]:
    """What a layer is changed by: its weight by the last of several kinds, as in ComfyUI's own loader, and its bias."""
    said = [kind for kind in (*_KINDS, _BIAS) if kind in kinds]
    if not said:
        raise BadCheckpoint(f"Download the LoRA again: {layer} has half of an adapter, its matrices are missing.")
    for kind in said:
        _refuse_half(layer, kind, kinds[kind])
    patch = Patch(
        weight=f"{target.layer}.weight",
        adapter=Adapter(kind="diff", tensors=kinds.get(_BIAS, {})),
        rows=target.rows,
        swap_halves=target.swap_halves,
        strength=strength,
    )
    found = [replace(patch, weight=f"{target.layer}.bias")] if _BIAS in kinds else []
    if of_weight := [kind for kind in said if kind != _BIAS]:
        kind = of_weight[-1]
        # The magnitude of a DoRA belongs to matrices: a whole difference is added as it is.
        shared = kinds.get("shared", {}) if kind in _NEEDED else {}
        found.append(replace(patch, adapter=Adapter(kind=kind, tensors={**kinds[kind], **shared}, alpha=alpha)))
    return found


def _refuse_half(layer: str, kind: str, parts: Mapping[str, Tensor]) -> None:
    missing = [part for part in _NEEDED.get(kind, ()) if part not in parts]
    if kind == "lokr":
        missing += [part for whole, halves in _FACTORS if whole not in parts for part in halves if part not in parts]
    if missing:
        raise BadCheckpoint(f"Download the LoRA again: {layer} has half of an adapter, {missing[0]} is missing.")
