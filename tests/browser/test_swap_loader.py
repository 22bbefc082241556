"""One entry in the loader's menu changes a stock workflow into ours and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.conftest import OpenEditor
from tests.browser.editor import RENDERERS, Editor
from tests.browser.scene import FLUX
from tests.support.comfyui import REPOSITORY, Prompt

OURS, STOCK = "TuttiLoadDiffusionModel", "UNETLoader"
LABELS = {OURS: "Run in ComfyUI (Load Diffusion Model)", STOCK: "Run on all GPUs (Tutti)"}
SWAP = """type => {
    const node = app.canvas.graph._nodes.find(n => n.type === type);
    app.extensions.find(e => e.name === "Tutti.SwapLoader").getNodeMenuItems(node)[0].callback();
}"""
"""What a click on the entry does, in whatever graph is on the canvas."""
INTO_SUBGRAPH = """type => {
    const node = app.graph._nodes.find(n => n.type === type);
    app.canvas.setGraph(app.graph.convertToSubgraph(new Set([node])).subgraph);
}"""
REROUTE = """type => {
    const node = app.graph._nodes.find(n => n.type === type);
    app.graph.createReroute([400, 400], app.graph.links.get(node.outputs[0].links[0]));
}"""


def workflow() -> dict[str, Any]:
    text = (REPOSITORY / "workflows" / "Tutti FLUX.1 text to image.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def loader_behind_the_sampler(prompt: Prompt) -> dict[str, Any]:
    """The node that the sampler's MODEL comes from: links moved along when this is the new one."""
    (sampler,) = [node for node in prompt.values() if node["class_type"] == "KSampler"]
    return prompt[sampler["inputs"]["model"][0]]


def choose(editor: Editor, node_type: str) -> None:
    """Right-click the loader's title and choose the pack's entry."""
    x, y, width, height = editor.on_page(editor.node_of(node_type))
    editor.page.mouse.click(x + width * 0.3, y + min(10.0, height / 2), button="right")
    editor.page.get_by_text(LABELS[node_type], exact=True).click()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_menu_swaps_the_loader_there_and_back(open_editor: OpenEditor, renderer: str) -> None:
    editor = open_editor(renderer)
    editor.load(workflow())
    before = editor.prompt()
    choose(editor, OURS)
    stock = loader_behind_the_sampler(editor.prompt())
    assert stock["class_type"] == STOCK
    assert stock["inputs"] == {"unet_name": FLUX, "weight_dtype": "default"}
    assert [node["title"] for node in editor.nodes() if node["type"] == STOCK] == ["Load Diffusion Model"]
    choose(editor, STOCK)
    after = editor.prompt()
    assert loader_behind_the_sampler(after) == loader_behind_the_sampler(before)
    assert len(after) == len(before)


def test_a_swap_can_be_undone(open_editor: OpenEditor) -> None:
    editor = open_editor("vue")
    editor.load(workflow())
    before = editor.prompt()
    choose(editor, OURS)
    editor.page.keyboard.press("Control+z")
    editor.page.wait_for_function("type => app.graph._nodes.some(n => n.type === type)", arg=OURS)
    assert editor.prompt() == before


def test_a_loader_in_a_subgraph_is_swapped_where_it_is(open_editor: OpenEditor) -> None:
    """Its output goes to the subgraph's edge, not to a node."""
    editor = open_editor("classic")
    editor.load(workflow())
    editor.page.evaluate(INTO_SUBGRAPH, OURS)
    editor.page.evaluate(SWAP, OURS)
    assert loader_behind_the_sampler(editor.prompt())["class_type"] == STOCK
    editor.page.evaluate(SWAP, STOCK)
    assert loader_behind_the_sampler(editor.prompt())["class_type"] == OURS


def test_a_rerouted_link_keeps_its_reroute(open_editor: OpenEditor) -> None:
    editor = open_editor("classic")
    editor.load(workflow())
    editor.page.evaluate(REROUTE, OURS)
    editor.page.evaluate(SWAP, OURS)
    assert loader_behind_the_sampler(editor.prompt())["class_type"] == STOCK
    assert editor.page.evaluate("() => app.graph.reroutes.size") == 1


def test_a_choice_that_the_other_loader_lacks_is_named(open_editor: OpenEditor) -> None:
    editor = open_editor("vue")
    stock = workflow()
    loader = next(node for node in stock["nodes"] if node["type"] == OURS)
    loader.update(type=STOCK, widgets_values=[FLUX, "fp8_e5m2"])
    editor.load(stock)
    editor.page.evaluate(SWAP, STOCK)
    assert loader_behind_the_sampler(editor.prompt())["inputs"]["weight_dtype"] == "default"
    editor.page.get_by_text("weight_dtype fp8_e5m2").wait_for()


def test_other_nodes_get_no_entry(open_editor: OpenEditor) -> None:
    editor = open_editor("classic")
    editor.load(workflow())
    entries = """() => app.graph._nodes.map(n => [n.type,
        app.extensions.find(e => e.name === "Tutti.SwapLoader").getNodeMenuItems(n).length])"""
    assert {kind for kind, count in editor.page.evaluate(entries) if count} == {OURS}
