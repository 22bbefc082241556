"""Files that clients sent in pieces, named by their bytes: LoRAs that ComfyUI had read before anybody knew that they were for us."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, Final

from ..errors import BadRequest, QueueFull

MOST_BYTES: Final = 32 * 1024**3
"""What all files together may take. The ones that were asked for longest ago make room."""
KEPT_S: Final = 600.0
"""A file that was asked for so lately stays: a job that names it may wait."""
_SPARE_BYTES: Final = 1024**3
"""What a disk must have beside a new file."""
_PIECE: Final = 4 * 1024**2


class FileStore:
    """A folder of whole files ``<digest>.safetensors`` and unfinished ones. Used on one thread."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._sizes: dict[str, int] = {}
        """Unfinished files -> the size that their first piece promised: it is taken from the room at once."""
        self._hashes: dict[str, Any] = {}
        """Unfinished files -> the hash of what is there."""

    def put(self, digest: str, size_bytes: int, offset: int, data: bytes | memoryview | None) -> int:
        """Add a piece; returns how many bytes of the file are there. Without data only asks.

        Raises:
            BadRequest: the whole file is not what its digest says, and nothing of it is kept; or a piece promises another size than the first.
            QueueFull: there is no room, even without the files that nobody asked for lately.
        """
        whole, part = self._folder / f"{digest}.safetensors", self._folder / f"{digest}.part"
        if whole.exists():
            os.utime(whole)
            return whole.stat().st_size
        have = part.stat().st_size if part.exists() else 0
        if data is None or offset != have:
            return have
        self._promise(digest, size_bytes)
        with part.open("ab") as file:
            file.write(data)
        self._hash(digest, part, have).update(data)
        have += len(data)
        if have == size_bytes:
            self._finish(digest, part, whole)
        return have

    def _promise(self, digest: str, size_bytes: int) -> None:
        if digest not in self._sizes:
            self._make_room(size_bytes)
            self._sizes[digest] = size_bytes
        elif self._sizes[digest] != size_bytes:
            raise BadRequest(
                f"Send the file again: its first piece promised {self._sizes[digest]} bytes, this one {size_bytes}."
            )

    def _hash(self, digest: str, part: Path, have: int) -> Any:
        """Of the ``have`` bytes that were there before: after a restart they are read again."""
        if digest not in self._hashes:
            self._hashes[digest] = hashlib.blake2b(digest_size=16)
            with part.open("rb") as file:
                while have > 0 and (piece := file.read(min(_PIECE, have))):
                    self._hashes[digest].update(piece)
                    have -= len(piece)
        return self._hashes[digest]

    def _finish(self, digest: str, part: Path, whole: Path) -> None:
        found = self._hashes.pop(digest).hexdigest()
        del self._sizes[digest]
        if found != digest:
            part.unlink()
            raise BadRequest("Send the file again: its bytes are not what their digest says.")
        part.replace(whole)

    def _make_room(self, size_bytes: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        promised = {f"{digest}.part": size for digest, size in self._sizes.items()}
        taken = {path: promised.get(path.name, path.stat().st_size) for path in kept}
        used, now_s = sum(taken.values()), time.time()
        for path in kept:
            if used + size_bytes <= self._most_bytes:
                break
            if path.name not in promised and now_s - path.stat().st_mtime > KEPT_S:
                used -= taken[path]
                path.unlink()
        free_bytes = shutil.disk_usage(self._folder).free
        if used + size_bytes > self._most_bytes or free_bytes < size_bytes + _SPARE_BYTES:
            raise QueueFull(
                f"Wait some minutes, free space where the daemon keeps its state, or use a smaller LoRA: there is no room for {size_bytes} bytes."
            )
