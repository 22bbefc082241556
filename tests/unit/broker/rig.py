"""The broker's state machine on a table: a clock that is turned by hand, clients and ranks that are a few calls, no I/O."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tutti.backend.broker.actions import Action, Digest, ForwardClient, ForwardPreview, Persist, SendClient, SendRanks
from tutti.backend.broker.events import (
    ClientSent,
    Digested,
    Drain,
    Event,
    GroupLost,
    GroupStarting,
    ModelFile,
    RankSent,
    Tick,
)
from tutti.backend.broker.settings import BrokerSettings
from tutti.backend.broker.state import Broker
from tutti.backend.errors import TuttiError
from tutti.backend.wire import codec
from tutti.backend.wire.digest import content_digest, job_digest
from tutti.backend.wire.messages import (
    Branch,
    Call,
    Cancel,
    Done,
    Evaluate,
    Evaluated,
    Failed,
    Hello,
    Message,
    ModelRef,
    Ping,
    Prepare,
    Prepared,
    RankHello,
    Release,
    Result,
    Sample,
    Upload,
)
from tutti.backend.wire.tensors import Tensors, WireTensor

MODEL = "diffusion_models/m.safetensors"
FILE = ModelFile(path="/models/m.safetensors", fingerprint="f1")
LATENT = (1, 4, 2, 2)


def f32(*shape: int, fill: float = 0.0) -> WireTensor:
    """A tensor of one number."""
    count = 1
    for size in shape:
        count *= size
    return WireTensor(dtype="F32", shape=shape, data=struct.pack(f"<{count}f", *([fill] * count)))


def job(number: int) -> str:
    """The id of job ``number``."""
    return f"{number:032x}"


def on(plan: str = "") -> ModelRef:
    """The model of every job here."""
    return ModelRef(model=MODEL, family="flux", dtype="F32", plan=plan)


def sample(job_id: str, *, keep: bool = True, previews: bool = True) -> Sample:
    """A Sample message."""
    return Sample(
        job_id=job_id, node_id="7", on=on(), sampler="euler", cfg=1.0, timestep_multiplier=1.0,
        branches=(Branch(kind="positive"),), previews=previews, keep_if_client_gone=keep,
    )  # fmt: skip


def sample_tensors(fill: float = 0.0) -> dict[str, WireTensor]:
    """A Sample's tensors."""
    return {"noise": f32(*LATENT, fill=fill), "sigmas": f32(3, fill=1.0)}


CONTEXT: Tensors = {"context": f32(1, 2, 4, fill=2.0)}
CONTEXT_DIGEST = content_digest(CONTEXT)
TOO_MANY: Tensors = {f"t{number}": f32(1) for number in range(63)}
"""A legal Upload; with an Evaluate's two tensors it does not fit into one Prepare."""


def evaluate(job_id: str, turn: int, *, digest: str = CONTEXT_DIGEST) -> Evaluate:
    """One turn of a trajectory."""
    return Evaluate(job_id=job_id, node_id="7", turn=turn, on=on(), calls=(Call(branch="p", conditioning=digest),))


def evaluate_tensors(fill: float = 0.0) -> dict[str, WireTensor]:
    """An Evaluate's tensors."""
    return {"call.0.x": f32(*LATENT, fill=fill), "call.0.timestep": f32(1)}


