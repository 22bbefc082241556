"""The shared workflow files, without a browser: known nodes, values that fit them, nothing of anybody's machine, a thumbnail for each."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.comfyui import REPOSITORY, ComfyServer

FILES = sorted((REPOSITORY / "workflows").glob("*.json"))
PAGE_ONLY = {"MarkdownNote": ["STRING"]}
"""Nodes that only the page knows, and their widgets."""
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""A choice that brings further widgets; those we use bring none."""
FILE_WIDGETS = ("unet_name", "ckpt_name", "clip_name", "clip_name1", "clip_name2", "clip_name3", "vae_name", "image")
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str, DYNAMIC: str}
FILE_NAME = re.compile(r"[\w][\w .-]*\.(safetensors|png)")
"""What a workflow may say of a file: its name in ComfyUI's own list."""
FOREIGN = {
    "an address": re.compile(r"\w+://|www\.|localhost|\d{1,3}(\.\d{1,3}){3}|\w+\.(com|org|net|io|ai|dev)\b", re.IGNORECASE),
    "a path out of its folder": re.compile(r"(^|[\s\"'`(])([/~\\]|[A-Za-z]:[/\\])|\.\."),
    "code": re.compile(r"<\s*script|javascript:|__\w+__|\b(eval|exec|import|require|lambda)\b\s*[({]", re.IGNORECASE),
}  # fmt: skip
THUMBNAIL_BYTES = 150_000

Workflow = dict[str, Any]
Nodes = dict[str, dict[str, Any]]
"""ComfyUI's ``/object_info``."""

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> Workflow:
    workflow: Workflow = json.loads(file.read_text(encoding="utf-8"))
    return workflow


@pytest.fixture(scope="module")
def known(comfy: ComfyServer) -> Nodes:
    nodes: Nodes = comfy.get_json("/object_info")
    return nodes


def inputs_of(info: dict[str, Any]) -> Iterator[tuple[str, str | list[Any], dict[str, Any], bool]]:
    """(name, type, options, required) of every input, in the order of the node."""
    for section in ("required", "optional"):
        for name, declared in info["input"].get(section, {}).items():
            yield name, declared[0], declared[1] if len(declared) > 1 else {}, section == "required"


def is_widget(kind: str | list[Any]) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def misfits(node: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    """Where a node's ``widgets_values`` differ from what the node declares: number, order, type, range, choice."""
    values = iter(node["widgets_values"])
    for name, kind, options, _ in inputs_of(info):
        if not is_widget(kind):
            continue
        value = next(values, None)
        if FILE_NAME.fullmatch(str(value)) and name in FILE_WIDGETS:
            pass
        elif kind == DYNAMIC:
            if value not in [option["key"] for option in options["options"] if not option["inputs"]["required"]]:
                yield f"{name}: {value!r} is no choice without further widgets"
        elif isinstance(kind, list) or kind == "COMBO":
            choices = kind if isinstance(kind, list) else options["options"]
            if value not in choices:
                yield f"{name}: {value!r} is not one of {choices}"
        elif not isinstance(value, WIDGETS[kind]) or isinstance(value, bool) != (kind == "BOOLEAN"):
            yield f"{name}: {value!r} is no {kind}"
        elif kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value):
            yield f"{name}: {value!r} is out of range"
        # The page puts widgets of its own behind these two.
        if options.get("control_after_generate") and next(values, None) not in (
            "fixed",
            "increment",
            "decrement",
            "randomize",
        ):
            yield f"{name}: no control_after_generate"  # fmt: skip
        if options.get("image_upload") and next(values, None) != "image":
            yield f"{name}: no upload button"
    rest = list(values)
    if rest:
        yield f"values that no widget takes: {rest}"


def faults(workflow: Workflow, known: Nodes) -> list[str]:
    """Everything that does not fit ComfyUI's nodes."""
    found: list[str] = []
    for node in workflow["nodes"]:
        name = f"{node['id']} ({node['type']})"
        if node["type"] in PAGE_ONLY:
            if len(node["widgets_values"]) != len(PAGE_ONLY[node["type"]]):
                found.append(f"{name}: {node['widgets_values']}")
            continue
        info = known.get(node["type"])
        if info is None:
            found.append(f"{name}: no such node")
            continue
        found += [f"{name}: {misfit}" for misfit in misfits(node, info)]
        sockets = {given["name"]: given for given in node["inputs"]}
        for input_name, kind, _, required in inputs_of(info):
            if not is_widget(kind) and required and sockets.get(input_name, {}).get("link") is None:
                found.append(f"{name}: {input_name} is not connected")
        found += [f"{name}: no input {socket}" for socket in sockets if socket not in {i[0] for i in inputs_of(info)}]
        # A newer ComfyUI may have given a node one more output.
        if [output["type"] for output in node["outputs"]] != info["output"][: len(node["outputs"])]:
            found.append(f"{name}: outputs {node['outputs']}")
    return found + link_faults(workflow)


