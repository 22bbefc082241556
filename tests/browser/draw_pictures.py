"""Draws the pictures that are committed: thumbnails of the shared workflows and screenshots for the documents.

    python -m tests.browser.draw_pictures

They show what the real page draws: run it after a workflow or a node has changed.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.browser.editor import Editor, chromium, open_editor
from tests.browser.scene import serve
from tests.support.comfyui import REPOSITORY

WORKFLOWS = REPOSITORY / "workflows"
IMAGES = REPOSITORY / "docs" / "images"
THUMBNAIL_PIXELS = 640
SHARPNESS = 2
"""Device pixels per page pixel."""
SHOWN = {
    "Tutti FLUX.1 text to image": ("Text to image", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti FLUX.1 image to image": ("Image to image", ("LoadImage", "TuttiLoadDiffusionModel", "KSampler")),
}
"""Workflow -> its title on the thumbnail and the nodes that it shows: at the top left, below that, at the right."""

PAGE = """<!doctype html><style>
body {{ margin: 0; width: 640px; height: 640px; overflow: hidden; position: relative; font-family: Inter, "DejaVu Sans", sans-serif;
    color: #fff; background: radial-gradient(circle at 30% 20%, #2b3a67, #12141c 75%); }}
h1 {{ position: absolute; left: 36px; top: 22px; margin: 0; font-size: 46px; letter-spacing: -1px; }}
h2 {{ position: absolute; left: 38px; top: 84px; margin: 0; font-size: 25px; font-weight: 400; color: #b9c4ee; }}
img {{ position: absolute; border-radius: 14px; box-shadow: 0 12px 40px #000b; }}
</style><h1>FLUX.1</h1><h2>{title}, on all your GPUs</h2>
<img src="{right}" style="left: 352px; top: 186px; width: 330px"><img src="{first}" style="left: 36px; top: 150px; width: 300px">
<img src="{second}" style="left: 70px; top: 424px; width: 400px; outline: 3px solid #8fa2ff">"""


def embedded(picture: Image.Image) -> str:
    """A picture as the address of an image element."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw_thumbnail(browser: Browser, editor: Editor, name: str) -> None:
    """Write ``<workflow>.jpg``."""
    title, types = SHOWN[name]
    editor.load(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
    ids = {node["type"]: node["id"] for node in editor.nodes()}
    first, second, right = (embedded(editor.picture(ids[kind])) for kind in types)
    page = browser.new_page(viewport={"width": THUMBNAIL_PIXELS, "height": THUMBNAIL_PIXELS})
    page.set_content(PAGE.format(title=title, first=first, second=second, right=right), wait_until="load")
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    shot.save(WORKFLOWS / f"{name}.jpg", "JPEG", quality=88, optimize=True)


def draw_screenshot(editor: Editor, name: str) -> None:
    """Write the whole page as it shows the workflow."""
    editor.load(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), name)
    editor.picture().save(IMAGES / f"{name.lower().replace(' ', '_').replace('.', '')}.jpg", "JPEG", quality=85)


def main() -> None:
    """Start ComfyUI and draw everything."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder)) as server,
        chromium() as browser,
    ):
        for name in SHOWN:
            with open_editor(browser, server, "vue", {}, sharpness=SHARPNESS) as editor:
                draw_thumbnail(browser, editor, name)
        with open_editor(browser, server, "vue", {}) as editor:
            draw_screenshot(editor, "Tutti FLUX.1 text to image")


if __name__ == "__main__":
    main()
