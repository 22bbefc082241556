"""The ledger: what became of every job. In memory; it does not survive the daemon (docs/reliability.md says what that means)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from .actions import JobRecord

RECORDS_KEPT = 10_000


class Ledger(Protocol):
    """Where job states are written down, strictly before anybody is told about them."""

    def persist(self, record: JobRecord) -> None:
        """Keep this state of a job. Returns when it is as safe as this ledger makes it."""

    def close(self) -> None:
        """Nothing more will be written."""


class MemoryLedger:
    """The last state of the latest jobs, for the life of the process."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, JobRecord] = OrderedDict()

    def persist(self, record: JobRecord) -> None:
        """Keep this state of a job."""
        self._records[record.job_id] = record
        self._records.move_to_end(record.job_id)
        while len(self._records) > RECORDS_KEPT:
            self._records.popitem(last=False)

    def get(self, job_id: str) -> JobRecord | None:
        """The last state of a job, if it is remembered."""
        return self._records.get(job_id)

    def close(self) -> None:
        """Nothing to do."""
