"""What a rank tells the broker. Every rank reports its own state and its loading; only rank 0 speaks for a job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch import Tensor

from ..errors import TuttiError
from ..wire.limits import NAME_LENGTH, TEXT_LENGTH
from ..wire.messages import (
    Done,
    Evaluated,
    Failed,
    Message,
    Prepared,
    Preview,
    Progress,
    Refused,
    Result,
)
from ..wire.tensors import WireTensor
from ..wire.texts import joined, shortened
from .tensors import to_wire
from .trajectory import Outcome

LOADING_INTERVAL_S: Final = 0.1

Send = Callable[[Message, Mapping[str, WireTensor] | None], None]


class RankReport:
    """What every rank says about itself."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def prepared(self, sequence: int, changed: str | None) -> None:
        """This rank could run the job, with weights of this checksum."""
        self._send(Prepared(sequence=sequence, changed=changed), None)

    def refused(self, sequence: int, error: TuttiError) -> None:
        """This rank cannot run the job."""
        self._send(Refused(sequence=sequence, code=error.code, message=error.message[:TEXT_LENGTH]), None)

    def done(
        self,
        sequence: int,
        *,
        memory_bytes: int,
        resident: tuple[str, ...],
        compile: str,
        attention: Sequence[str],
        compression: Sequence[str] = (),
    ) -> None:
        """This rank has left the job."""
        done = Done(
            sequence=sequence,
            memory_bytes=memory_bytes,
            resident=resident[:64],
            compile=shortened(compile, NAME_LENGTH),
            attention=joined(attention, NAME_LENGTH),
            compression=joined(compression, NAME_LENGTH),
        )
        self._send(done, None)


class JobReport:
    """What rank 0 says about one job. On other ranks it exists and tells of loading only, so that the loop is the same everywhere."""

    def __init__(self, send: Send, job_id: str, *, speaks: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._speaks = speaks
        self._job_id = job_id
        self._clock = clock
        self._loading_after_s = clock()

    def loading(self, fraction: float) -> None:
        """How much of the model is loaded; told at most ten times a second, and by every rank: to the broker it is a sign of life."""
        if self._clock() >= self._loading_after_s:
            self._loading_after_s = self._clock() + LOADING_INTERVAL_S
            self._send(Progress(job_id=self._job_id, phase="loading", step=int(100 * fraction), steps=100), None)

    def compiling(self, count: int, of: int) -> None:
        """The compilation of a kind of block begins, the ``count``-th of this job; ``of``: how many are expected."""
        text = f"{count} of {of}, once for pictures of this size"
        self._tell(Progress(job_id=self._job_id, phase="compiling", step=count, steps=of, text=text))

    def sampling(self, step: int, steps: int, text: str) -> None:
        """``step`` of ``steps`` are done; of a loop that runs in the client, turn ``step`` of nobody knows how many (0)."""
        text = shortened(text, TEXT_LENGTH)
        self._tell(Progress(job_id=self._job_id, phase="sampling", step=step, steps=steps, text=text))

    def preview(self, step: int, x0: Tensor) -> None:
        """The denoised latent of a step."""
        self._tell(Preview(job_id=self._job_id, step=step), {"x0": x0})

    def result(
        self, outcome: Outcome, *, step_ms: float, plan: str, exchanged_bytes: int, compression: Sequence[str] = ()
    ) -> None:
        """The end of a Sample."""
        message = Result(
            job_id=self._job_id,
            step_ms=step_ms,
            plan=plan,
            exchanged_bytes=exchanged_bytes,
            compression=joined(compression, NAME_LENGTH),
        )
        self._tell(message, {"latent": outcome.latent, "x0": outcome.x0})

    def evaluated(self, turn: int, outputs: Mapping[str, Tensor]) -> None:
        """The answer to an Evaluate."""
        self._tell(Evaluated(job_id=self._job_id, turn=turn), outputs)

    def failed(self, error: TuttiError) -> None:
        """The end of a job by an error or a cancel."""
        self._tell(Failed(code=error.code, message=error.message[:TEXT_LENGTH], job_id=self._job_id))

    def _tell(self, message: Message, tensors: Mapping[str, Tensor] | None = None) -> None:
        if self._speaks:
            self._send(message, {name: to_wire(tensor) for name, tensor in (tensors or {}).items()})


class StepClock:
    """The median time of a step. A step's first call ends it in solvers of one call a step; where steps have more, the intervals
    between first calls are as long as the steps."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started_s = clock()
        self._marks_s: list[float] = []

    def mark(self) -> None:
        """A step's first call has ended."""
        self._marks_s.append(self._clock())

    def median_ms(self) -> float:
        """Median over all intervals between marks; of a single step, the time until now."""
        if len(self._marks_s) < 2:
            return 1000 * (self._clock() - self._started_s)
        return 1000 * statistics.median(b - a for a, b in zip(self._marks_s, self._marks_s[1:], strict=False))
