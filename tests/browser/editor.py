"""ComfyUI's page, as a test drives it: load a graph, read what it became, run it, look at it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.support.comfyui import ComfyServer, Prompt

RENDERERS = ("classic", "vue")
"""The two ways in which the page draws nodes: on a canvas, and as elements ("Nodes 2.0")."""

CHROMIUM_ARGUMENTS = (
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-gpu",
)  # fmt: skip
"""A browser that talks to nobody of its own accord, and draws on the processor."""
READY_MS = 120_000
VIEWPORT = {"width": 1600, "height": 1000}
QUIET_SETTINGS: dict[str, object] = {
    "Comfy.TutorialCompleted": True,  # else a new profile opens the template browser over everything
    "Comfy.Minimap.Visible": False,
    "Comfy.Execution.PreviewMethod": "default",
    "Comfy.Locale": "en",
}
READY = (
    "() => window.app?.graph && window.app?.extensionManager"
    " && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"
    # A new profile opens ComfyUI's own first graph; until that is there, it would replace what a test loads.
    " && app.extensionManager.workflow?.activeWorkflow && app.graph._nodes.length > 0"
)
NODES = """() => app.graph._nodes.map(n => ({
    id: String(n.id), type: n.type, title: n.title, mode: n.mode,
    known: n.type in LiteGraph.registered_node_types || n.isVirtualNode === true,
    widgets: Object.fromEntries((n.widgets ?? []).filter(w => w.serialize !== false).map(w => [w.name, w.value])),
}))"""
# Where everything is, in graph units: what the classic renderer draws, or the elements that stand on the page.
NODE_RECTANGLES = """() => {
    const {scale, offset} = app.canvas.ds, page = app.canvas.canvas.getBoundingClientRect();
    return Object.fromEntries(app.graph._nodes.map(n => {
        const element = document.querySelector(`[data-node-id="${n.id}"]`);
        if (!element) return [n.id, [n.pos[0], n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, n.size[0], n.size[1] + LiteGraph.NODE_TITLE_HEIGHT]];
        const r = element.getBoundingClientRect();
        return [n.id, [(r.x - page.x) / scale - offset[0], (r.y - page.y) / scale - offset[1], r.width / scale, r.height / scale]];
    }));
}"""
TO_PAGE = """([x, y, w, h]) => {
    const {scale, offset} = app.canvas.ds, page = app.canvas.canvas.getBoundingClientRect();
    return [(x + offset[0]) * scale + page.x, (y + offset[1]) * scale + page.y, w * scale, h * scale];
}"""
GROUP_RECTANGLES = "() => Object.fromEntries(app.graph._groups.map(g => [g.title, [...g.pos, ...g.size]]))"
AFTER_TWO_FRAMES = f"""async () => {{
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))));
    return [app.canvas.ds.scale, ...app.canvas.ds.offset, Object.values(({NODE_RECTANGLES})())];
}}"""
NEEDED_SIZES = "() => Object.fromEntries(app.graph._nodes.map(n => [n.id, [...n.computeSize()]]))"
LISTEN = """kinds => {
    if (!window.seenEvents)
        for (const kind of kinds) app.api.addEventListener(kind, e => seenEvents.push([kind, e.detail?.exception_message ?? ""]));
    window.seenEvents = [];
}"""
FINAL_EVENTS = ("execution_success", "execution_error", "execution_interrupted")
PREVIEW_EVENTS = ("b_preview", "b_preview_with_metadata")

Rectangle = tuple[float, float, float, float]
"""x, y, width, height in graph units, a node's title bar included."""


