"""What compression has saved and lost over a job on this rank, in numbers and in words."""

from __future__ import annotations

from ..compression.channel import Sightings
from ..wire.texts import size_text


class Savings:
    """Running totals of a trajectory's transfers."""

    def __init__(self) -> None:
        self.calls = self.compressed_calls = 0
        """Model calls so far, and those of them that sent differences or key frames."""
        self.raw_bytes = 0
        """Of the tensors that this rank encoded."""
        self.payload_bytes = 0
        """Of what travelled in their place."""
        self.error = 0.0
        """Relative root mean square of what encoding lost, in the last calls in which it was measured."""

    def add(self, seen: Sightings) -> None:
        """Count what was seen since the last look."""
        self.raw_bytes += seen.raw_bytes
        self.payload_bytes += seen.payload_bytes
        self.error = seen.error or self.error

    def count_call(self, *, compressed: bool) -> None:
        """One more call has ended."""
        self.calls += 1
        self.compressed_calls += compressed

    @property
    def ratio(self) -> float:
        """How many times fewer bytes in the compressed calls so far; 0 before the first transfer."""
        return self.raw_bytes / self.payload_bytes if self.payload_bytes else 0.0

    @property
    def line(self) -> str:
        """While the job runs: ``compressed 7.6x, error 1.2 %``; empty before the first transfer."""
        return f"compressed {self.ratio:.1f}x{self._calls_text}{self._error_text}" if self.payload_bytes else ""

    def summary(self, state_bytes: int) -> str:
        """At the end: ``7.6x fewer bytes, error 1.2 %, 0.4 GB of state``."""
        if not self.payload_bytes:
            return "nothing was compressed"
        return f"{self.ratio:.1f}x fewer bytes{self._calls_text}{self._error_text}, {size_text(state_bytes)} of state"

    @property
    def _calls_text(self) -> str:
        every = self.compressed_calls == self.calls
        return "" if every else f" in {self.compressed_calls} of {self.calls} calls"

    @property
    def _error_text(self) -> str:
        percent = 100 * self.error
        return f", error {percent:.1f} %" if percent >= 0.1 else f", error {percent:.2g} %" if percent else ""
