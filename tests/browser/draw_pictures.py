"""Draws the pictures that are committed: thumbnails of the shared workflows and screenshots for the documents.

    python -m tests.browser.draw_pictures

They show what the real page draws: run it after a workflow or a node has changed.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.browser.editor import FINAL_EVENTS, PREVIEW_EVENTS, Editor, chromium, open_editor
from tests.browser.scene import FLUX, serve
from tests.comfy.rig import WHOLE, plain, prompt
from tests.support import daemon, workflows
from tests.support.comfyui import REPOSITORY, ComfyServer

WORKFLOWS = REPOSITORY / "workflows"
IMAGES = REPOSITORY / "docs" / "images"
THUMBNAIL_PIXELS = 640
SHARPNESS = 2
"""Device pixels per page pixel."""
MARGIN = 12
"""Page pixels around a part of the page."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What a workflow's thumbnail shows."""

    heading: str
    title: str
    nodes: tuple[str, ...]
    """The first of each type: at the top left, below that, and all others at the right, as they stand on the page."""
    runs: bool = False
    """Whether the nodes are shown after a run: with pictures in them, which needs a daemon."""


SHOWN = {
    "Tutti FLUX.1 text to image": Thumbnail("FLUX.1", "Text to image, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti FLUX.1 image to image": Thumbnail("FLUX.1", "Image to image, on all your GPUs", ("LoadImage", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti FLUX.2 text to image": Thumbnail("FLUX.2", "Text to image, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "RandomNoise", "BasicGuider", "SamplerCustomAdvanced")),
    "Tutti HunyuanVideo text to video": Thumbnail("HunyuanVideo", "Text to video, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "RandomNoise", "BasicGuider", "SamplerCustomAdvanced")),
    "Tutti LTX-Video text to video": Thumbnail("LTX-Video", "Text to video, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "SamplerCustom")),
    "Tutti Qwen-Image edit": Thumbnail("Qwen-Image-Edit", "Edit a picture, on all your GPUs", ("LoadImage", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti Qwen-Image text to image": Thumbnail("Qwen-Image", "Text to image, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti SD3.5 text to image": Thumbnail("SD 3.5", "Text to image, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti Wan 2.2 text to video": Thumbnail("Wan 2.2", "Text to video, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "KSamplerAdvanced")),
    "Tutti Z-Image text to image": Thumbnail("Z-Image", "Text to image, on all your GPUs", ("CLIPTextEncode", "TuttiLoadDiffusionModel", "KSampler")),
    "Tutti demo": Thumbnail("Demo", "A first picture, nothing to download", ("TuttiDemoPrompt", "TuttiDemoLoader", "SaveImage"), runs=True),
}  # fmt: skip

PAGE = """<!doctype html><style>
body {{ margin: 0; width: 640px; height: 640px; overflow: hidden; position: relative; font-family: Inter, "DejaVu Sans", sans-serif;
    color: #fff; background: radial-gradient(circle at 30% 20%, #2b3a67, #12141c 75%); }}
h1 {{ position: absolute; left: 36px; top: 22px; margin: 0; font-size: 46px; letter-spacing: -1px; }}
h2 {{ position: absolute; left: 38px; top: 84px; margin: 0; font-size: 25px; font-weight: 400; color: #b9c4ee; }}
img {{ position: absolute; border-radius: 14px; box-shadow: 0 12px 40px #000b; }}
</style><h1>{heading}</h1><h2>{title}</h2>
<img src="{right}" style="left: 352px; top: 186px; width: 330px"><img src="{first}" style="left: 36px; top: 150px; width: 300px">
<img src="{second}" style="left: 70px; top: 424px; width: 400px; outline: 3px solid #8fa2ff">"""


def embedded(picture: Image.Image) -> str:
    """A picture as the address of an image element."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw_thumbnail(browser: Browser, editor: Editor, name: str) -> None:
    """Write ``<workflow>.jpg``."""
    shown = SHOWN[name]
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    editor.load(workflow)
    if shown.runs:
        editor.queue()
        editor.wait_for_event(FINAL_EVENTS)
        if "execution_success" not in dict(editor.events()):
            raise RuntimeError(f"{name} did not run: {editor.events()}")
        editor.page.wait_for_load_state("networkidle")
        editor.settle(len(workflow["nodes"]))
    ids = {node["type"]: node["id"] for node in reversed(editor.nodes())}
    first, second, *others = (ids[kind] for kind in shown.nodes)
    first, second, right = (embedded(editor.picture(*nodes)) for nodes in ([first], [second], others))
    page = browser.new_page(viewport={"width": THUMBNAIL_PIXELS, "height": THUMBNAIL_PIXELS})
    content = PAGE.format(heading=shown.heading, title=shown.title, first=first, second=second, right=right)
    page.set_content(content, wait_until="load")
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    shot.save(WORKFLOWS / f"{name}.jpg", "JPEG", quality=88, optimize=True)


def draw_thumbnails(browser: Browser, server: ComfyServer, *, runs: bool) -> None:
    """Write those of the workflows that are, or are not, shown after a run."""
    for name, shown in SHOWN.items():
        if shown.runs == runs:
            with open_editor(browser, server, "vue", {}, sharpness=SHARPNESS) as editor:
                draw_thumbnail(browser, editor, name)


def draw_screenshot(editor: Editor, name: str) -> None:
    """Write the whole page as it shows the workflow."""
    editor.load(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), name)
    editor.picture().save(IMAGES / f"{name.lower().replace(' ', '_').replace('.', '')}.jpg", "JPEG", quality=85)


def draw_sampling(editor: Editor) -> None:
    """Write the sampler while a daemon samples a random network."""
    editor.load_prompt(prompt(plain(steps=300, cfg=1.0), workflows.tutti_loader(FLUX)))
    editor.queue()
    editor.wait_for_event(PREVIEW_EVENTS, count=3)
    editor.page.get_by_text(WHOLE).wait_for()
    editor.picture(editor.node_of("KSampler"), margin=MARGIN).save(IMAGES / "sampling.jpg", "JPEG", quality=85)
    editor.cancel()
    editor.wait_for_event(FINAL_EVENTS)


def draw_remedy(editor: Editor) -> None:
    """Write what the page shows when no daemon answers."""
    editor.load_prompt(prompt(plain(), workflows.tutti_loader(FLUX)))
    editor.queue()
    editor.page.locator(".tutti-remedy").wait_for()
    editor.page.wait_for_timeout(4000)  # another notice fades away meanwhile
    picture = editor.picture()
    corner = (picture.width - 520 * SHARPNESS, 36 * SHARPNESS, picture.width, 390 * SHARPNESS)
    picture.crop(corner).save(IMAGES / "remedy.jpg", "JPEG", quality=85)


def main() -> None:
    """Start ComfyUI and a daemon, and draw everything."""
    with (
        tempfile.TemporaryDirectory() as folder,
        daemon.private_state_dir() as state_dir,
        serve(Path(folder), state_dir) as server,
        chromium() as browser,
    ):
        draw_thumbnails(browser, server, runs=False)
        with open_editor(browser, server, "vue", {}) as editor:
            draw_screenshot(editor, "Tutti FLUX.1 text to image")
        with open_editor(browser, server, "vue", {}, sharpness=SHARPNESS) as editor:
            draw_remedy(editor)
        previews = {"Comfy.Execution.PreviewMethod": "latent2rgb"}
        with daemon.running(Path(folder) / "models", state_dir, ranks=2):
            draw_thumbnails(browser, server, runs=True)
            with open_editor(browser, server, "vue", previews, sharpness=SHARPNESS) as editor:
                draw_sampling(editor)


if __name__ == "__main__":
    main()
