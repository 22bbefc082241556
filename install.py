#!/usr/bin/env python3
"""Install Tutti: ``python install.py [backend | connect FILE | dev | comfyui | demo | test] [--dry-run]``.

Without a command (what ComfyUI-Manager runs) it installs nothing: it checks what the pack needs inside ComfyUI and prints the next step.
Every command may be repeated: what is there already is kept. Standard library only; Python 3.10 or newer. The work is done by
``backend/setup``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent

if sys.version_info < (3, 10):
    sys.exit(
        f"install.py needs Python 3.10 or newer; this is {sys.version.split()[0]}. Run it with the Python that runs ComfyUI."
    )


def load_setup() -> None:
    """Make ``backend/setup`` importable as ``tutti_setup``, by its path: neither ``tutti`` nor ``backend`` is importable yet."""
    folder = PACK / "backend" / "setup"
    spec = importlib.util.spec_from_file_location(
        "tutti_setup", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        sys.exit(f"{folder} is missing. Get a fresh copy of the pack.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tutti_setup"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load_setup()
    sys.exit(importlib.import_module("tutti_setup.command").main(PACK, sys.argv[1:]))
