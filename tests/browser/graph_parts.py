"""What the families' workflows are made of: nodes with their widgets' values and where their inputs come from, in groups, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Values = Sequence[Any]
SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "MarkdownNote": (420, 420),
    "TuttiLoadDiffusionModel": (400, 130),
    "CheckpointLoaderSimple": (400, 102),
    "LoadImage": (400, 330),
    "CLIPTextEncode": (420, 180),
    "TextEncodeQwenImageEditPlus": (420, 220),
    "KSampler": (400, 520),
    "KSamplerAdvanced": (400, 480),
    "SamplerCustom": (400, 460),
    "SamplerCustomAdvanced": (400, 420),
    "CFGNorm": (400, 114),
    "CreateVideo": (540, 110),
    "SaveImage": (540, 800),
    "SaveVideo": (540, 640),
}
"""Of nodes that need more room than their sockets: as wide as that at least, for a column's nodes are equally wide.

A whole graph has to fit into a usual window at 58 %: below 57 % ComfyUI's classic renderer leaves out what stands in nodes, notes included.
"""
GROWING: Final = frozenset(
    {"MarkdownNote", "LoadImage", "CLIPTextEncode", "TextEncodeQwenImageEditPlus", "KSampler", "KSamplerAdvanced", "SamplerCustom",
     "SamplerCustomAdvanced", "SaveImage", "SaveVideo"}
)  # fmt: skip
"""Nodes with words or a picture in them, which use the room that a column has left."""
_FIRST_ROW, _SOCKET, _WIDGET = 34, 20, 28
"""Heights in the renderer that needs more of it ("vue"). An output stands in the row of an input."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node. ``inputs``: its name -> the key of the node it comes from, with ``.1`` behind it for that one's second output."""

    key: str
    type: str
    values: Values = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the canvas."""
        sockets = max(0, len(self.inputs) - 1) * _SOCKET
        return SIZES.get(self.type, (400, _FIRST_ROW + sockets + len(self.values) * _WIDGET))


@dataclass(frozen=True)
class Group:
    """Nodes below one another; without a title there is no frame around them."""

    title: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A workflow file."""

    name: str
    columns: tuple[tuple[Group, ...], ...]


def node(key: str, type: str, *values: Any, title: str = "", **inputs: str) -> Node:
    """A node in one line."""
    return Node(key=key, type=type, values=values, inputs=inputs, title=title)


def read_me(heading: str, files: str, *more: str) -> Group:
    """The note at the top left: what to download where, and what to know. ``files`` is a tree below ``models/``."""
    tree = "\n".join(f"  {line}" for line in files.split())
    parts = [
        f"## {heading} on all your GPUs",
        "One node differs from ComfyUI's own workflow: **Tutti Load Diffusion Model**. Every other node is stock.",
        f"**Models**\n\n```\nmodels/\n{tree}\n```",
        *more,
        "**Once:** in the pack's folder, run\n\n```\npython install.py backend\n```\n\nAfter that the loader starts the daemon by itself.",
    ]
    note = Node(key="note", type="MarkdownNote", values=("\n\n".join(parts) + "\n",), title="Read me")
    return Group("", (note,))


def loader(file: str, key: str = "model", title: str = "") -> Node:
    """Ours."""
    return node(key, "TuttiLoadDiffusionModel", file, "default", "auto", "off", title=title)


def text(key: str, words: str, title: str = "Prompt") -> Node:
    """A prompt of the text encoder ``clip``."""
    return node(key, "CLIPTextEncode", words, title=title, clip="clip")


def ksampler(
    steps: int, cfg: float, sampler: str, *, model: str = "model", latent: str = "size", negative: str = "negative"
) -> Node:
    """The usual sampler."""
    return node(
        "sample", "KSampler", 7, "randomize", steps, cfg, sampler, "simple", 1,
        model=model, positive="positive", negative=negative, latent_image=latent,
    )  # fmt: skip


def decode(vae: str = "vae") -> Node:
    """Latent to pictures."""
    return node("decode", "VAEDecode", samples="sample", vae=vae)


def picture(prefix: str, number: int = 5) -> Group:
    """Save what came out."""
    return Group(f"{number} \u00b7 Picture", (node("save", "SaveImage", f"tutti/{prefix}", images="decode"),))


def video(prefix: str, frames_per_second: float) -> Group:
    """Make a film of what came out, and save it."""
    film = node("film", "CreateVideo", frames_per_second, 8, images="decode")
    save = node("save", "SaveVideo", f"tutti/{prefix}", "auto", "auto", video="film")
    return Group("5 \u00b7 Video", (film, save))
