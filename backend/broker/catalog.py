"""Which model names there are, and which file each one means: only inside the configured folders.

Containment is lexical: a name cannot leave its folder, but a folder (or a file in it) may be a link to a model drive.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..assets.files import shipped_file, shipped_names
from ..errors import UnknownModel
from ..formats.read import SUFFIXES, is_later_shard, read_header, shards_of
from ..wire.limits import MANIFEST_ENTRIES
from ..wire.messages import ManifestEntry
from .events import ModelFile
from .manifest import Manifest, manifest_of
from .names import CATEGORY, LORAS, STORED, relative_path, unknown

log = logging.getLogger(__name__)

SUBFOLDERS = (CATEGORY, "unet")
"""Where ComfyUI keeps diffusion models below its models folder; ``unet`` is the older name."""
DEPTH = 8
"""How deep a listing goes: links may make circles."""
HEADERS_CACHED = 64


@dataclass(frozen=True, slots=True)
class Described:
    """One checkpoint."""

    file: ModelFile
    header: Manifest


class Catalog:
    """Models of the folders given at the start, of those that ComfyUI's side wrote into ``folders.json``, and the shipped ones.

    For several threads: submissions are looked up on one and clients' Describes on another, because any drive may answer late and no
    submission shall wait for a listing. What they share is the memory of what was read; no lock is held while a drive is asked.
    """

    def __init__(
        self, models: Sequence[Path], folders_file: Path, assets: Path | None = None, stored: Path | None = None
    ) -> None:
        """``assets``: the folder of what ships with Tutti (see :mod:`tutti.backend.assets.files`); None leaves it out.

        ``stored``: where LoRAs are kept that clients sent as tensors.
        """
        self._given = [folder / name for folder in models for name in SUBFOLDERS]
        self._given_loras = [folder / LORAS for folder in models]
        self._stored = stored
        self._folders_file = folders_file
        self._assets = assets
        self._shipped_names = frozenset() if assets is None else shipped_names(assets)
        self.shipped = None if assets is None else assets / "models" / CATEGORY
        """Searched first: who asks for the shipped model by its name gets it, whatever else has that name."""
        self._from_file: tuple[tuple[int, int] | None, dict[str, list[Path]]] = (None, {})
        self._headers: OrderedDict[tuple[str, str], Described] = OrderedDict()
        self._headers_lock = threading.Lock()

    def folders(self) -> list[Path]:
        """Folders that are searched, first match wins."""
        self._refresh()
        shipped = [] if self.shipped is None else [self.shipped]
        told = [folder for name in SUBFOLDERS for folder in self._from_file[1].get(name, [])]
        return list(dict.fromkeys(shipped + self._given + told))

    def lora_folders(self) -> list[Path]:
        """Folders that are searched for LoRAs."""
        self._refresh()
        return list(dict.fromkeys(self._given_loras + self._from_file[1].get(LORAS, [])))

    def resolve_all(self, model: str, *loras: str) -> ModelFile:
        """The files of a model and of the LoRAs on it.

        Raises:
            UnknownModel: one of them is not there.
            BadCheckpoint: the model is no whole checkpoint.
        """
        file = self.resolve(model)
        return replace(file, loras=tuple(self._lora(name) for name in loras)) if loras else file

    def _lora(self, name: str) -> ModelFile:
        kind = STORED if name.startswith(f"{STORED}/") else LORAS
        folders = [self._stored] if kind == STORED and self._stored is not None else self.lora_folders()
        path, info = self._find(name, folders, kind)
        if kind == STORED:
            _touch(path, name)
        # A stored one is named by its bytes, and looks newer whenever it is asked for.
        identity = name if kind == STORED else f"{info.st_size}|{info.st_mtime_ns}"
        return ModelFile(path=str(path), fingerprint=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest())

    def resolve(self, name: str) -> ModelFile:
        """The file that a model name means.

        Raises:
            UnknownModel: there is none.
            BadCheckpoint: it is no whole checkpoint, or the shipped one is missing or not what was shipped.
        """
        return self.describe(name).file

    def describe(self, name: str) -> Described:
        """A model's file and its header.

        Raises:
            UnknownModel: there is none.
            BadCheckpoint: it is no whole checkpoint, or a shipped one that is not what was shipped.
        """
        path, info = self._find(name, self._folders_for(name), CATEGORY)
        stamp = _stamp(path, info)
        key = (str(path), stamp)
        with self._headers_lock:
            described = self._headers.get(key)
        if described is None:
            described = self._read(path, stamp)
        with self._headers_lock:
            self._headers[key] = described
            self._headers.move_to_end(key)
            while len(self._headers) > HEADERS_CACHED:
                self._headers.popitem(last=False)
        return described

    def list_models(self) -> tuple[ManifestEntry, ...]:
        """Every model name with its size, in order of name; of more than a manifest holds, those found first."""
        found: dict[str, int] = {}
        for name, size_bytes in self._walk_all():
            found.setdefault(name, size_bytes)
            if len(found) >= MANIFEST_ENTRIES:
                break
        return tuple(ManifestEntry(name=name, kind="FILE", numbers=(found[name],)) for name in sorted(found))

    def _walk_all(self) -> Iterator[tuple[str, int]]:
        """Model names and sizes of one folder after the other. A name may come several times: the first one counts."""
        for folder in self.folders():
            for parts, size_bytes in _walk(folder, ()):
                yield "/".join((CATEGORY, *parts)), size_bytes

    def _find(self, name: str, folders: Sequence[Path], kind: str) -> tuple[Path, os.stat_result]:
        parts = relative_path(name, kind)
        for folder in folders:
            path = folder.joinpath(*parts)
            if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
                raise unknown(name)
            try:
                info = path.stat()
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(info.st_mode):
                return path, info
        if self._assets is not None and name in self._shipped_names:
            shipped_file(name, self._assets)  # says that it is missing
        raise unknown(name)

    def _folders_for(self, name: str) -> list[Path]:
        """Who asks for the shipped model never gets another one of that name."""
        return [self.shipped] if self.shipped is not None and name in self._shipped_names else self.folders()

    def _read(self, path: Path, stamp: str) -> Described:
        if self._assets is not None and self.shipped is not None and path.is_relative_to(self.shipped):
            shipped_file(f"{CATEGORY}/{path.relative_to(self.shipped).as_posix()}", self._assets)
        return _read(path, stamp)

    def _refresh(self) -> None:
        """Read ``folders.json`` again if it changed."""
        try:
            info = self._folders_file.stat()
        except OSError:
            self._from_file = (None, {})
            return
        stamp = (info.st_mtime_ns, info.st_size)
        if stamp != self._from_file[0]:
            self._from_file = (stamp, _read_folders(self._folders_file))


def _touch(path: Path, name: str) -> None:
    """Keep a stored file from making room for others: a job that names it is about to wait."""
    try:
        os.utime(path)
    except OSError:
        raise unknown(name) from None  # it has made room just now: the store works on another thread


def _read_folders(file: Path) -> dict[str, list[Path]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        folders = {name: [Path(path) for path in data.get(name, [])] for name in (*SUBFOLDERS, LORAS)}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        log.warning("ignored %s: it is damaged (%s)", file.name, type(error).__name__)
        return {}
    return {name: [folder for folder in of_kind if folder.is_absolute()] for name, of_kind in folders.items()}


def _stamp(path: Path, info: os.stat_result) -> str:
    """Changes when a file does, or (of several that belong together) any of them.

    Raises:
        BadCheckpoint: one of them is missing.
    """
    files = shards_of(path)
    infos = [info] if len(files) == 1 else [file.stat() for file in files]
    return "|".join(f"{each.st_size}|{each.st_mtime_ns}" for each in infos)


def _read(path: Path, stamp: str) -> Described:
    header = read_header(path)
    fingerprint = hashlib.blake2b(f"{stamp}|{header.digest}".encode(), digest_size=16).hexdigest()
    return Described(ModelFile(path=str(path), fingerprint=fingerprint), manifest_of(header))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Checkpoints below a folder: their path's parts and size. Links are followed, names that cannot be asked for left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        parts = (*above, entry.name)
        try:
            if entry.is_dir():
                if len(parts) < DEPTH and not entry.name.startswith("."):
                    yield from _walk(folder / entry.name, parts)
            elif entry.name.lower().endswith(SUFFIXES) and not is_later_shard(entry.name) and entry.is_file():
                relative_path("/".join((CATEGORY, *parts)))
                yield parts, entry.stat().st_size
        except (OSError, UnknownModel):
            continue
