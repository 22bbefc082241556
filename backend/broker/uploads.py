"""Conditioning that clients uploaded for their Evaluate trajectories: sent once, checked once, kept until the trajectory ends.

The broker keeps it after the ranks have it, so that a trajectory between two turns survives a restart of the group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import BadRequest
from ..wire.messages import Evaluate
from ..wire.tensors import Tensors, WireTensor
from .clients import ClientKey

Key = tuple[ClientKey, str]
"""(owner, job id)"""


@dataclass(slots=True)
class StoredUpload:
    """One Upload."""

    tensors: Tensors
    size_bytes: int
    digest_token: int | None = None
    """Under which the digest of its content was asked for."""
    checked: bool = False
    """Its content has the digest it claims."""
    on_ranks: bool = False
    """The ranks of this incarnation have it."""


@dataclass(slots=True)
class UploadStore:
    """Uploads by trajectory, then by digest."""

    _stored: dict[Key, dict[str, StoredUpload]] = field(default_factory=dict)
    _touched_s: dict[Key, float] = field(default_factory=dict)

    def get(self, key: Key, digest: str) -> StoredUpload | None:
        """One upload, or None."""
        return self._stored.get(key, {}).get(digest)

    def count(self, key: Key) -> int:
        """How many uploads a trajectory has."""
        return len(self._stored.get(key, ()))

    def put(self, key: Key, digest: str, upload: StoredUpload, now_s: float) -> None:
        """Keep an upload."""
        self._stored.setdefault(key, {})[digest] = upload
        self._touched_s[key] = now_s

    def discard(self, key: Key, digest: str) -> int:
        """Forget one upload; returns its bytes."""
        uploads = self._stored[key]
        freed = uploads.pop(digest).size_bytes
        if not uploads:
            del self._stored[key], self._touched_s[key]
        return freed

    def drop(self, key: Key) -> list[StoredUpload]:
        """Forget a trajectory's uploads; returns them."""
        self._touched_s.pop(key, None)
        return list(self._stored.pop(key, {}).values())

    def require(self, key: Key, request: Evaluate) -> None:
        """Check that everything an Evaluate names was uploaded.

        Raises:
            BadRequest: something was not.
        """
        for digest in named(request):
            if self.get(key, digest) is None:
                raise BadRequest(f"Upload the conditioning before the Evaluate that names it: {digest} is not known.")

    def ready(self, key: Key, request: Evaluate) -> bool:
        """Whether everything an Evaluate names has been checked."""
        uploads = self._stored.get(key, {})
        return all(digest in uploads and uploads[digest].checked for digest in named(request))

    def missing_on_ranks(self, key: Key, request: Evaluate) -> dict[str, WireTensor]:
        """The tensors that have to travel with a turn, as the ranks know them: ``upload.<digest>.<name>``."""
        uploads = self._stored.get(key, {})
        return {
            f"upload.{digest}.{name}": tensor
            for digest in named(request)
            if not uploads[digest].on_ranks
            for name, tensor in uploads[digest].tensors.items()
        }

    def delivered(self, key: Key, request: Evaluate) -> None:
        """The ranks have what this turn names."""
        for digest in named(request):
            self._stored[key][digest].on_ranks = True

    def forget_delivery(self, key: Key | None = None) -> None:
        """The ranks have lost what they had: of one trajectory, or of all (they were restarted)."""
        for uploads in self._stored.values() if key is None else [self._stored.get(key, {})]:
            for upload in uploads.values():
                upload.on_ranks = False

    def stale(self, open_keys: set[Key], before_s: float) -> list[Key]:
        """Trajectories that were uploaded for before ``before_s`` and never opened."""
        return [key for key, touched_s in self._touched_s.items() if touched_s < before_s and key not in open_keys]


def named(request: Evaluate) -> Iterable[str]:
    """The digests an Evaluate names, each once, in order."""
    return dict.fromkeys(call.conditioning for call in request.calls)
