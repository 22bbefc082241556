"""What the daemon is doing, as text on a node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..backend.wire.plans import shown_plan
from . import compat, host
from .nodes_loader import CATEGORY

if TYPE_CHECKING:
    from ..backend.wire.messages import Status


class TuttiStatus(io.ComfyNode):  # type: ignore[misc]
    """Worker group, ranks, plan, compilation, attention kernels, compression, resident model and queue."""

    @classmethod
    def define_schema(cls) -> Any:
        """An output node: it can be queued alone."""
        return compat.schema(
            node_id="TuttiStatus",
            display_name="Tutti Status",
            category=CATEGORY,
            description="Shows the daemon's worker group: its state, ranks, plan, compilation, attention kernels, compression, the model in memory and the queue.",
            search_aliases=["tutti", "doctor", "ranks", "gpu status"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[],
            outputs=[io.String.Output(display_name="status", tooltip="The text that the node shows.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> int:
        """Always run: the answer is another one every time."""
        return time.time_ns()

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Ask. That no daemon answers is an answer too, not an error."""
        from ..backend.errors import TuttiError
        from .session import SESSION

        try:
            with SESSION.guarded():
                text = describe(SESSION.client(start=False).status(host.raise_if_interrupted))
        except TuttiError as error:
            text = error.message
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def describe(status: Status) -> str:
    """A status as lines of text."""
    lines = [
        f"Tutti {status.version}: {status.state}{f' ({status.reason})' if status.reason else ''}, up {_duration(status.uptime_s)}"
    ]
    lines.append(
        f"plan {shown_plan(status.plan)}, transport {status.transport}, device {status.device}, restarts {status.restarts}"
    )
    lines += [
        f"rank {rank.rank}: {rank.device}, {rank.memory_bytes / 2**20:.0f} MiB, pid {rank.pid}" for rank in status.ranks
    ]
    lines.append(f"compile: {status.compile or '-'}")
    lines.append(f"attention: {status.attention or '-'}")
    lines.append(f"compression: {status.compression or '-'}")
    lines.append(f"in memory: {', '.join(status.resident) or 'no model yet'}")
    for job in status.jobs:
        lines.append(f"{job.state}: {job.model}, step {job.step} of {job.steps}, node {job.node_id}")
    lines.append(f"jobs: {status.queued} waiting, {status.finished} finished, {status.failed} failed")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
