"""Model names: what a workflow may name, judged by its letters alone, before any file system is asked."""

from __future__ import annotations

import re
import unicodedata

from ..errors import UnknownModel
from ..formats.read import SUFFIXES
from ..wire.limits import NAME_LENGTH

CATEGORY = "diffusion_models"
LORAS = "loras"
STORED = "stored"
"""LoRAs that clients sent as tensors, by the digest of their bytes."""
# Control, format (zero-width, direction), surrogate and private characters, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_DRIVE = re.compile(r"[A-Za-z]:")


def relative_path(name: str, kind: str = CATEGORY) -> tuple[str, ...]:
    """The parts of the path below a folder of models that ``diffusion_models/sub/x.safetensors`` stands for.

    Raises:
        UnknownModel: the name is a path, an address, hides something, or is not of a category we serve.
    """
    category, *parts = name.split("/")
    if category != kind or not parts or not name.lower().endswith(SUFFIXES) or not _is_plain(name):
        raise unknown(name)
    if not all(_is_plain_part(part) for part in parts):
        raise unknown(name)
    return tuple(parts)


def _is_plain(name: str) -> bool:
    return len(name) <= NAME_LENGTH and not any(unicodedata.category(letter) in _INVISIBLE for letter in name)


def _is_plain_part(part: str) -> bool:
    # Compatibility forms too: a full-width stop or solidus may be folded to the real one by a file system.
    for form in (part, unicodedata.normalize("NFKC", part)):
        if form.strip(" .") == "" or form[0] == " " or form[-1] in " ." or set(form) & set("/\\") or _DRIVE.match(form):
            return False
    return True


def unknown(name: str) -> UnknownModel:
    """The answer for every name that is not served, whatever the reason: a stranger learns nothing about the disk."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:80])
    if name.startswith(f"{STORED}/"):
        return UnknownModel(
            f"Queue the workflow again: the daemon has dropped the LoRA that it was sent ({shown!r}), and gets it anew with the next run."
        )
    thing = "LoRA" if name.startswith(f"{LORAS}/") else "checkpoint"
    return UnknownModel(
        f"Put the {thing} into a models folder of the daemon (see `tutti doctor`), or choose another: {shown!r} is not there."
    )
