"""Writes the families' shared workflows: ComfyUI's usual graph of each family with our loader in the place of its own.

    python -m tests.browser.write_workflows

The graphs stand in :mod:`tests.browser.graphs`; names, order and types of inputs come from a running ComfyUI, so that a file
never names a socket that is not there. Draw the thumbnails afterwards (``draw_pictures``).
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.browser.graph_parts import GROWING, Graph, Group, Node
from tests.browser.graphs import GRAPHS
from tests.browser.scene import serve
from tests.support import daemon
from tests.support.comfyui import REPOSITORY

WORKFLOWS: Final = REPOSITORY / "workflows"
EXPECTED: Final = Path(__file__).with_name("expected")
GAP: Final = 50
"""Between two nodes of a group."""
COLUMN_GAP: Final = 40
MARGIN: Final = 20
HEADING: Final = 74
"""From a group's upper edge to its first node."""
TITLE_BAR: Final = 30
"""Of a node, above the position that a file gives for it."""
BLUE: Final = "#3f789e"
COLOURS: Final = {
    "TuttiLoadDiffusionModel": ("#223", "#335"),
    "MarkdownNote": ("#432", "#653"),
    "Prompt": ("#232", "#353"),
    "Negative prompt": ("#322", "#533"),
}
"""By type or title: (header, body)."""
WIDGETS: Final = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"})

Nodes = Mapping[str, Any]
"""ComfyUI's ``/object_info``."""


@dataclass
class Written:
    """A workflow file in the making."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)


def inputs_of(info: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name, type, options) of every input in the order of the node."""
    for section in ("required", "optional"):
        for name, declared in info["input"].get(section, {}).items():
            kind = "COMBO" if isinstance(declared[0], list) else declared[0]
            yield name, kind, declared[1] if len(declared) > 1 else {}


def node_json(node: Node, number: int, place: tuple[int, int], size: tuple[int, int], known: Nodes) -> dict[str, Any]:
    """A node without its links."""
    info = known.get(node.type, {"input": {}, "output": []})
    sockets = [
        (name, kind)
        for name, kind, _ in inputs_of(info)
        if kind not in WIDGETS and (name in node.inputs or name in _required(info))
    ]
    written: dict[str, Any] = {
        "id": number,
        "type": node.type,
        "pos": list(place),
        "size": list(size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": None} for name, kind in sockets],
        "outputs": [
            {"name": name, "type": kind, "links": []}
            for name, kind in zip(info.get("output_name") or info["output"], info["output"], strict=True)
        ],
        "properties": {"Node name for S&R": node.type},
        "widgets_values": list(node.values),
    }
    if node.title:
        written["title"] = node.title
    colours = COLOURS.get(node.type) or COLOURS.get(node.title)
    if colours:
        written["color"], written["bgcolor"] = colours
    return written


def _required(info: Mapping[str, Any]) -> Mapping[str, Any]:
    required: Mapping[str, Any] = info["input"].get("required", {})
    return required


def workflow_of(graph: Graph, known: Nodes) -> dict[str, Any]:
    """The file's content."""
    written, numbers = Written(), {}
    left, bottom = 0, max(_height(column) for column in graph.columns)
    for column in graph.columns:
        top, sizes = 0, _sizes(column, bottom)
        for group in column:
            top = _place_group(group, (left, top), sizes, written, numbers, known)
        left += _width(column) + COLUMN_GAP
    for column in graph.columns:
        for group in column:
            for node in group.nodes:
                _link(node, numbers, written)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, graph.name)),
        "revision": 0,
        "last_node_id": len(written.nodes),
        "last_link_id": len(written.links),
        "nodes": written.nodes,
        "links": written.links,
        "groups": written.groups,
        "config": {},
        "extra": {"ds": {"scale": 0.65, "offset": [60, 110]}},
        "version": 0.4,
    }


def _height(column: Sequence[Group]) -> int:
    """Of a column whose nodes are as small as they may be."""
    groups = [_edges(group) + sum(node.size[1] + GAP for node in group.nodes) - GAP for group in column]
    return sum(groups) + MARGIN * (len(groups) - 1)


