"""The control vector: what all ranks tell one another before every model call, and what they all conclude from it.

:func:`decide` is a pure function of everybody's rows. All ranks see the same rows, so all come to the same conclusion without a
leader: they go on together, leave together, or find that they are not at the same place and end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor

from ..compression.policy import LAYER_GROUPS
from ..errors import ERRORS_BY_CODE, Draining, InternalError, JobCancelled, TuttiError

PROTOCOL: Final = 2
"""2: with errors by layer group. No rank ever meets another number: all of a group run the same release."""
_WANTS_KEY_WORD: Final = 5
"""2: because of numbers that are not finite."""
_EVICTIONS_WORD: Final = 6
_STATE_BYTES_WORD: Final = 7
_SENT_BYTES_WORD: Final = 8
_CALL_US_WORD: Final = 9
_FIRST_SPARE_WORD: Final = 10
_FIRST_ERROR_WORD: Final = 16
WORDS: Final = _FIRST_ERROR_WORD + LAYER_GROUPS
"""Length of the vector. Words 5 to 7, 9 and the errors from 16 on belong to residual codecs and are zero without them; the spare ones in between always are."""

_ERROR_CODES: Final = tuple(sorted(ERRORS_BY_CODE))
"""The same list on every rank, which all run the same release: an error travels as its place in it, counted from 1."""


class OutOfStep(Exception):
    """The ranks are not at the same place, or only some of them failed. The group cannot go on; the rank ends."""

    def __init__(self, text: str, *, error: str = "") -> None:
        super().__init__(text)
        self.error = error
        """Wire code of the error that the first of the failed ranks reported, or empty."""


class Action(IntEnum):
    """What a rank asks for. Where ranks ask for different things, the first of CANCEL, DRAIN, CONTINUE is done."""

    CONTINUE = 0
    CANCEL = 1
    """The job's owner wants it to end."""
    DRAIN = 2
    """This rank was told to stop."""
    YIELD = 3
    """Reserved: leave to let another trajectory go first. No rank of this release asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualNews:
    """What one rank tells of its residual state, or what all of them conclude."""

    wants_key: bool = False
    """Whether something was wrong with the last payloads: all begin anew with a key frame."""
    is_broken: bool = False
    """Whether it was because of numbers that are not finite."""
    evictions: int = 0
    """Trajectories dropped for want of room so far; the same on every rank."""
    state_bytes: int = 0
    """What the states of the trajectory that ran last need; of all ranks, the most."""
    call_us: int = 0
    """How long the trajectory's last call took, in microseconds; of all ranks, the longest. 0: none ran."""
    errors_ppm: tuple[int, ...] = ()
    """What encoding lost in it in each layer group, in millionths; of all ranks, the most. 0: it was not measured; empty: nothing was."""

    def __post_init__(self) -> None:
        if len(self.errors_ppm) not in (0, LAYER_GROUPS):
            raise InternalError(f"Tell the errors of {LAYER_GROUPS} groups or none, not of {len(self.errors_ppm)}.")
        if self.is_broken and not self.wants_key:
            raise InternalError("Ask for a key frame where numbers were not finite.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rank's vector."""

    sequence: int
    """Of the Prepare."""
    call: int
    """Model calls that this rank has entered within the trajectory."""
    action: Action = Action.CONTINUE
    error: str = ""
    """Wire code of the error that this rank's call ended with."""
    sent_bytes: int = 0
    """What this rank has sent to the others, in the exchange after the last call; nothing is decided by it."""
    residuals: ResidualNews = ResidualNews()

    def words(self) -> list[int]:
        """The row as it travels."""
        error = _ERROR_CODES.index(self.error) + 1 if self.error else 0
        words = [PROTOCOL, self.sequence, self.call, self.action, error, *[0] * (WORDS - 5)]
        words[_WANTS_KEY_WORD] = self.residuals.wants_key + self.residuals.is_broken
        words[_EVICTIONS_WORD] = self.residuals.evictions
        words[_STATE_BYTES_WORD] = self.residuals.state_bytes
        words[_SENT_BYTES_WORD] = self.sent_bytes
        words[_CALL_US_WORD] = self.residuals.call_us
        words[_FIRST_ERROR_WORD:] = self.residuals.errors_ppm or [0] * LAYER_GROUPS
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What all ranks do next."""

    action: Action
    error: str
    """Wire code of the error that every rank reports, or empty."""
    residuals: ResidualNews = ResidualNews()
    """Of all ranks together."""


def decide(rows: Sequence[Sequence[int]], *, counts: bool = False) -> Decision:
    """What the group does, from every rank's row in order of rank. ``counts``: whether rows say how much was sent.

    Raises:
        OutOfStep: rows of another protocol, job or call, spare words in use, an unknown action or error, an error that not every
            rank reports, or residual state that was dropped on some ranks only.
    """
    _check_same_place(rows, counts)
    errors = [row[4] for row in rows]
    if any(errors):
        if len(set(errors)) > 1 or not 0 < errors[0] <= len(_ERROR_CODES):
            first = next(filter(None, errors))
            code = _ERROR_CODES[first - 1] if 0 < first <= len(_ERROR_CODES) else ""
            raise OutOfStep(f"the ranks do not report the same error: {errors}", error=code)
        return Decision(action=Action.CONTINUE, error=_ERROR_CODES[errors[0] - 1])
    asked = {row[3] for row in rows}
    if not asked <= {Action.CONTINUE, Action.CANCEL, Action.DRAIN}:
        raise OutOfStep(f"a rank asks for an unknown action: {sorted(asked)}")
    residuals = _residuals(rows)  # behind the errors: a rank that reports one tells nothing of its state
    action = next((action for action in (Action.CANCEL, Action.DRAIN) if action in asked), Action.CONTINUE)
    return Decision(action=action, error="", residuals=residuals)


def _residuals(rows: Sequence[Sequence[int]]) -> ResidualNews:
    """What the ranks conclude about residual state: a key frame if anybody wants one, and room for the largest."""
    evictions = {row[_EVICTIONS_WORD] for row in rows}
    if len(evictions) > 1:
        raise OutOfStep(f"the ranks have dropped residual state {sorted(evictions)} times")
    sizes = [word for row in rows for word in (row[_STATE_BYTES_WORD], row[_CALL_US_WORD], *row[_FIRST_ERROR_WORD:])]
    wanted = max(row[_WANTS_KEY_WORD] for row in rows)
    if not {row[_WANTS_KEY_WORD] for row in rows} <= {0, 1, 2} or min(sizes) < 0:
        raise OutOfStep("a rank's words about residual state make no sense")
    errors_ppm = tuple(map(max, zip(*(row[_FIRST_ERROR_WORD:] for row in rows), strict=True)))
    return ResidualNews(
        wants_key=wanted > 0,
        is_broken=wanted > 1,
        evictions=evictions.pop(),
        state_bytes=max(row[_STATE_BYTES_WORD] for row in rows),
        call_us=max(row[_CALL_US_WORD] for row in rows),
        errors_ppm=errors_ppm if any(errors_ppm) else (),
    )


def _check_same_place(rows: Sequence[Sequence[int]], counts: bool) -> None:
    for rank, row in enumerate(rows):
        if len(row) != WORDS or row[0] != PROTOCOL:
            raise OutOfStep(f"rank {rank} speaks control protocol {row[0] if row else None}, not {PROTOCOL}")
        if tuple(row[1:3]) != tuple(rows[0][1:3]):
            raise OutOfStep(
                f"rank {rank} is at call {row[2]} of job {row[1]}, rank 0 at call {rows[0][2]} of job {rows[0][1]}"
            )
        sent_bytes = row[_SENT_BYTES_WORD]
        spare = (*row[_FIRST_SPARE_WORD:_FIRST_ERROR_WORD], 0 if counts else sent_bytes)
        if any(spare) or sent_bytes < 0:
            raise OutOfStep(f"rank {rank} uses spare words of the control vector")


Exchange = Callable[[Tensor], Callable[[], Tensor]]
"""Begins the all-gather of this rank's vector; what it returns waits for everybody's, int64 ``[world_size, WORDS]``."""


class CallGate:
    """The gate before every model call of one job: nobody passes before everybody stands there.

    ``exchange`` begins the collective; ``asks`` tells what this rank wants at this moment; ``wait_for_device`` returns when the previous
    call has left the device, so that a rank is never more than one call ahead of what it computes and a cancel never waits for two.
    """

    def __init__(
        self,
        *,
        exchange: Exchange,
        asks: Callable[[], Action],
        wait_for_device: Callable[[], None],
        sequence: int,
        call: int = 0,
        tells: Callable[[], ResidualNews] = ResidualNews,
    ) -> None:
        """``tells``: what this rank has to say of its residual state."""
        self._exchange = exchange
        self._asks = asks
        self._wait_for_device = wait_for_device
        self._sequence = sequence
        self._tells = tells
        self._started: Callable[[], Tensor] | None = None
        self.call = call
        """Calls entered so far within the trajectory."""
        self.residuals = ResidualNews()
        """What all ranks concluded before the call that runs."""

    def start(self) -> None:
        """Begin the exchange of the next :meth:`enter` now, so that it travels beside something else. All ranks or none.

        What this rank wants is asked now: a Cancel that comes later is seen before the call after.
        """
        row = Row(sequence=self._sequence, call=self.call, action=self._asks(), residuals=self._tells())
        self._started = self._exchange(torch.tensor(row.words()))

    def enter(self) -> None:
        """Pass the gate before a model call, with all other ranks.

        Raises:
            JobCancelled, Draining: on every rank alike; the call must not be made.
            OutOfStep: the group cannot go on.
        """
        self._wait_for_device()
        if self._started is None:
            self.start()
        decision = self._finish()
        if decision.action is Action.CANCEL:
            raise JobCancelled("Queue it again if it was a mistake: the job was cancelled.")
        if decision.action is Action.DRAIN:
            raise Draining("Queue it again when the daemon is back: it was stopped while the job ran.")
        self.call += 1
        self.residuals = decision.residuals

    def add_up(self, sent_bytes: int) -> int:
        """What all ranks together have sent, after the last call. Collective.

        Raises:
            OutOfStep: another rank is not there, or reports an error of its last call.
        """
        rows = self._exchange(
            torch.tensor(Row(sequence=self._sequence, call=self.call, sent_bytes=sent_bytes).words())
        )()
        decide(rows.tolist(), counts=True)
        return int(rows[:, _SENT_BYTES_WORD].sum())

    def agree_on(self, error: TuttiError) -> None:
        """Return if every rank's call ended with an error of this kind, which leaves the group whole.

        The device is waited for first: work that a peer never joined shows there, and not in the next job.

        Raises:
            OutOfStep: it happened on some ranks only, or elsewhere than on the others.
        """
        self._wait_for_device()
        if self._started is not None:  # the call was never entered; what the others sent for it is out of the way first
            self._finish()
        row = Row(sequence=self._sequence, call=self.call, error=error.code)
        self._started = self._exchange(torch.tensor(row.words()))
        self._finish()

    def _finish(self) -> Decision:
        """What all ranks do, from the exchange that was started."""
        started, self._started = self._started, None
        if started is None:
            raise InternalError("The exchange before a call was not started.")
        return decide(started().tolist())
