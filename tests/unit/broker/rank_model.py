"""The ranks as they see the broker, without the broker's code: what a real rank would not understand is an error here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tutti.backend.broker.actions import SendRanks
from tutti.backend.wire import codec
from tutti.backend.wire.messages import Abort, Cancel, Go, Prepare, Repeat


class Ranks:
    """Two ranks as they see the broker: Prepare, then Go or Abort, then nothing new before all are done."""

    def __init__(self, open_trajectories: Callable[[], set[str]]) -> None:
        self.open_trajectories = open_trajectories
        self.prepare: Prepare | None = None
        self.running = False
        self.prepared: set[int] = set()
        self.done: set[int] = set()
        self.answered = self.answered_well = False
        self.sequence = 0
        self.cancelled = False
        self.ran: Prepare | None = None
        """The Evaluate that every rank ended well, if nothing came since."""
        self.known: set[str] = set()
        """Uploads that rank 0 has."""
        self.answers = {0: 0, 1: 0}
        """Number of the last Prepare that each of them has answered. To one that was aborted they say nothing here."""

    def hear(self, action: SendRanks) -> None:
        """Raises AssertionError at anything that breaks the protocol."""
        match action.message:
            case Prepare() as message if self.prepare is not message:
                if self.prepare is not None and message.sequence == self.prepare.sequence:
                    return  # the other ranks' copy
                self._begin(message, running=False)
                self._check_uploads(message, action)
            case Repeat() as message if message.sequence != self.sequence:
                self._begin(self._next_turn(message, action), running=True)
            case Go() as message:
                assert self.prepare is not None
                assert message.sequence == self.sequence
                assert self.prepared == {0, 1}, "Go before every rank was prepared"
                assert not self.running
                self.running = True
            case Abort() as message:
                assert message.sequence == self.sequence
                assert self.prepare is not None
                assert not self.running, "Abort after Go"
                self.prepare = None
            case Cancel() as message:
                assert len(action.peers) == 1, "only rank 0 hears Cancel"
                assert self.running
                assert self.prepare is not None
                assert message.job_id == self.job_id
                assert not self.cancelled, "Cancel was said twice"
                self.cancelled = True

    def may_be_given_up(self) -> bool:
        """Whether one of them has something to answer, or to leave: else it may be silent as long as it likes."""
        if self.running:
            return self.cancelled or self.answered
        return min(self.answers.values()) < self.sequence

    def _begin(self, prepare: Prepare, *, running: bool) -> None:
        assert self.prepare is None, "a turn was given while another one was in flight"
        assert prepare.sequence == self.sequence + 1
        self.prepare, self.sequence, self.running, self.ran = prepare, prepare.sequence, running, None
        if running:
            self.answers = dict.fromkeys(self.answers, self.sequence)
        self.prepared, self.done, self.answered, self.cancelled = set(), set(), False, False
        self.answered_well = False

    def _next_turn(self, message: Repeat, action: SendRanks) -> Prepare:
        """The Prepare that it stands for, as a rank works it out."""
        assert self.ran is not None, "a Repeat of nothing"
        assert self.ran.evaluate is not None
        assert message.turn == self.ran.evaluate.turn + 1
        received = codec.decode(action.frames)
        assert {tensor.spec(name) for name, tensor in received.tensors.items()} == set(self.ran.specs)
        assert f"{self.ran.evaluate.job_id}.{self.ran.evaluate.calls[0].conditioning}" in self.known
        self.pending = set()
        return replace(self.ran, sequence=message.sequence, evaluate=replace(self.ran.evaluate, turn=message.turn))

    def _check_uploads(self, message: Prepare, action: SendRanks) -> None:
        for job_id in message.forget:
            self.known = {name for name in self.known if not name.startswith(job_id)}
        open_now = {name.partition(".")[0] for name in self.known}
        assert open_now <= self.open_trajectories(), "the ranks keep what nobody needs"
        self.pending = set()
        if message.evaluate is None:
            return
        sent = {name.split(".")[1] for name in codec.decode(action.frames).tensors if name.startswith("upload.")}
        for call in message.evaluate.calls:
            name = f"{message.evaluate.job_id}.{call.conditioning}"
            assert call.conditioning in sent or name in self.known, "a turn names conditioning that the ranks lack"
        self.pending = {f"{message.evaluate.job_id}.{digest}" for digest in sent}

    @property
    def job_id(self) -> str:
        assert self.prepare is not None
        message = self.prepare.sample or self.prepare.evaluate
        assert message is not None
        return message.job_id

    pending: set[str]

    def leave(self) -> None:
        """Every rank is done."""
        if self.prepare is not None and self.prepare.evaluate is not None:
            self.known |= self.pending
            self.ran = self.prepare if self.answered_well else None
        self.prepare, self.running = None, False
