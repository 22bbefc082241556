"""The table of what is supported, made from the names of the tests that show it: a cell without a test stays empty.

python -m tests.support.support_table     # writes it into the documents again
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.comfy.served_families import SERVED
from tests.comfy.test_families import CASES as SERVED_CASES
from tests.comfy.test_parity import PLANS as SERVER_PLANS
from tests.distributed.test_family_loras import ROWS as LORA_ROWS
from tests.distributed.test_lora_against_comfyui import FORMATS as LORA_FORMATS
from tests.support import quantised, workflows
from tests.support.families import ROWS
from tests.support.family_parity import PLANS

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = (REPOSITORY / "README.md", REPOSITORY / "docs" / "parity.md")
BEGIN: Final = "<!-- The support table begins: tests/support/support_table.py writes it. -->"
END: Final = "<!-- The support table ends. -->"

TASKS: Final = ("text to image", "edit", "image to image", "inpaint", "text to video", "image to video")
LABELS: Final = {
    "flux": "FLUX.1 dev, schnell, Kontext, Fill",
    "flux2": "FLUX.2 dev, klein",
    "wan": "Wan 2.1, 2.2",
    "sd3": "Stable Diffusion 3, 3.5",
    "z_image": "Z-Image",
    "qwen_image": "Qwen-Image, Edit, Layered",
    "ltx_video": "LTX-Video 0.9 to 0.9.8",
    "hunyuan_video": "HunyuanVideo, SkyReels V1",
}
SHOWN_BY: Final[Mapping[str, Mapping[str, str]]] = {
    # Family -> task -> the parity row ("row: call"), or the workflow through real servers ("server: case"), that shows it.
    "flux2": {"edit": "dev: two references"},
    "wan": {"image to video": "image to video: with CLIP vision"},
    "sd3": {},
    "z_image": {},
    "qwen_image": {"edit": "edit: larger references"},
    "ltx_video": {"image to video": "0.9.5 and on: image to video"},
    "hunyuan_video": {"image to video": "image to video by channels: even"},
}
SERVER_TASKS: Final = {
    "text to image": "text",
    "text to video": "text",
    "image to image": "from a latent",
    "inpaint": "masked",
}
"""Task -> the case of tests/comfy/test_families.py."""
FLUX_TASKS: Final = {
    "text to image": "euler_cfg4",
    "edit": "kontext_reference",
    "image to image": "denoise_half",
    "inpaint": "inpaint_mask",
}
"""Task -> the case of tests/comfy/test_parity.py."""
YES, NO = "✓", ""


class NotShown(Exception):
    """The table names a test that is not there."""


def tasks_of(family: str) -> set[str]:
    """What tests show of a family. Raises :class:`NotShown`."""
    if family == "flux":
        return {task for task, case in FLUX_TASKS.items() if _known(case, workflows.SAMPLE_CASES)}
    is_video = SERVED[family].is_video and SERVED[family].latent[1] > 1
    offered = {
        task: case for task, case in SERVER_TASKS.items() if task.endswith("video") == is_video or task == "inpaint"
    }
    served = {task for task, case in offered.items() if _known(case, SERVED_CASES)}
    rows = {f"{row.name}: {call}" for row in ROWS[family][1] for call in row.calls}
    return served | {task for task, row in SHOWN_BY[family].items() if _known(row, rows)}


def _known(name: str, names: Iterable[str]) -> bool:
    if name not in names:
        raise NotShown(f"no test is called {name!r}")
    return True


def plans_of(family: str) -> list[str]:
    """Every plan under which a family is compared with stock ComfyUI."""
    if family == "flux":
        return [plan for plan, _ in SERVER_PLANS.values()]
    return [plan for of_size in PLANS.values() for plan in of_size] if family in ROWS else []


def table() -> str:
    """Markdown."""
    head = ["family", *TASKS, "USP", "CFG parallel", "LoRA"]
    lines = [" | ".join(("", *head, "")).strip(), "|" + "---|" * len(head)]
    for family, label in LABELS.items():
        shown, plans = tasks_of(family), plans_of(family)
        marks = [YES if task in shown else NO for task in TASKS]
        has_lora = family == "flux" or family in LORA_ROWS
        marks += [YES if any(axis in plan for plan in plans) else NO for axis in ("ulysses=2", "cfg=2")]
        marks += [YES if has_lora else NO]
        lines.append(f"| {label} | {' | '.join(marks)} |")
    return "\n".join([*lines, "", *formats()])


def formats() -> list[str]:
    """What checkpoints and LoRAs may be stored as, in two sentences."""
    gguf = ", ".join([*quantised.GGUF_TYPES, *quantised.GGUF_K_TYPES])
    comfy = ", ".join(quantised.COMFY)
    loras = ", ".join(LORA_FORMATS)
    layouts = f"{comfy}; int8 with ConvRot too; scaled fp8 of old"
    files = (
        f"Files: bf16, fp16, fp32 and plain fp8, ComfyUI's own quantised layouts ({layouts}), GGUF ({gguf}), shards, and the diffusion model "
        "of an all-in-one file. Each is tested with FLUX.1, nvfp4 and Q8_0 with every family."
    )
    return [files, "", f"LoRA: {loras}."]


def section() -> str:
    """The table between its marks."""
    return f"{BEGIN}\n\n{table()}\n\n{END}"


def section_in(document: Path) -> str:
    """What stands there now."""
    text = document.read_text(encoding="utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main() -> None:
    """Write it into the documents."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        document.write_text(text.replace(section_in(document), section()), encoding="utf-8")


if __name__ == "__main__":
    main()
