"""The shared workflows open cleanly in ComfyUI's page, in both of its renderers, and from its template browser."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import OpenEditor
from tests.browser.editor import RENDERERS, Editor, Rectangle, chromium, open_editor
from tests.browser.scene import PACK
from tests.support.comfyui import REPOSITORY, ComfyServer

FILES = sorted((REPOSITORY / "workflows").glob("*.json"))
EXPECTED = Path(__file__).with_name("expected")
EDGE = 1.5
"""Graph units that two neighbours may share: borders and rounding."""
NOTES = """() => [...document.querySelectorAll('.comfy-markdown .tiptap, .comfy-markdown-content')].map(note => {
    let cut = Infinity;
    for (let box = note; box && box !== document.body; box = box.parentElement)
        if (getComputedStyle(box).overflowY !== "visible") cut = Math.min(cut, box.getBoundingClientRect().bottom);
    return [note.textContent, note.lastElementChild.getBoundingClientRect().bottom, cut];
})"""
"""Text of every note, where its last line ends, and where the boxes around it cut it off, in pixels of the page."""

Workflow = dict[str, Any]


def read(file: Path) -> Workflow:
    workflow: Workflow = json.loads(file.read_text(encoding="utf-8"))
    return workflow


@dataclass(frozen=True)
class Seen:
    """A workflow as the page shows it."""

    file: Path
    nodes: list[dict[str, Any]]
    prompt: dict[str, Any]
    rectangles: dict[str, Rectangle]
    groups: dict[str, Rectangle]
    needed_widths: dict[str, float]
    """Node id -> width that the classic renderer needs for names and values."""
    notes: list[tuple[str, float, float]]
    """As :data:`NOTES` says."""


def look(editor: Editor, file: Path) -> Seen:
    """Open a file and note everything that the tests ask about."""
    editor.load(read(file))
    return Seen(
        file=file,
        nodes=editor.nodes(),
        prompt=editor.prompt(),
        rectangles=editor.node_rectangles(),
        groups=editor.group_rectangles(),
        needed_widths={name: size[0] for name, size in editor.needed_sizes().items()},
        notes=[tuple(note) for note in editor.page.evaluate(NOTES)],
    )


@pytest.fixture(
    scope="module",
    params=itertools.product(FILES, RENDERERS),
    ids=lambda param: f"{param[0].stem}, {param[1]}",
)
def seen(comfy: ComfyServer, request: pytest.FixtureRequest) -> Seen:
    """Every file in every renderer."""
    file, renderer = request.param
    with chromium() as browser, open_editor(browser, comfy, renderer, {}) as editor:
        result = look(editor, file)
        editor.check(PACK)
    return result


def unknown(nodes: list[dict[str, Any]]) -> list[str]:
    return [node["type"] for node in nodes if not node["known"]]


def test_a_workflow_opens_complete(seen: Seen) -> None:
    assert sorted(node["type"] for node in seen.nodes) == sorted(node["type"] for node in read(seen.file)["nodes"])
    assert unknown(seen.nodes) == []


def test_the_page_would_queue_what_is_expected(seen: Seen) -> None:
    expected = json.loads((EXPECTED / seen.file.name).read_text(encoding="utf-8"))
    assert {
        name: {key: node[key] for key in ("class_type", "inputs")} for name, node in seen.prompt.items()
    } == expected


def test_nothing_overlaps_and_groups_hold_their_nodes(seen: Seen) -> None:
    assert untidy(seen.rectangles, seen.groups) == []
    assert all(seen.rectangles[name][2] >= width for name, width in seen.needed_widths.items())


def test_notes_are_read_without_scrolling(seen: Seen) -> None:
    assert len(seen.notes) == 1
    for text, end, cut in seen.notes:
        assert "Tutti Load Diffusion Model" in text
        assert 0 < end <= cut


def untidy(nodes: dict[str, Rectangle], groups: dict[str, Rectangle]) -> list[str]:
    """What a tidy person would move."""
    found = [f"nodes {a} and {b} overlap" for a, b in itertools.combinations(nodes, 2) if overlap(nodes[a], nodes[b])]
    for a, b in itertools.combinations(groups, 2):
        if overlap(groups[a], groups[b]):
            found.append(f"groups {a!r} and {b!r} overlap")
    for name, node in nodes.items():
        around = [group for group in groups.values() if overlap(node, group)]
        if len(around) > 1 or any(not inside(node, group) for group in around):
            found.append(f"node {name} at {node} sticks out of its group")
    return found


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return all(a[i] + EDGE < b[i] + b[i + 2] and b[i] + EDGE < a[i] + a[i + 2] for i in (0, 1))


def inside(a: Rectangle, b: Rectangle) -> bool:
    return all(b[i] - EDGE <= a[i] and a[i] + a[i + 2] <= b[i] + b[i + 2] + EDGE for i in (0, 1))


def test_untidiness_is_noticed() -> None:
    """Negative control."""
    group = {"g": (0.0, 0.0, 100.0, 100.0)}
    assert untidy({"1": (10, 10, 50, 50), "2": (70, 10, 20, 50)}, group) == []
    assert untidy({"1": (10, 10, 50, 50), "2": (50, 10, 20, 50)}, group) == ["nodes 1 and 2 overlap"]
    assert len(untidy({"1": (10, 60, 50, 50)}, group)) == 1
    assert len(untidy({}, {**group, "h": (90, 90, 20, 20)})) == 1


def test_an_unknown_node_and_a_long_note_are_noticed(open_editor: OpenEditor) -> None:
    """Negative control."""
    workflow = read(FILES[0])
    workflow["nodes"][1]["type"] = "NodeOfAnotherPack"
    note = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    note["widgets_values"] = [note["widgets_values"][0] * 3]
    editor = open_editor("classic")
    editor.load(workflow)
    assert unknown(editor.nodes()) == ["NodeOfAnotherPack"]
    ((_, end, cut),) = editor.page.evaluate(NOTES)
    assert end > cut, "the other renderer makes the node larger instead, which then overlaps its neighbour"


def test_the_template_browser_shows_the_workflows_with_their_pictures_and_opens_one(open_editor: OpenEditor) -> None:
    editor = open_editor("vue")
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    shown = "image => image.complete && image.naturalWidth === image.naturalHeight && image.naturalWidth >= 400"
    cards = {file: editor.page.get_by_test_id(f"template-workflow-{file.stem}") for file in FILES}
    for file, card in cards.items():
        card.wait_for()
        card.scroll_into_view_if_needed()  # the page asks for a picture only when its card is in sight
        editor.page.wait_for_function(shown, arg=card.locator("img").first.element_handle())
        assert (200, f"/api/workflow_templates/{PACK}/{file.stem}.jpg") in editor.answers
    cards[FILES[0]].click()
    count = len(read(FILES[0])["nodes"])
    editor.page.wait_for_function("count => app.graph._nodes.length === count", arg=count)
    assert unknown(editor.nodes()) == []
