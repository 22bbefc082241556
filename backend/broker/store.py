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
IDLE_S: Final = 30.0
"""A piece may be on its way for so long. After that whoever names another size begins anew: the first one may never come back."""
_SPARE_BYTES: Final = 1024**3
"""What a disk must have beside a new file."""
_PIECE: Final = 4 * 1024**2


class FileStore:
    """A folder of whole files ``<digest>.safetensors`` and unfinished ones. Used on one thread."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._sizes: dict[str, int] = {}
        """Unfinished files -> the size that their first piece promised: it is taken from the room at once, and given back with the file."""
        self._hashes: dict[str, Any] = {}
        """Unfinished files -> the hash of what is there."""

    def put(self, digest: str, size_bytes: int, offset: int, data: bytes | memoryview | None) -> int:
        """Add a piece; returns how many bytes of the file are there. Without data only asks.

        Raises:
            BadRequest: the whole file is not what its digest says, and nothing of it is kept; or a piece promises another size than an upload
                that still goes on.
            QueueFull: there is no room, even without the files that nobody asked for lately.
        """
        whole, part = self._folder / f"{digest}.safetensors", self._folder / f"{digest}.part"
        if whole.exists():
            os.utime(whole)
            return whole.stat().st_size
        have = self._continued(digest, part, size_bytes)
        if data is None or offset != have:
            return have
        if digest not in self._sizes:
            self._make_room(size_bytes, part)
            self._sizes[digest] = size_bytes
        with part.open("ab") as file:
            file.write(data)
        self._hash(digest, part, have).update(data)
        have += len(data)
        if have == size_bytes:
            self._finish(digest, part, whole)
        return have

    def _continued(self, digest: str, part: Path, size_bytes: int) -> int:
        """How many bytes are there of a file of this size. What is of another one, and was left alone, is dropped."""
        if not part.exists():
            self._drop(part)
            return 0
        info, promised = part.stat(), self._sizes.get(digest)
        if promised is None:
            # From before a restart: one that should have been finished, or is too long, was of another size or is damaged.
            fits = info.st_size < size_bytes
        else:
            fits = promised == size_bytes
            if not fits and time.time() - info.st_mtime <= IDLE_S:
                raise BadRequest(
                    f"Send the file again: its first piece promised {promised} bytes, this one {size_bytes}."
                )
        if not fits:
            self._drop(part)
        return info.st_size if fits else 0

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
        if self._hashes[digest].hexdigest() != digest:
            self._drop(part)
            raise BadRequest("Send the file again: its bytes are not what their digest says.")
        part.replace(whole)
        self._drop(part)

    def _drop(self, part: Path) -> None:
        """Forget an unfinished file, with what was promised for it."""
        self._sizes.pop(part.stem, None)
        self._hashes.pop(part.stem, None)
        part.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int, continued: Path) -> None:
        """``continued``: the unfinished file that it is for; what there is of it is part of ``size_bytes`` already."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = [path for path in self._folder.iterdir() if path != continued]
        kept = sorted(others, key=lambda path: path.stat().st_mtime)
        promised = {f"{digest}.part": size for digest, size in self._sizes.items()}
        taken = {path: promised.get(path.name, path.stat().st_size) for path in kept}
        used, now_s = sum(taken.values()), time.time()
        for path in kept:
            if used + size_bytes <= self._most_bytes:
                break
            if now_s - path.stat().st_mtime > KEPT_S:
                used -= taken[path]
                if path.suffix == ".part":
                    self._drop(path)
                else:
                    path.unlink()
        free_bytes = shutil.disk_usage(self._folder).free
        if used + size_bytes > self._most_bytes or free_bytes < size_bytes + _SPARE_BYTES:
            raise QueueFull(
                f"Wait some minutes, free space where the daemon keeps its state, or use a smaller LoRA: there is no room for {size_bytes} bytes."
            )
