"""A real ComfyUI with the pack, and its page in headless Chromium. Skips, with the command that helps, where either is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser import scene
from tests.browser.editor import RENDERERS, Editor, chromium, find_chromium
from tests.browser.editor import open_editor as open_in_browser
from tests.comfy.rig import MAIN_VERSION, needs
from tests.support import daemon
from tests.support.comfyui import ComfyServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts servers: mark it so, and allow for a slow first start."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.comfy)
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="package")
def comfy_state_dir() -> Iterator[Path]:
    """Where ComfyUI looks for its daemon."""
    with daemon.private_state_dir() as path:
        yield path


@pytest.fixture(scope="package")
def comfy(comfy_state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """ComfyUI with the pack and the models that the shared workflows name."""
    needs(MAIN_VERSION)
    if find_chromium() is None:
        pytest.skip("needs Chromium: apt-get install chromium (or what your system calls it)")
    with scene.serve(tmp_path_factory.mktemp("scene"), comfy_state_dir) as server:
        yield server


OpenEditor = Callable[..., Editor]


@pytest.fixture
def open_editor(comfy: ComfyServer) -> Iterator[OpenEditor]:
    """Opens ComfyUI's page, with a renderer and settings. At the end of the test every opened page must be without a fault."""
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(chromium())
        opened: list[Editor] = []

        def opener(renderer: str = RENDERERS[0], **settings: object) -> Editor:
            opened.append(stack.enter_context(open_in_browser(browser, comfy, renderer, settings)))
            return opened[-1]

        yield opener
        for editor in opened:
            editor.check(scene.PACK)
