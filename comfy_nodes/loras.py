"""LoRAs over a MODEL without weights: what loaders would change is kept beside the MODEL and sent when it runs.

ComfyUI's own loaders read a file, look its keys up in the MODEL's names and hand over what fits; that travels as a small safetensors file under
the names of the weights. Our loader sends a file's name only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from safetensors.torch import save

from ..backend.errors import UnsupportedInput
from ..backend.wire.messages import LoraRef

SETS_KEPT: Final = 4
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    # ComfyUI's kind of adapter -> the endings of its parts in a file; "" is no tensor (alpha) or one that has to be missing.
    "lora": ("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", "dora_scale", ""),
    "loha": ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
    "lokr": (
        "lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "dora_scale",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedLora:
    """One that the daemon has in its folders."""

    name: str
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLora:
    """One that ComfyUI has read."""

    data: bytes
    """A safetensors file."""
    strength: float


Lora = NamedLora | ReadLora
T = TypeVar("T")


class LastSets(Generic[T]):
    """What belongs to each of the few sets of LoRAs that were used last: MODELs with different ones take turns in one loop.

    A set is known by its identity, because to compare its files would be to read all of them, in every call of a loop.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[tuple[Lora, ...], T]] = OrderedDict()
        """With the set itself: as long as it is here, no other one has its identity."""

    def get(self, loras: tuple[Lora, ...]) -> T | None:
        """What was put for this very set, if it is still here."""
        if id(loras) not in self._kept:
            return None
        self._kept.move_to_end(id(loras))
        return self._kept[id(loras)][1]

    def put(self, loras: tuple[Lora, ...], value: T) -> None:
        """Keep it; the set that was used longest ago goes."""
        self._kept[id(loras)] = (loras, value)
        self._kept.move_to_end(id(loras))
        while len(self._kept) > SETS_KEPT:
            self._kept.popitem(last=False)


def references(loras: tuple[Lora, ...], store: Callable[[bytes], str]) -> tuple[LoraRef, ...]:
    """What a job says about them. ``store`` has the daemon keep a file and gives its name there."""
    return tuple(
        LoraRef(name=lora.name if isinstance(lora, NamedLora) else store(lora.data), strength=lora.strength)
        for lora in loras
    )


def from_patches(patches: Mapping[Any, Any], strength: float) -> ReadLora:
    """The LoRA that some of ComfyUI's weight patches are: key (or key, offset and function) -> adapter or difference.

    Raises:
        UnsupportedInput: a kind of patch that the daemon does not have.
    """
    tensors: dict[str, torch.Tensor] = {}
    for key, patch in patches.items():
        layer, is_bias = _layer(key)
        tensors |= {f"{layer}.{ending}": tensor for ending, tensor in _parts(patch, is_bias, str(key)).items()}
    dense = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    return ReadLora(data=save(dense), strength=strength)


def _layer(key: Any) -> tuple[str, bool]:
    """The layer's name, with the part of it that is meant; and whether it is the bias."""
    name, offset, function = (*key, None, None)[:3] if isinstance(key, tuple) else (key, None, None)
    is_bias = name.endswith(".bias")
    layer = name.removesuffix(".bias" if is_bias else ".weight")
    if offset is not None:
        dimension, start, length = offset
        if dimension != 0:
            raise _not_ours(f"part of dimension {dimension} of {name}")
        layer += f"[{start}:{start + length}]"
    if function is not None:
        if getattr(function, "__name__", "") != "swap_scale_shift":
            raise _not_ours(f"a function on {name}")
        layer += "[swapped]"
    return layer, is_bias


def _parts(patch: Any, is_bias: bool, key: str) -> dict[str, torch.Tensor]:
    """Ending -> tensor."""
    kind = str(getattr(patch, "name", ""))
    if kind in _PARTS and not is_bias:
        endings = _PARTS[kind]
        found = dict(zip(endings, patch.weights, strict=False))
        if found.pop("", None) is not None:
            raise _not_ours(f"another shape of {key}")
        alpha = found.pop("alpha", None)
        if alpha is not None:
            found["alpha"] = torch.tensor(float(alpha))
        return {ending: tensor for ending, tensor in found.items() if tensor is not None}
    if isinstance(patch, tuple) and len(patch) == 1:
        patch = ("diff", patch)
    if isinstance(patch, tuple) and patch[0] == "diff" and len(patch[1]) == 1:
        return {"diff_b" if is_bias else "diff": patch[1][0]}
    if isinstance(patch, tuple) and patch[0] == "set" and not is_bias:
        return {"set_weight": patch[1][0]}
    raise _not_ours(
        f"a patch of kind {kind or (patch[0] if isinstance(patch, tuple) else type(patch).__name__)} on {key}"
    )


def _not_ours(what: str) -> UnsupportedInput:
    return UnsupportedInput(
        f"Merge this LoRA into the checkpoint, or load the model with ComfyUI's own loader: it has {what}, which Tutti does not apply."
    )
