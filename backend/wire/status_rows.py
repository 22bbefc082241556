"""The rows of a Status message: a rank each, and a job each."""

from __future__ import annotations

from dataclasses import dataclass, field

from .limits import NAME_LENGTH
from .schema import bounded

_COUNT = bounded(low=0)
_NAME = bounded(length=NAME_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """One rank, as ``tutti status`` shows it."""

    rank: int = field(metadata=_COUNT)
    pid: int = field(metadata=_COUNT)
    device: str = field(metadata=_NAME)
    memory_bytes: int = field(metadata=_COUNT)
    """Resident memory on CPU, allocated device memory on a GPU; 0 before the first job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """One job, as ``tutti status`` shows it."""

    job_id: str = field(metadata=bounded(length=32, pattern=r"[0-9a-f]{32}"))
    node_id: str = field(metadata=_NAME)
    model: str = field(metadata=_NAME)
    state: str = field(metadata=bounded(length=32))
    step: int = field(metadata=_COUNT)
    steps: int = field(metadata=_COUNT)
