"""Files that clients sent in pieces, named by their bytes: LoRAs that ComfyUI had read before anybody knew that they were for us."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from ..errors import BadRequest, QueueFull

MOST_BYTES: Final = 32 * 1024**3
"""What all files together may take. The ones that were asked for longest ago make room."""
_PIECE: Final = 4 * 1024**2


class FileStore:
    """A folder of whole files ``<digest>.safetensors`` and unfinished ones. Used on one thread."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def put(self, digest: str, size_bytes: int, offset: int, data: bytes | memoryview | None) -> int:
        """Add a piece; returns how many bytes of the file are there. Without data only asks.

        Raises:
            BadRequest: the whole file is not what its digest says; nothing of it is kept.
            QueueFull: there is no room, even without the others.
        """
        whole, part = self._folder / f"{digest}.safetensors", self._folder / f"{digest}.part"
        if whole.exists():
            whole.touch()
            return whole.stat().st_size
        have = part.stat().st_size if part.exists() else 0
        if data is None or offset != have:
            return have
        if have == 0:
            self._make_room(size_bytes)
        with part.open("ab") as file:
            file.write(data)
        have = part.stat().st_size
        if have == size_bytes:
            self._finish(digest, part, whole)
        return have

    def _finish(self, digest: str, part: Path, whole: Path) -> None:
        found = hashlib.blake2b(digest_size=16)
        with part.open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
        if found.hexdigest() != digest:
            part.unlink()
            raise BadRequest("Send the file again: its bytes are not what their digest says.")
        part.replace(whole)

    def _make_room(self, size_bytes: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if size_bytes > self._most_bytes:
            raise QueueFull(
                f"Use a smaller LoRA: {size_bytes} bytes are more than the {self._most_bytes} that are kept."
            )
        kept = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in kept)
        for path in kept:
            if used + size_bytes <= self._most_bytes:
                return
            used -= path.stat().st_size
            path.unlink()