def link_faults(workflow: Workflow) -> list[str]:
    """Links whose two ends do not agree with the nodes that they join, and ids that occur twice."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = [] if len(nodes) == len(workflow["nodes"]) else ["a node id occurs twice"]
    for number, origin, out, target, slot, kind in workflow["links"]:
        try:
            output, given = nodes[origin]["outputs"][out], nodes[target]["inputs"][slot]
        except LookupError:
            found.append(f"link {number} has no node {origin} or {target}, or no such socket there")
            continue
        if number not in output["links"] or given["link"] != number or not output["type"] == given["type"] == kind:
            found.append(f"link {number} from node {origin} to node {target}")
    ends = sorted(given["link"] for node in nodes.values() for given in node["inputs"] if given["link"] is not None)
    if ends != sorted(link[0] for link in workflow["links"]):
        found.append("the links of the inputs are not the links of the workflow")
    return found


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def foreign(workflow: Workflow) -> list[str]:
    """What a workflow that is shared must not hold."""
    return [
        f"{what}: {found[0]!r} in {text!r}"
        for text in strings(workflow)
        for what, pattern in FOREIGN.items()
        if (found := pattern.search(text))
    ]


LOADER = "TuttiLoadDiffusionModel"
OURS = {
    "Tutti FLUX.1 image to image": [LOADER],
    "Tutti FLUX.1 text to image": [LOADER],
    "Tutti FLUX.2 text to image": [LOADER],
    "Tutti HunyuanVideo text to video": [LOADER],
    "Tutti LTX-Video text to video": [LOADER],
    "Tutti Qwen-Image edit": [LOADER],
    "Tutti Qwen-Image text to image": [LOADER],
    "Tutti SD3.5 text to image": [LOADER],
    "Tutti Wan 2.2 text to video": [LOADER, LOADER],
    "Tutti Z-Image text to image": [LOADER],
    "Tutti demo": ["TuttiDemoLoader", "TuttiDemoPrompt"],
}
"""Workflow -> the only nodes in which it differs from a stock one."""


def test_there_are_workflows_for_every_family_and_for_a_start_without_downloads() -> None:
    assert [file.stem for file in FILES] == list(OURS)


@every_file
def test_every_node_link_and_value_fits_this_comfyui(known: Nodes, file: Path) -> None:
    workflow = read(file)
    assert faults(workflow, known) == []
    ours = [node["type"] for node in workflow["nodes"] if node["type"].startswith("Tutti")]
    assert ours == OURS[file.stem]


def edit(node_type: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Workflow], None]:
    """An edit of the first node of a type."""

    def apply(workflow: Workflow) -> None:
        change(next(node for node in workflow["nodes"] if node["type"] == node_type))

    return apply


EDITS: dict[str, Callable[[Workflow], None]] = {
    "an unknown node": edit("VAEDecode", lambda node: node.update(type="VAEDecodeOfNobody")),
    "a value too few": edit("KSampler", lambda node: node["widgets_values"].pop()),
    "a value too many": edit("KSampler", lambda node: node["widgets_values"].append(1)),
    "another order": edit("KSampler", lambda node: node["widgets_values"].reverse()),
    "an unknown sampler": edit("KSampler", lambda node: node["widgets_values"].__setitem__(4, "eulr")),
    "a size out of range": edit("KSampler", lambda node: node["widgets_values"].__setitem__(6, 1.5)),
    "an open socket": edit("KSampler", lambda node: node["inputs"][0].update(link=None)),
    "a plan in the place of a dtype": edit("TuttiLoadDiffusionModel", lambda node: node["widgets_values"].__setitem__(1, "auto")),
    "a file by its path": edit("VAELoader", lambda node: node.update(widgets_values=["/models/ae.safetensors"])),
    "a link to another node": lambda workflow: workflow["links"][0].__setitem__(3, workflow["nodes"][0]["id"] + 7),
}  # fmt: skip


@pytest.mark.parametrize("change", EDITS)
def test_a_file_that_does_not_fit_is_noticed(known: Nodes, change: str) -> None:
    """Negative control of the test above."""
    workflow = read(FILES[0])
    EDITS[change](workflow)
    assert faults(workflow, known)


@every_file
def test_a_workflow_holds_no_address_no_path_and_no_code(file: Path) -> None:
    assert foreign(read(file)) == []


@pytest.mark.parametrize(
    "text",
    [
        "tcp://10.0.0.1:5555", "http://gpu-box/x", "see example.com", "192.168.1.7", "/home/me/flux.safetensors", "C:\\models\\a",
        "~/models", "../../secret", "__import__('os')", "exec('x')", "<script>", "lambda (x)",
    ],
)  # fmt: skip
def test_an_address_a_path_or_code_is_noticed(text: str) -> None:
    """Negative control of the test above."""
    workflow = copy.deepcopy(read(FILES[0]))
    workflow["nodes"][1]["widgets_values"][0] = text
    assert foreign(workflow)


@every_file
def test_a_workflow_has_the_thumbnail_that_the_template_browser_asks_for(file: Path) -> None:
    """The page of ComfyUI 0.30 asks for the workflow's name with .jpg and shows it in a square."""
    path = file.with_suffix(".jpg")
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.width == picture.height >= 400
    assert path.stat().st_size <= THUMBNAIL_BYTES


def test_every_thumbnail_belongs_to_a_workflow() -> None:
    assert {path.stem for path in (REPOSITORY / "workflows").iterdir()} == {file.stem for file in FILES}
