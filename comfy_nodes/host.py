"""The services of the ComfyUI process: interrupt, progress, previews, folders. The only file that touches them.

Everything is imported where it is used: this module is loaded while ComfyUI starts.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger("tutti")

MODEL_FOLDER: Final = "diffusion_models"
"""ComfyUI's name for the folders of transformer checkpoints (its older name ``unet`` leads to the same list)."""

LORA_FOLDER: Final = "loras"


def raise_if_interrupted() -> None:
    """Raise ComfyUI's own interrupt exception when the user pressed Cancel."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def node_id() -> str:
    """The id of the node that is being executed; ``none`` outside of an execution."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return str(context.node_id) if context is not None else "none"


def say(text: str) -> None:
    """Show `text` on the node that is being executed, and log it."""
    from server import PromptServer

    log.info("%s", text)
    server = getattr(PromptServer, "instance", None)
    if server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id())


class Progress:
    """The progress bar of the node that is being executed."""

    def __init__(self, total: int) -> None:
        import comfy.utils

        self._total = total
        self._bar = comfy.utils.ProgressBar(total)

    def show(self, value: int) -> None:
        """Move the bar to `value`. Raises ComfyUI's interrupt exception when the user pressed Cancel."""
        self._bar.update_absolute(value, self._total)


def wants_previews(device: Any, latent_format: Any) -> bool:
    """Whether ComfyUI would show a preview at all: asked only then, x0 crosses the wire only then."""
    import latent_preview

    return latent_preview.get_previewer(device, latent_format) is not None


def is_stock_callback(callback: Callable[..., Any] | None) -> bool:
    """Whether a sampler's callback only feeds the progress bar, the preview and the denoised output: what a thinned-out preview may feed."""
    if callback is None:
        return True
    return callback.__module__ == "latent_preview" and callback.__qualname__ == "prepare_callback.<locals>.callback"


def local_models() -> list[str]:
    """The names of the checkpoints that this ComfyUI sees in its own folders, and of the one that ships with Tutti."""
    import folder_paths

    from ..backend.assets.files import MODELS_FOLDER, TRANSFORMER

    shipped = [TRANSFORMER.removeprefix(f"{MODEL_FOLDER}/")] if (MODELS_FOLDER / TRANSFORMER).is_file() else []
    return list(dict.fromkeys([*folder_paths.get_filename_list(MODEL_FOLDER), *_gguf_models(), *shipped]))


def _gguf_models() -> list[str]:
    """The GGUF files in those folders: ComfyUI's own loaders cannot read them, so its lists leave them out."""
    import folder_paths

    names: list[str] = []
    for folder in folder_paths.get_folder_paths(MODEL_FOLDER):
        files, _ = folder_paths.recursive_search(folder, excluded_dir_names=[".git"])
        names += folder_paths.filter_files_extensions(files, (".gguf",))
    return names


def local_loras() -> list[str]:
    """The names of the LoRAs that this ComfyUI sees in its own folders."""
    import folder_paths

    names: list[str] = folder_paths.get_filename_list(LORA_FOLDER)
    return names


def model_folders() -> dict[str, list[str]]:
    """ComfyUI's resolved folders of the kinds that a daemon reads, so that extra_model_paths.yaml and --base-directory count."""
    import folder_paths

    return {kind: list(folder_paths.get_folder_paths(kind)) for kind in (MODEL_FOLDER, LORA_FOLDER)}


def load_vae(path: str) -> Any:
    """A VAE as ComfyUI's own loader makes it."""
    import comfy.sd
    import comfy.utils

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(path, safe_load=True))
    vae.throw_exception_if_invalid()
    return vae


def is_serving() -> bool:
    """Whether ComfyUI has started to listen: before that, packs are only being imported."""
    server = sys.modules.get("server")
    return getattr(getattr(getattr(server, "PromptServer", None), "instance", None), "port", None) is not None


def software() -> str:
    """Who we are, for the daemon's log."""
    from .. import __version__

    try:
        from comfyui_version import __version__ as comfyui
    except ImportError:
        comfyui = "unknown"
    return f"tutti {__version__}, ComfyUI {comfyui}"


def file_fingerprint(name: str, folder: str = MODEL_FOLDER) -> str:
    """Size and time of a file in ComfyUI's own folders of a kind; empty for one that only the daemon has."""
    import folder_paths

    path = folder_paths.get_full_path(folder, name)
    if path is None:
        return ""
    info = os.stat(path)
    return f"{info.st_size}-{info.st_mtime_ns}"
