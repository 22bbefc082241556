"""Rewrite the lock files from pyproject.toml and the tables below: ``python3 locks/relock.py``.

Needs the network and Python >= 3.11 (it reads TOML). Resolution is done by uv, in a throw-away environment, for every platform and Python
at once. torch and what only torch asks for (triton, the CUDA libraries) stay out of the hashed part: which build is right depends on the
machine (CPU, CUDA version, a vendor's own wheel), and torch's own metadata pins its libraries exactly. The development tools have triton
hashed, in the version that torch pins: the kernels' tests need it where torch brings none.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = "3.11"
"""Oldest Python of the back end: diffusers 0.42 asks for 3.11."""

TORCH = ["torch==2.13.0"]
COMFYUI_TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
OF_TORCH = re.compile(r"^(torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*)$")
OF_KERNELS = ("triton",)
"""What a CPU build of torch does not bring, and the kernels' tests ask for."""
BUILD_TOOLS = ["setuptools>=77.0.3,<82", "wheel"]
"""torch 2.11 (which may be reused) wants setuptools below 82, torch 2.13 at least 77.0.3."""

COMFYUI = [
    # The smallest set that starts ComfyUI on CPU. Left out, as only single extra-node files miss them: kornia, spandrel, PyOpenGL, blake3,
    # comfyui-workflow-templates (420 MB), comfyui-embedded-docs (50 MB).
    "aiohttp", "alembic", "av", "comfy-aimdo", "comfy-kitchen", "einops", "filelock", "numpy", "Pillow", "psutil", "pydantic~=2.0",
    "pydantic-settings~=2.0", "pyyaml", "requests", "safetensors", "scipy", "sentencepiece", "SQLAlchemy", "tokenizers", "torchsde", "tqdm",
    "transformers", "yarl",
]  # fmt: skip
COMFYUI_PINS = {
    "0.30.0": ["comfyui-frontend-package==1.47.12", "comfy-kitchen==0.2.26", "comfy-aimdo==0.4.11"],
    "0.16.3": ["comfyui-frontend-package==1.39.19"],
}

HEADER = """\
# {purpose}
# Written by locks/relock.py; do not edit by hand. Works for every platform and for Python >= {python}.
{torch}"""
TORCH_NOTE = """\
# torch is pinned without a hash, and its own dependencies (triton, CUDA libraries) by its metadata: the right build differs between
# machines (CPU, CUDA version, a locally built wheel).
"""


class Resolver:
    """uv in an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "uv"], check=True)
        self.python = folder / "uv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([self.python, "-m", "pip", "install", "-q", "uv"], check=True)

    def resolve(self, requirements: list[str], constraints: str = "") -> dict[str, str]:
        """Name -> lock text (one block for each version, with its markers and hashes), sorted by name."""
        source, bounds = self.folder / "source.in", self.folder / "bounds.txt"
        source.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        bounds.write_text(constraints, encoding="utf-8")
        command: list[str | Path] = [
            self.python,
            "-m",
            "uv",
            "pip",
            "compile",
            source,
            "-c",
            bounds,
            "--universal",
            "--python-version",
            PYTHON,
        ]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        blocks: dict[str, str] = {}
        for block in re.split(r"\n(?=\S)", text.strip("\n")):
            name = re.split(r"[=\s]", block, maxsplit=1)[0]
            first_line = block.splitlines()[0]
            if "sys_platform == 'emscripten'" in first_line or "implementation_name == 'pypy'" in first_line:
                continue
            blocks[name] = blocks.get(name, "") + block + "\n"
        return blocks


def write(name: str, purpose: str, blocks: dict[str, str], torch: list[str], *, keep: tuple[str, ...] = ()) -> None:
    """One lock file: the hashed blocks, then torch. ``keep``: what is hashed although torch may bring it."""
    kept = [text for package, text in blocks.items() if package in keep or not OF_TORCH.match(package)]
    header = HEADER.format(purpose=purpose, python=PYTHON, torch=TORCH_NOTE if torch else "")
    body = "".join(kept) + "".join(line + "\n" for line in torch)
    (HERE / name).write_text(header + body, encoding="utf-8")
    print(f"{name}: {len(kept)} packages", flush=True)


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    backend = project["dependencies"] + project["optional-dependencies"]["backend"] + BUILD_TOOLS + TORCH
    cuda, dev = ["xfuser"], project["optional-dependencies"]["dev"]
    with tempfile.TemporaryDirectory() as folder:
        resolver = Resolver(Path(folder))
        together = resolver.resolve(backend + cuda + dev)
        bounds = "".join(
            line.rstrip(" \\") + "\n" for text in together.values() for line in text.splitlines() if line[0] != " "
        )
        base = resolver.resolve(backend, bounds)
        write("backend-cpu.txt", "The back end on every machine.", base, TORCH)
        extra = {name: text for name, text in resolver.resolve(backend + cuda, bounds).items() if name not in base}
        write("backend-cuda.txt", "What an NVIDIA machine gets on top of backend-cpu.txt.", extra, [])
        tools = resolver.resolve(backend + dev, bounds)
        extra = {name: text for name, text in tools.items() if name not in base or name in OF_KERNELS}
        write("dev.txt", "Development tools, on top of backend-cpu.txt.", extra, [], keep=OF_KERNELS)
        for version, pins in COMFYUI_PINS.items():
            requirements = COMFYUI + pins + project["dependencies"] + BUILD_TOOLS + COMFYUI_TORCH
            purpose = (
                f"ComfyUI {version} for tests: the smallest set that starts it, and what the pack needs inside it."
            )
            write(f"comfyui-{version}.txt", purpose, resolver.resolve(requirements), COMFYUI_TORCH)


if __name__ == "__main__":
    main()