def _edges(group: Group) -> int:
    """Height of what is above and below a group's nodes."""
    return HEADING + MARGIN if group.title else TITLE_BAR


def _width(column: Sequence[Group]) -> int:
    """Of a column, frames included."""
    return max(node.size[0] for group in column for node in group.nodes) + 2 * MARGIN


def _sizes(column: Sequence[Group], bottom: int) -> dict[str, tuple[int, int]]:
    """Key -> width and height of every node: all as wide as the column allows, and so high that the column ends at `bottom`."""
    growing = [node.key for group in column for node in group.nodes if node.type in GROWING]
    share, rest = divmod(bottom - _height(column), len(growing))
    growth = dict.fromkeys(growing, share) | {growing[-1]: share + rest}
    return {
        node.key: (_width(column) - 2 * _inset(group), node.size[1] + growth.get(node.key, 0))
        for group in column
        for node in group.nodes
    }


def _inset(group: Group) -> int:
    """From the column's edge to the group's nodes."""
    return MARGIN if group.title else 0


def _place_group(
    group: Group,
    corner: tuple[int, int],
    sizes: Mapping[str, tuple[int, int]],
    written: Written,
    numbers: dict[str, int],
    known: Nodes,
) -> int:
    """Put a group's nodes below one another; returns where the next group of its column begins."""
    left, top = corner
    inset, y = _inset(group), top + (HEADING if group.title else TITLE_BAR)
    for node in group.nodes:
        width, height = sizes[node.key]
        numbers[node.key] = len(written.nodes) + 1
        written.nodes.append(node_json(node, numbers[node.key], (left + inset, y), (width, height), known))
        y += height + GAP
    bottom = y - GAP + inset
    if group.title:
        box = [left, top, width + 2 * MARGIN, bottom - top]
        written.groups.append(
            {
                "id": len(written.groups) + 1,
                "title": group.title,
                "bounding": box,
                "color": BLUE,
                "font_size": 24,
                "flags": {},
            }
        )
    return bottom + MARGIN


def _link(node: Node, numbers: Mapping[str, int], written: Written) -> None:
    target = written.nodes[numbers[node.key] - 1]
    for slot, socket in enumerate(target["inputs"]):
        if socket["name"] not in node.inputs:
            continue
        origin_key, _, output = node.inputs[socket["name"]].partition(".")
        origin = written.nodes[numbers[origin_key] - 1]
        number = len(written.links) + 1
        socket["link"] = number
        origin["outputs"][int(output or 0)]["links"].append(number)
        written.links.append([number, origin["id"], int(output or 0), target["id"], slot, socket["type"]])


def prompt_of(graph: Graph, known: Nodes) -> dict[str, Any]:
    """What the page has to queue for the graph, whatever the file looks like."""
    nodes = [node for column in graph.columns for group in column for node in group.nodes]
    numbers = {node.key: str(number) for number, node in enumerate(nodes, start=1)}
    return {
        numbers[node.key]: {"inputs": _prompt_inputs(node, numbers, known[node.type]), "class_type": node.type}
        for node in nodes
        if node.type in known
    }


def _prompt_inputs(node: Node, numbers: Mapping[str, str], info: Mapping[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    values = iter(node.values)
    for name, kind, options in inputs_of(info):
        if kind in WIDGETS:
            inputs[name] = next(values)
            if options.get("control_after_generate") or options.get("image_upload"):
                next(values)  # the page's own
        elif name in node.inputs:
            origin, _, output = node.inputs[name].partition(".")
            inputs[name] = [numbers[origin], int(output or 0)]
    return inputs


def write(graph: Graph, known: Nodes) -> None:
    """Write ``<name>.json``, and what the page is expected to queue for it."""
    for folder, content in ((WORKFLOWS, workflow_of(graph, known)), (EXPECTED, prompt_of(graph, known))):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / f"{graph.name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Ask a real ComfyUI for its nodes, and write every graph."""
    with (
        tempfile.TemporaryDirectory() as folder,
        daemon.private_state_dir() as state_dir,
        serve(Path(folder), state_dir) as server,
    ):
        known = server.get_json("/object_info")
    for graph in GRAPHS:
        write(graph, known)


if __name__ == "__main__":
    main()