def find_chromium() -> str | None:
    """The system's Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser of its own. Keep it short: while Playwright runs, nothing else in this thread can use asyncio."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Editor:
    """One open page."""

    page: Page
    server: ComfyServer
    renderer: str
    page_errors: list[str] = field(default_factory=list)
    """Uncaught exceptions."""
    answers: list[tuple[int, str]] = field(default_factory=list)
    """(status, path) of every answer of the server."""

    def check(self, pack: str) -> None:
        """Raise if the page had an uncaught exception, or asked for a file of ours that is not there."""
        assert not self.page_errors, "\n".join(self.page_errors)
        assert not self.failed_urls(pack), self.failed_urls(pack)

    def failed_urls(self, pack: str) -> list[str]:
        """What the server refused of our own files."""
        return [path for status, path in self.answers if status >= 400 and f"/{pack}/" in path]

    def load(self, workflow: Mapping[str, Any], name: str = "under test") -> None:
        """Open a workflow in the UI's format and show all of it."""
        self.page.evaluate("async ([w, name]) => { await app.loadGraphData(w, true, true, name) }", [workflow, name])
        self.settle(len(workflow["nodes"]))

    def load_prompt(self, prompt: Prompt) -> None:
        """Open a workflow in the API format: the page lays it out itself."""
        self.page.evaluate("async p => { await app.loadApiJson(p, 'under test') }", prompt)
        self.settle(len(prompt))

    def settle(self, count: int) -> None:
        """Fit the graph of `count` nodes into the view and wait until nothing moves from one drawn frame to the next."""
        self.page.wait_for_function("count => app.graph._nodes.length === count", arg=count)
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        at_rest, previous = 0, None
        for _ in range(200):
            present = self.page.evaluate(AFTER_TWO_FRAMES)
            at_rest = at_rest + 1 if present == previous else 0
            if at_rest == 5:
                return
            previous = present
        raise AssertionError("the graph does not come to rest")

    def nodes(self) -> list[dict[str, Any]]:
        """Every node: id, type, title, mode, whether its type is known, and the values of its widgets."""
        found: list[dict[str, Any]] = self.page.evaluate(NODES)
        return found

    def node_rectangles(self) -> dict[str, Rectangle]:
        """Node id -> where the node is on the page."""
        return {name: tuple(r) for name, r in self.page.evaluate(NODE_RECTANGLES).items()}

    def group_rectangles(self) -> dict[str, Rectangle]:
        """Group title -> where the group is."""
        return {name: tuple(r) for name, r in self.page.evaluate(GROUP_RECTANGLES).items()}

    def needed_sizes(self) -> dict[str, tuple[float, float]]:
        """Node id -> width and height that the node's own content asks for, without its title bar."""
        return {name: tuple(s) for name, s in self.page.evaluate(NEEDED_SIZES).items()}

    def prompt(self) -> Prompt:
        """What the page would queue."""
        output: Prompt = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return output

    def queue(self) -> None:
        """Press Run."""
        self.page.evaluate(LISTEN, [*FINAL_EVENTS, *PREVIEW_EVENTS])
        self.page.evaluate("async () => { await app.queuePrompt(0, 1) }")

    def cancel(self) -> None:
        """Press Cancel."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")

    def node_of(self, node_type: str) -> str:
        """The id of the only node of a type."""
        (found,) = [node["id"] for node in self.nodes() if node["type"] == node_type]
        return str(found)

    def events(self) -> list[tuple[str, str]]:
        """(kind, error message) of what the server has sent since :meth:`queue`."""
        return [(kind, message) for kind, message in self.page.evaluate("() => seenEvents")]

    def wait_for_event(self, kinds: Sequence[str], *, count: int = 1, timeout_s: float = 60.0) -> None:
        """Wait until `count` events of any of these kinds have come."""
        condition = "([kinds, count]) => seenEvents.filter(e => kinds.includes(e[0])).length >= count"
        self.page.wait_for_function(condition, arg=[list(kinds), count], timeout=timeout_s * 1000)

    def on_page(self, node_id: str) -> Rectangle:
        """Where a node is, in pixels of the page."""
        return tuple(self.page.evaluate(TO_PAGE, list(self.node_rectangles()[node_id])))

    def picture(self, *node_ids: str, margin: float = 0) -> Image.Image:
        """What is on the screen: of the whole page, or of the part that holds some nodes, with `margin` pixels of the page around it."""
        clip = None
        if node_ids:
            boxes = [self.on_page(node_id) for node_id in node_ids]
            left, top = min(x for x, *_ in boxes) - margin, min(y for _, y, *_ in boxes) - margin
            right, bottom = max(x + w for x, _, w, _ in boxes) + margin, max(y + h for _, y, _, h in boxes) + margin
            clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        return Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")


def set_settings(server: ComfyServer, settings: Mapping[str, object]) -> None:
    """Store settings of the page on the server, where the page reads them when it opens."""
    for name, value in settings.items():
        request = urllib.request.Request(
            f"{server.url}/api/settings/{name}",
            data=json.dumps(value).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def open_editor(
    browser: Browser, server: ComfyServer, renderer: str, settings: Mapping[str, object], *, sharpness: int = 1
) -> Iterator[Editor]:
    """Open the page with one of :data:`RENDERERS` and the given settings, in a browser profile of its own."""
    set_settings(server, QUIET_SETTINGS | {"Comfy.VueNodes.Enabled": renderer == "vue"} | dict(settings))
    context = browser.new_context(viewport=VIEWPORT, device_scale_factor=sharpness)
    page = context.new_page()
    editor = Editor(page, server, renderer)
    page.on("pageerror", lambda error: editor.page_errors.append(str(error)))
    page.on("response", lambda reply: editor.answers.append((reply.status, unquote(urlsplit(reply.url).path))))
    context.route(lambda url: not url.startswith((server.url, "data:", "blob:")), _refuse)
    try:
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=READY_MS)
        yield editor
    finally:
        context.close()


def _refuse(route: Route) -> None:
    """Nothing leaves this machine: the page offers downloads of models that its first graph names."""
    route.abort()