@dataclass
class Rig:
    """One broker, its clock, and everything it ever asked for."""

    settings: BrokerSettings = field(
        default_factory=lambda: BrokerSettings(instance="1" * 32, software="test", world_size=2)
    )
    now_s: float = 1000.0
    answer_digests: bool = True
    """Compute digests at once; else they pile up in ``digests``."""
    users: dict[bytes, str] = field(default_factory=dict)
    """Connections that have another key than ``local``."""
    log: list[Action] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker = Broker(self.settings, self.now_s)
        self._incarnations = itertools.count(1)
        self._fresh = 0
        self.token = self.incarnation = ""

    # --- events ---------------------------------------------------------------------------------------------------------------

    def give(self, event: Event) -> list[Action]:
        """Let the broker handle an event; returns its actions, and those that follow from digests."""
        actions = self.broker.handle(event, self.now_s)
        self.log += actions
        for action in list(actions):
            if isinstance(action, Digest):
                self.digests.append(action)
        if self.answer_digests:
            actions += self.give_digests()
        return actions

    def give_digests(self) -> list[Action]:
        """Answer what is asked for, in order."""
        actions: list[Action] = []
        while self.digests:
            asked = self.digests.pop(0)
            digest = content_digest(asked.tensors) if asked.tensors else job_digest("", "", asked.frames)
            actions += self.give(Digested(token=asked.token, digest=digest))
        return actions

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass, with a tick at its end."""
        self.now_s += seconds
        return self.give(Tick())

    def client(
        self, peer: bytes, message: Message, tensors: Tensors | None = None, *, user: str = "",
        model: ModelFile | TuttiError = FILE,
    ) -> list[Action]:  # fmt: skip
        """A client says something."""
        frames = codec.encode(message, tensors)
        user = user or self.users.get(peer, "local")
        event = ClientSent(peer=peer, user=user, received=codec.decode(frames), frames=frames[1:], model=model)
        return self.give(event)

    def hello(self, peer: bytes, client: int = 0, *, user: str = "local") -> list[Action]:
        """A client's hello; by default every connection is a client of its own. It keeps its key."""
        number = client or int.from_bytes(peer, "big") + 1
        self.users[peer] = user
        return self.client(peer, Hello(client_id=job(number), software="test"))

    def submit(self, peer: bytes, number: int, *, fill: float = 0.0, keep: bool = True) -> list[Action]:
        """A Sample."""
        return self.client(peer, sample(job(number), keep=keep), sample_tensors(fill))

    def upload(self, peer: bytes, number: int, tensors: Tensors = CONTEXT, digest: str = "") -> list[Action]:
        """Conditioning of a trajectory."""
        return self.client(peer, Upload(job_id=job(number), digest=digest or content_digest(tensors)), tensors)

    def evaluate(self, peer: bytes, number: int, turn: int, *, fill: float = 0.0) -> list[Action]:
        """One turn."""
        return self.client(peer, evaluate(job(number), turn), evaluate_tensors(fill))

    def cancel(self, peer: bytes, number: int) -> list[Action]:
        """A Cancel."""
        return self.client(peer, Cancel(job_id=job(number)))

    def release(self, peer: bytes, number: int) -> list[Action]:
        """A Release."""
        return self.client(peer, Release(job_id=job(number)))

    def ping(self, peer: bytes) -> list[Action]:
        """A sign of life."""
        return self.client(peer, Ping(nonce=1))

    def drain(self) -> list[Action]:
        """The daemon is told to stop."""
        return self.give(Drain())

    # --- ranks ----------------------------------------------------------------------------------------------------------------

    def group_starts(self) -> list[Action]:
        """A new incarnation is coming up."""
        number = next(self._incarnations)
        self.incarnation, self.token = job(number), f"{number:064x}"
        return self.give(GroupStarting(group_id=0, incarnation=self.incarnation, token=self.token))

    def rank_hello(self, rank: int, *, token: str = "", world_size: int = 0, incarnation: str = "") -> RankHello:
        """What a rank of this incarnation says first."""
        return RankHello(
            token=token or self.token, group_id=0, incarnation=incarnation or self.incarnation, rank=rank,
            world_size=world_size or self.settings.world_size, pid=100 + rank, device="cpu", transport="gloo",
        )  # fmt: skip

    def group_up(self) -> list[Action]:
        """A new incarnation whose ranks have all said hello."""
        actions = self.group_starts()
        for rank in self.ranks:
            actions += self.rank(rank, self.rank_hello(rank))
        return actions

    def group_lost(
        self, cause: str = "rank 1 was killed by signal 9 (SIGKILL)", *, failed: bool = False
    ) -> list[Action]:
        """Every rank is gone."""
        return self.give(GroupLost(incarnation=self.incarnation, cause=cause, failed=failed))

    def rank(self, rank: int, message: Message, tensors: Tensors | None = None) -> list[Action]:
        """A rank says something."""
        frames = codec.encode(message, tensors)
        return self.give(RankSent(peer=self.rank_peer(rank), received=codec.decode(frames), frames=frames))

    def rank_peer(self, rank: int) -> bytes:
        """A rank's identity: another one in every incarnation."""
        return f"rank-{rank}-{self.incarnation}".encode()

    @property
    def ranks(self) -> range:
        """Their numbers."""
        return range(self.settings.world_size)

    @property
    def sequence(self) -> int:
        """Of the last Prepare."""
        return self.broker.core.group.sequence

    def prepared(self, ranks: Iterable[int] | None = None, changed: str | None = None) -> list[Action]:
        """Ranks could run what was prepared."""
        return self._each(Prepared(sequence=self.sequence, changed=changed), ranks)

    def done(self, ranks: Iterable[int] | None = None) -> list[Action]:
        """Ranks have left the job."""
        return self._each(Done(sequence=self.sequence, memory_bytes=1, resident=(MODEL,)), ranks)

    def _each(self, message: Message, ranks: Iterable[int] | None) -> list[Action]:
        actions: list[Action] = []
        for rank in self.ranks if ranks is None else ranks:
            actions += self.rank(rank, message)
        return actions

    def result(self, number: int, fill: float = 9.0) -> list[Action]:
        """Rank 0 has the result of a Sample."""
        message = Result(job_id=job(number), step_ms=1.0, plan="ulysses=2")
        return self.rank(0, message, {"latent": f32(*LATENT, fill=fill), "x0": f32(*LATENT, fill=fill)})

    def evaluated(self, number: int, turn: int) -> list[Action]:
        """Rank 0 has the answer of a turn."""
        return self.rank(0, Evaluated(job_id=job(number), turn=turn), {"call.0.out": f32(*LATENT, fill=float(turn))})

    def failed(self, number: int, code: str, message: str = "no") -> list[Action]:
        """Rank 0 reports that the job ended with an error."""
        return self.rank(0, Failed(code=code, message=message, job_id=job(number)))

    def run(self, number: int) -> list[Action]:
        """The Sample whose turn it is goes through, from Prepared to Done."""
        return self.prepared() + self.result(number) + self.done()

    def run_turn(self, number: int, turn: int) -> list[Action]:
        """The Evaluate whose turn it is goes through."""
        return self.prepared() + self.evaluated(number, turn) + self.done()

    # --- what came out --------------------------------------------------------------------------------------------------------

    @property
    def turn_of(self) -> str | None:
        """Whose turn is in flight."""
        return self.broker.core.turn.job.job_id if self.broker.core.turn else None


