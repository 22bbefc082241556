"""LTX-Video's parity rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from tutti.backend.models.families.ltx_video import LtxVideoGeometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

TEXT_WIDTH: Final = 48


def config(geometry: LtxVideoGeometry) -> dict[str, str]:
    """The metadata that the authors' files have, for a small checkpoint."""
    said: dict[str, Any] = {
        "in_channels": geometry.channels,
        "num_attention_heads": geometry.num_heads,
        "attention_head_dim": geometry.hidden // geometry.num_heads,
        "caption_channels": geometry.text_dim,
        "causal_temporal_positioning": geometry.causal,
        "timestep_scale_multiplier": geometry.timestep_scale,
        # ComfyUI does not use it: 10,000 it is.
        "positional_embedding_theta": 2_000.0,
        "positional_embedding_max_pos": list(geometry.extents),
    }
    return {"config": json.dumps({"transformer": said})}


def video(
    *,
    channels: int = 128,
    size: tuple[int, int, int] = (3, 4, 4),
    tokens: int = 13,
    valid: tuple[int, ...] = (),
    text_width: int = TEXT_WIDTH,
    batch: int = 1,
    frame_rate: float | None = 24.0,
) -> DrawnCall:
    """Text to video. Stock LTX-Video raises without an attention mask, so every call has one."""
    return draw(
        (batch, channels, *size),
        {"context": (batch, tokens, text_width)},
        valid={"attention_mask": (tokens, valid or (tokens,) * batch)},
        options={} if frame_rate is None else {"frame_rate": frame_rate},
    )


def masked(call: DrawnCall, mask: Tensor) -> DrawnCall:
    """A call with a noise mask ``[batch, 1, frames, height, width]``: a timestep per token, as ComfyUI's model base makes it."""
    batch, channels = call.x.shape[:2]
    timestep = (mask * call.timestep.view(-1, 1, 1, 1, 1)).reshape(batch, -1, 1)
    conditioning = {**call.conditioning, "denoise_mask": mask.expand(-1, channels, -1, -1, -1).contiguous()}
    return replace(call, timestep=timestep, conditioning=conditioning)


def from_image(call: DrawnCall, *, strength: float = 1.0) -> DrawnCall:
    """Image to video: the first frame is clean, or nearly."""
    mask = torch.ones_like(call.x[:, :1])
    mask[:, :, 0] = 1.0 - strength
    return masked(call, mask)


def guided(call: DrawnCall, *, guides: int, at: int, every: int = 1) -> DrawnCall:
    """The last frames are guides that stand at frame ``at`` of the video; ``every``: on a grid so much coarser (0: nowhere at all)."""
    batch, _, _, height, width = call.x.shape
    frames, rows, columns = torch.meshgrid(
        torch.arange(guides) * 8 + at, torch.arange(height) * 32, torch.arange(width) * 32, indexing="ij"
    )
    begin = torch.stack((frames, rows, columns)).flatten(1)[None]
    # Rows of a batch differ, and the end of every interval does not count.
    begin = begin + 8 * torch.arange(batch)[:, None, None]
    keyframes = torch.stack((begin, begin + 1000), dim=-1)
    mask = torch.ones_like(call.x[:, :1])
    mask[:, :, -guides:] = -1.0
    if every:
        mask[:, :, -guides:, ::every, ::every] = 0.2
    found = masked(call, mask)
    return replace(found, conditioning={**found.conditioning, "keyframe_idxs": keyframes})


def float_mask(call: DrawnCall) -> DrawnCall:
    """A mask that is no integer is added to the logits. (Stock LTX-Video takes one only for a batch of 1.)"""
    bias = torch.linspace(-2, 2, call.conditioning["context"].shape[1])[None]
    return replace(call, conditioning={**call.conditioning, "attention_mask": bias})


DETECTED: Final = LtxVideoGeometry(hidden=256, depth=2, channels=128, text_dim=4096)
CAUSAL: Final = LtxVideoGeometry(hidden=256, depth=2, channels=128, text_dim=TEXT_WIDTH, num_heads=4, causal=True)
OTHER: Final = LtxVideoGeometry(
    hidden=128,
    depth=1,
    channels=16,
    text_dim=TEXT_WIDTH,
    num_heads=2,
    timestep_scale=500.0,
    extents=(10.0, 1024.0, 512.0),
)

ROWS: Final = (
    FamilyRow(
        name="0.9, without metadata",
        geometry=DETECTED,
        calls={
            "even": video(text_width=4096),
            "no frame rate": video(text_width=4096, frame_rate=None),
            "odd sizes, batch 2, unequal text": video(text_width=4096, size=(3, 3, 5), batch=2, valid=(13, 4)),
        },
    ),
    FamilyRow(
        name="0.9.5 and on",
        geometry=CAUSAL,
        metadata=config(CAUSAL),
        calls={
            "even": video(),
            "odd sizes": video(size=(3, 5, 3), frame_rate=29.97),
            "one frame, one token": video(size=(1, 1, 1), tokens=1),
            "two frames, batch 2, unequal text": video(size=(2, 4, 3), batch=2, valid=(3, 13), frame_rate=25),
            "long text": video(tokens=300, valid=(170,)),
            "text masked out entirely": video(valid=(0,)),
            "mask of floats": float_mask(video()),
            "image to video": from_image(video()),
            "image to video, odd sizes, batch 2": from_image(video(size=(3, 3, 5), batch=2), strength=0.7),
            "image to video, one frame, one token": from_image(video(size=(1, 1, 1)), strength=0.5),
            "a guide": guided(video(size=(4, 4, 4)), guides=1, at=9),
            "guides, odd sizes, batch 2": guided(video(size=(5, 3, 5), batch=2, valid=(13, 5)), guides=2, at=1),
            "guides on a coarser grid": guided(video(size=(4, 4, 6)), guides=1, at=0, every=2),
            "guides that are left out": guided(video(size=(4, 3, 4)), guides=1, at=0, every=0),
        },
    ),
    FamilyRow(
        name="other scales",
        geometry=OTHER,
        metadata=config(OTHER),
        calls={"even": video(channels=16), "image to video": from_image(video(channels=16))},
    ),
)
