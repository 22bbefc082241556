"""The step-by-step way: model calls of a loop that runs in ComfyUI become Evaluate messages of one trajectory.

Conditioning crosses once per trajectory; ComfyUI's stacked branches are taken apart, so that each keeps its name from call to call.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from ..backend.errors import TuttiError
from ..backend.wire.codec import Received
from ..backend.wire.digest import content_digest, job_digest
from ..backend.wire.limits import BRANCHES
from ..backend.wire.messages import Accepted, Call, Evaluate, ModelRef, Progress
from ..backend.wire.tensors import WireTensor
from . import conditioning, host, refusals, report
from .tensors import from_wire, to_wire

if TYPE_CHECKING:
    from ..backend.client import Client
    from .branches import Recorder
    from .remote_model import Remote

_NOT_CONDITIONING: Final = ("control", "transformer_options")
_NETWORK_NAMES: Final = {"context": "c_crossattn"}
"""Arguments of the network that are called otherwise in ``model_conds``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCall:
    """One branch of one model call."""

    branch: str
    x: torch.Tensor
    """[batch, channels, height, width] in the compute dtype."""
    timestep: torch.Tensor
    """[batch] in float32."""
    conditioning: conditioning.Conditioning


class EvaluateTrajectory:
    """One open trajectory. Use :func:`trajectories`, which also ends it."""

    def __init__(self, client: Client, on: ModelRef, line: str) -> None:
        self._client = client
        self._on = on
        self._line = line
        """What the node shows while the loop runs."""
        self._plan = ""
        """How the calls run in the daemon, where it says so."""
        self._shown = ""
        self._node_id = host.node_id()
        # A loop that runs here cannot be taken up again after a restart, so its id must never meet that of an earlier run.
        self._job_id = job_digest(client.client_id, self._node_id, [secrets.token_bytes(16)])
        self._turn = 0
        self._uploaded: set[str] = set()
        self._last: dict[str, tuple[conditioning.Conditioning, str]] = {}
        self._open = False

    def run(self, calls: list[ModelCall]) -> list[torch.Tensor]:
        """The network's answers to `calls`, on the device of their x. Interrupting the wait ends the trajectory."""
        outputs: list[torch.Tensor] = []
        for start in range(0, len(calls), BRANCHES):
            outputs += self._run_turn(calls[start : start + BRANCHES])
        return outputs

    def _run_turn(self, calls: list[ModelCall]) -> list[torch.Tensor]:
        rows, tensors = [], {}
        for index, call in enumerate(calls):
            digest = self._upload(call)
            rows.append(Call(branch=call.branch, conditioning=digest, options=call.conditioning.options))
            tensors[f"call.{index}.x"] = to_wire(call.x)
            tensors[f"call.{index}.timestep"] = to_wire(call.timestep)
        message = Evaluate(job_id=self._job_id, node_id=self._node_id, turn=self._turn, on=self._on, calls=tuple(rows))
        self._open = False  # whatever interrupts the wait also ends the trajectory
        received = self._client.evaluate(message, tensors, self._listen, host.raise_if_interrupted)
        self._open = True
        self._show(report.with_plan(self._line, self._plan))
        self._turn += 1
        return [from_wire(received.tensors[f"call.{index}.out"], call.x.device) for index, call in enumerate(calls)]

    def _upload(self, call: ModelCall) -> str:
        """Send the conditioning of a call unless it was sent; compared by value, because other nodes may change it between steps."""
        known = self._last.get(call.branch)
        if known is not None and known[0].same_as(call.conditioning):
            return known[1]
        tensors: dict[str, WireTensor] = call.conditioning.to_wire()
        digest = content_digest(tensors)
        if digest not in self._uploaded:
            self._client.upload(self._job_id, digest, tensors)
            self._uploaded.add(digest)
        self._last[call.branch] = (call.conditioning.copy(), digest)
        return digest

    def _listen(self, received: Received) -> None:
        message = received.message
        if isinstance(message, Accepted) and message.ahead:
            self._show(report.queued(message.ahead))
        elif isinstance(message, Progress) and message.phase in ("loading", "compiling"):
            self._show(report.preparing(message))
        elif isinstance(message, Progress) and message.phase == "sampling":
            self._plan = message.text

    def _show(self, text: str) -> None:
        if text and text != self._shown:
            self._shown = text
            host.say(text)

    def end(self) -> None:
        """Free the trajectory's state in the daemon. One that was cancelled, failed or never began is fine."""
        if self._open:
            self._open = False
            self._client.release(self._job_id)


