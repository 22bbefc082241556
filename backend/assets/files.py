"""Where the shipped files are, and whether they are whole.

    models/diffusion_models/tutti_demo_flux.safetensors   the transformer, BFL names, bf16
    models/vae/tutti_demo_vae.safetensors                 the autoencoder, TAESD's layout
    digests.json                                          BLAKE2b of both, written by the recipe

The folder ``models`` looks like one of ComfyUI's: the daemon looks for models in it before all others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import BadCheckpoint

FOLDER: Final = Path(__file__).parent
MODELS_FOLDER: Final = FOLDER / "models"
TRANSFORMER: Final = "diffusion_models/tutti_demo_flux.safetensors"
"""Name of the transformer, as models are named on the wire."""
AUTOENCODER: Final = "vae/tutti_demo_vae.safetensors"
DIGESTS: Final = "digests.json"
_DIGEST_BYTES: Final = 16
_PIECE_BYTES: Final = 1024**2


def shipped_file(name: str, folder: Path = FOLDER) -> Path:
    """The path of a shipped model (:data:`TRANSFORMER`, :data:`AUTOENCODER`), after its bytes were checked.

    Raises:
        BadCheckpoint: it is missing, or not what was shipped.
    """
    path = folder / "models" / name
    with _named(path):
        found = digest_of(path)
    with _named(folder / DIGESTS):
        expected = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))[name]
    if found != expected:
        raise _unusable(path, "damaged")
    return path


def shipped_names(folder: Path = FOLDER) -> frozenset[str]:
    """What ships, by name; where the list itself is damaged, what every release ships."""
    try:
        return frozenset(json.loads((folder / DIGESTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return frozenset({TRANSFORMER, AUTOENCODER})


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong with a file becomes a sentence with its name."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unusable(path, "missing") from error
    except OSError as error:
        raise BadCheckpoint(
            f"Make {path.name}, a file of Tutti's demo model, readable for this user: it cannot be read ({error.strerror})."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(path, "damaged") from error


def _unusable(path: Path, how: str) -> BadCheckpoint:
    return BadCheckpoint(f"Install Tutti again: {path.name}, a file of its demo model, is {how}.")


def digest_of(path: Path) -> str:
    """BLAKE2b of a file, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
