"""One checkpoint as the daemon sees it: what ComfyUI's detection needs to know, without a weight being read here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..backend.errors import BadCheckpoint
from ..backend.wire.messages import Described
from ..backend.wire.schema import Scalar
from . import host
from .catalog import PREFIX
from .session import Session
from .tensors import torch_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One checkpoint as the daemon sees it: names, shapes and dtypes, no weights."""

    model: str
    """The daemon's name of it."""
    fingerprint: str
    metadata: dict[str, Scalar]
    tensors: dict[str, torch.Tensor]
    """On the meta device."""


def describe(session: Session, name: str) -> Checkpoint:
    """Ask the daemon for the checkpoint that the loader calls `name`.

    Raises:
        UnknownModel: neither the daemon's folders nor those that ComfyUI told it have it.
        BadCheckpoint: the file cannot be read.
    """
    with session.guarded():
        received = session.client().describe(PREFIX + name.replace("\\", "/"), host.raise_if_interrupted)
    message = received.message
    if not isinstance(message, Described) or not received.manifest:
        raise BadCheckpoint(f"Choose another file: the daemon finds no tensors in {name}.")
    tensors = {}
    for entry in received.manifest:
        # A kind that torch has no dtype for is quantised: the daemon reads it (or would have refused the file) and computes in bf16.
        dtype = torch_dtype(entry.kind) or torch.bfloat16
        tensors[entry.name] = torch.empty(entry.numbers, dtype=dtype, device="meta")
    return Checkpoint(
        model=message.model, fingerprint=message.fingerprint, metadata=dict(message.metadata), tensors=tensors
    )