def told(actions: Sequence[Action], peer: bytes) -> list[Message]:
    """What a client was told, in order; previews count."""
    messages: list[Message] = []
    for action in actions:
        if isinstance(action, SendClient) and action.peer == peer:
            messages.append(action.message)
        elif isinstance(action, ForwardClient | ForwardPreview) and action.peer == peer:
            messages.append(codec.decode(action.frames).message)
    return messages


def codes(actions: Sequence[Action], peer: bytes) -> list[str]:
    """Codes of the failures that a client was told about."""
    return [message.code for message in told(actions, peer) if isinstance(message, Failed)]


def sent_to_ranks(actions: Sequence[Action]) -> list[tuple[int, Message]]:
    """(how many ranks, message), in order."""
    return [(len(action.peers), action.message) for action in actions if isinstance(action, SendRanks)]


def prepares(actions: Sequence[Action]) -> list[tuple[Prepare, Tensors]]:
    """The Prepare messages of rank 0, with their tensors."""
    found = [action for action in actions if isinstance(action, SendRanks) and isinstance(action.message, Prepare)]
    decoded = [codec.decode(action.frames) for action in found]
    by_sequence: dict[int, tuple[Prepare, Tensors]] = {}
    for received in decoded:
        if isinstance(received.message, Prepare):
            by_sequence.setdefault(received.message.sequence, (received.message, received.tensors))
    return list(by_sequence.values())


def persisted(actions: Sequence[Action]) -> list[tuple[str, str]]:
    """(job id, state) that went into the ledger, in order."""
    return [(a.record.job_id, a.record.state.value) for a in actions if isinstance(a, Persist)]


def ready_rig(**settings: object) -> Rig:
    """A broker whose group is up, with two clients A and B that said hello."""
    rig = Rig(BrokerSettings(**({"instance": "1" * 32, "software": "test", "world_size": 2} | settings)))  # type: ignore[arg-type]
    rig.group_up()
    rig.hello(A)
    rig.hello(B)
    return rig


A, B, C = b"A", b"B", b"C"
