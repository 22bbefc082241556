"""Content digests: what names an Upload and makes a job id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from .tensors import Tensors


def content_digest(tensors: Tensors) -> str:
    """128-bit BLAKE2b over the tensors in order of name: name, dtype, shape and bytes. Hexadecimal, 32 characters."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name}|{tensor.dtype}|{','.join(map(str, tensor.shape))}|".encode())
        state.update(tensor.data)
    return state.hexdigest()


def job_digest(client_id: str, node_id: str, frames: Iterable[bytes | memoryview]) -> str:
    """The job id: 128-bit BLAKE2b of who asks, for which node, and the message (encoded with an all-zero job id).
    Hexadecimal, 32 characters. Every part follows its length, so that no two requests are the same bytes in a row."""
    state = hashlib.blake2b(digest_size=16)
    for part in (client_id.encode(), node_id.encode(), *frames):
        view = memoryview(part)
        state.update(view.nbytes.to_bytes(8, "little"))
        state.update(view)
    return state.hexdigest()