class Trajectories:
    """What one loop has open: a trajectory for every model that it asks, because a guider may ask several."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._opened: dict[ModelRef, EvaluateTrajectory] = {}

    def of(self, remote: Remote) -> EvaluateTrajectory:
        """The trajectory on the model of `remote`, begun if this loop did not ask it before."""
        if remote.on not in self._opened:
            self._opened[remote.on] = EvaluateTrajectory(remote.session.ready_client(), remote.on, self._line)
        return self._opened[remote.on]

    def end(self) -> None:
        """End all of them, also when ending one fails; then the first failure is raised."""
        with ExitStack() as ends:
            for opened in reversed(self._opened.values()):
                ends.callback(opened.end)


@contextmanager
def trajectories(remote: Remote, line: str = "") -> Iterator[Trajectories]:
    """The trajectories of a loop on `remote`, ended whatever happens. `line` is shown on the node while they are open."""
    with remote.session.guarded():
        running = Trajectories(line)
        try:
            running.of(remote)
            yield running
        except BaseException:
            try:
                running.end()
            except TuttiError as error:  # the first error is the one to show
                host.log.warning("tutti: a trajectory was left to its lease: %s", error)
            raise
        running.end()


def evaluate_network(
    remote: Remote, x: torch.Tensor, timestep: torch.Tensor, values: Mapping[str, Any]
) -> torch.Tensor:
    """One call of the network as ComfyUI makes it: perhaps several branches stacked along the batch.

    Raises:
        UnsupportedInput: an argument that changes the picture and that the daemon cannot honour.
    """
    options = values.get("transformer_options") or {}
    if values.get("control") is not None:
        refusals.check_conditioning([values])
    refusals.check_transformer_options(options)
    given = {_NETWORK_NAMES.get(name, name): value for name, value in values.items() if name not in _NOT_CONDITIONING}
    calls = _take_apart(x, timestep, conditioning.from_values(remote.family, given, remote.dtype), options)
    recorder: Recorder | None = options.get(refusals.RECORDER_KEY)
    if recorder is not None:
        return recorder.take(remote, x, calls)
    # The options are those of the loop, which may be another model's: a guider hands the first model's on to its second.
    running: Trajectories | None = options.get(refusals.TRAJECTORY_KEY)
    if running is not None:
        return torch.cat(running.of(remote).run(calls))
    with trajectories(remote) as once:  # a node that calls the model outside of any sampler
        return torch.cat(once.of(remote).run(calls))


def _take_apart(
    x: torch.Tensor, timestep: torch.Tensor, given: conditioning.Conditioning, options: Mapping[str, Any]
) -> list[ModelCall]:
    """The branches of a stacked call; one call under a joint name when the batch does not tell them apart."""
    names = [str(name) for name in options.get("uuids") or ("call",)]
    parts = len(names)
    sizes = {x.shape[0], timestep.shape[0], *(tensor.shape[0] for tensor in given.tensors.values())}
    if parts > 1 and any(size % parts for size in sizes):
        parts, names = 1, ["+".join(names)[:128]]
    rows = zip(names, x.chunk(parts), timestep.chunk(parts), conditioning.split(given, parts), strict=True)
    return [ModelCall(branch=name, x=part, timestep=at.float(), conditioning=told) for name, part, at, told in rows]
