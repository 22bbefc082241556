"""A rank without a model and without torch: the real rank protocol on the real socket, and nothing behind it.

``tutti serve --rank-module tutti.benchmarks.null_rank`` measures the broker alone, and lets tests of the broker start ranks in a moment.
It computes nothing: a Sample's result is its own noise, an Evaluate's answer its own x. ``TUTTI_NULL_STEP_S`` makes a step last.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import zmq

from ..backend.supervisor.liveness import watch
from ..backend.wire import codec
from ..backend.wire.codec import Received
from ..backend.wire.messages import (
    Cancel,
    Done,
    Evaluate,
    Evaluated,
    Failed,
    Go,
    Message,
    Prepare,
    Prepared,
    Preview,
    Progress,
    RankHello,
    Repeat,
    Result,
    Sample,
)  # fmt: skip
from ..backend.wire.tensors import Tensors, WireTensor

STEP_VARIABLE = "TUTTI_NULL_STEP_S"


class NullRank:
    """One rank."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])
        self.step_s = float(os.environ.get(STEP_VARIABLE, "0"))
        self.prepared: Received | None = None
        self.ran: Prepare | None = None
        context = zmq.Context()
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(os.environ["TUTTI_RANK_ENDPOINT"])
        self.send(
            RankHello(
                token=os.environ["TUTTI_TOKEN"],
                group_id=int(os.environ["TUTTI_GROUP_ID"]),
                incarnation=os.environ["TUTTI_INCARNATION"],
                rank=self.rank,
                world_size=int(os.environ["WORLD_SIZE"]),
                pid=os.getpid(),
                device="cpu",
                transport="null",
            )
        )

    def send(self, message: Message, tensors: Tensors | None = None) -> None:
        """To the broker."""
        self.socket.send_multipart(codec.encode(message, tensors), copy=False)

    def serve(self) -> None:
        """Answer for ever; the daemon's end is ours."""
        while True:
            received = codec.decode([frame.buffer for frame in self.socket.recv_multipart(copy=False)])
            message = received.message
            if isinstance(message, Prepare):
                self.prepared = received
                self.send(Prepared(sequence=message.sequence))
            elif isinstance(message, Go) and self.prepared is not None:
                self.go(self.prepared)
                self.prepared = None
            elif isinstance(message, Repeat) and self.ran is not None:
                self.go(Received(message=self.next_turn(self.ran, message), tensors=received.tensors))

    @staticmethod
    def next_turn(ran: Prepare, repeat: Repeat) -> Prepare:
        """The Prepare that the Repeat stands for."""
        evaluate = None if ran.evaluate is None else replace(ran.evaluate, turn=repeat.turn)
        return replace(ran, sequence=repeat.sequence, evaluate=evaluate)

    def go(self, received: Received) -> None:
        """Leave the job at once, after having answered it on rank 0."""
        prepare = received.message
        if not isinstance(prepare, Prepare):
            return
        self.ran = prepare
        if self.rank == 0 and prepare.sample is not None:
            self.sample(prepare.sample, received.tensors)
        elif self.rank == 0 and prepare.evaluate is not None:
            self.evaluate(prepare.evaluate, received.tensors)
        model = prepare.sample.on.model if prepare.sample else prepare.evaluate.on.model if prepare.evaluate else ""
        self.send(Done(sequence=prepare.sequence, memory_bytes=0, resident=(model,)))

    def sample(self, sample: Sample, tensors: Tensors) -> None:
        """Step through it."""
        steps = tensors["sigmas"].shape[0] - 1
        noise = tensors["noise"]
        preview = WireTensor(dtype="BF16", shape=noise.shape, data=bytes(memoryview(noise.data).nbytes // 2))
        for step in range(steps):
            if self.cancelled():
                self.send(Failed(code="cancelled", message="Run it again: it was cancelled.", job_id=sample.job_id))
                return
            self.send(Progress(job_id=sample.job_id, phase="sampling", step=step, steps=steps))
            if sample.previews:
                self.send(Preview(job_id=sample.job_id, step=step), {"x0": preview})
            time.sleep(self.step_s)
        self.send(Progress(job_id=sample.job_id, phase="sampling", step=steps, steps=steps))
        result = Result(job_id=sample.job_id, step_ms=self.step_s * 1000, plan="null")
        self.send(result, {"latent": noise, "x0": noise})

    def evaluate(self, evaluate: Evaluate, tensors: Tensors) -> None:
        """Give every call its own x back."""
        time.sleep(self.step_s)
        outputs = {f"call.{index}.out": tensors[f"call.{index}.x"] for index in range(len(evaluate.calls))}
        self.send(Evaluated(job_id=evaluate.job_id, turn=evaluate.turn), outputs)

    def cancelled(self) -> bool:
        """Whether a Cancel came since the last step."""
        if not self.socket.poll(0):
            return False
        return isinstance(codec.decode(self.socket.recv_multipart()).message, Cancel)


def main() -> None:
    """``python -m tutti.benchmarks.null_rank``, started by the launcher."""
    watch()
    NullRank().serve()


if __name__ == "__main__":
    main()
