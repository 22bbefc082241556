"""What ComfyUI serves of the pack: page scripts, help pages, translations, workflows; and how the page uses them."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import OpenEditor
from tests.browser.scene import PACK
from tests.support.comfyui import REPOSITORY, ComfyServer

WEB = REPOSITORY / "comfy_nodes" / "web"
WEB_FILES = sorted(path.relative_to(WEB).as_posix() for path in WEB.rglob("*") if path.is_file())
WORKFLOW_FILES = sorted(path.name for path in (REPOSITORY / "workflows").iterdir())
LANGUAGES = ("en", "zh")
SELECT = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    app.canvas.selectItems([node]);
    return node.title;
}"""


def status(server: ComfyServer, path: str) -> int:
    try:
        with urllib.request.urlopen(server.url + urllib.parse.quote(path), timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code


def nodes(server: ComfyServer) -> dict[str, dict[str, Any]]:
    return {name: info for name, info in server.get_json("/object_info").items() if info["category"] == "Tutti"}


@pytest.mark.parametrize("name", WEB_FILES)
def test_a_file_for_the_page_is_served(comfy: ComfyServer, name: str) -> None:
    assert status(comfy, f"/extensions/{PACK}/{name}") == 200


def test_the_page_is_told_of_every_script(comfy: ComfyServer) -> None:
    told = [path for path in comfy.get_json("/extensions") if path.startswith(f"/extensions/{PACK}/")]
    assert sorted(told) == [f"/extensions/{PACK}/{name}" for name in WEB_FILES if Path(name).suffix == ".js"]


def test_a_file_that_is_not_there_is_noticed(comfy: ComfyServer) -> None:
    """Negative control."""
    assert status(comfy, f"/extensions/{PACK}/js/none.js") == 404


@pytest.mark.parametrize("name", WORKFLOW_FILES)
def test_a_workflow_and_its_thumbnail_are_served(comfy: ComfyServer, name: str) -> None:
    assert status(comfy, f"/api/workflow_templates/{PACK}/{name}") == 200


def test_the_template_browser_is_told_of_every_workflow(comfy: ComfyServer) -> None:
    told = comfy.get_json("/api/workflow_templates")[PACK]
    assert sorted(f"{name}.json" for name in told) == [name for name in WORKFLOW_FILES if name.endswith(".json")]


def described(info: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI itself says of a node, in the form of a translation."""
    inputs = {
        name: {"name": name, "tooltip": declared[1]["tooltip"]}
        for section in ("required", "optional")
        for name, declared in info["input"].get(section, {}).items()
    }
    outputs = {
        str(number): {"name": name, "tooltip": tooltip}
        for number, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
    }
    text = {"display_name": info["display_name"], "description": info["description"]}
    return text | ({"inputs": inputs} if inputs else {}) | ({"outputs": outputs} if outputs else {})


def test_the_english_texts_are_those_of_the_nodes(comfy: ComfyServer) -> None:
    """The page prefers the file; so it must not fall behind."""
    translations = comfy.get_json("/i18n")["en"]["nodeDefs"]
    assert translations == {name: described(info) for name, info in nodes(comfy).items()}


def test_chinese_is_as_complete_as_english(comfy: ComfyServer) -> None:
    texts = comfy.get_json("/i18n")
    english, chinese = leaves(texts["en"]["nodeDefs"]), leaves(texts["zh"]["nodeDefs"])
    assert set(chinese) == set(english)
    untranslated = [name for name, text in chinese.items() if not name.endswith(".name") and text.isascii()]
    assert untranslated == []


def leaves(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> text."""
    found: dict[str, str] = {}
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= leaves(inner, name) if isinstance(inner, dict) else {name: inner}
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_help_panel_shows_a_page_for_every_node_in_the_users_language(
    open_editor: OpenEditor, comfy: ComfyServer, language: str
) -> None:
    editor = open_editor("classic", **{"Comfy.Locale": language})
    for name in nodes(comfy):
        title = editor.page.evaluate(SELECT, name)
        assert title == comfy.get_json("/i18n")[language]["nodeDefs"][name]["display_name"]
        editor.page.get_by_test_id("info-button").click()
        page = (WEB / "docs" / name / f"{language}.md").read_text(encoding="utf-8")
        first_line = page.splitlines()[0].removeprefix("# ")
        editor.page.locator("h1", has_text=first_line).wait_for()
        assert (200, f"/extensions/{PACK}/docs/{name}/{language}.md") in editor.answers
