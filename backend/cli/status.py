"""``tutti status``: what the daemon is doing."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from ..errors import DaemonUnreachable
from ..wire.connection import Connection
from ..wire.messages import Status
from ..wire.plans import shown_plan
from ..wire.status_rows import JobStatus
from . import state_directory
from .client import connected, locate

STOPPED = 1
"""Exit status when no daemon answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--json", action="store_true", help="for programs: one JSON object with `state`: stopped, starting, ready, ..."
    )
    state_directory.add_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Print it. Returns 1 if no daemon answers."""
    try:
        connection = locate(state_directory.chosen(options))
        with connected(connection) as client:
            status = client.status()
    except DaemonUnreachable as error:
        print(json.dumps({"state": "stopped", "reason": error.message}) if options.json else f"stopped. {error}")
        return STOPPED
    print(as_json(status, connection) if options.json else as_text(status, connection))
    return 0


def as_json(status: Status, connection: Connection) -> str:
    """Every field of the Status message, and where it came from."""
    fields = dataclasses.asdict(status)
    del fields["request"]
    return json.dumps({**fields, "endpoint": connection.endpoint, "pid": connection.pid})


def as_text(status: Status, connection: Connection) -> str:
    """A page for people."""
    place = f"process {connection.pid}" if connection.pid else "another machine"
    lines = [
        f"{status.state}{': ' + status.reason if status.reason else ''}",
        f"  daemon     {status.version} at {connection.endpoint} ({place}), up {duration(status.uptime_s)}",
        f"  group      {len(status.ranks)} rank(s) on {status.device}, plan {shown_plan(status.plan)}"
        + (f", {status.transport}" if status.transport else "")
        + (f", restarted {status.restarts} times" if status.restarts else ""),
        f"  compile    {status.compile or '-'}",
        f"  attention  {status.attention or '-'}",
        f"  compress   {status.compression or '-'}",
        f"  resident   {', '.join(status.resident) or 'no model yet'}",
        f"  jobs       {status.queued} queued, {status.finished} finished, {status.failed} failed",
    ]
    if status.ranks:
        rows = [(str(rank.rank), str(rank.pid), rank.device, size(rank.memory_bytes)) for rank in status.ranks]
        lines += ["", *table(("rank", "process", "device", "memory"), rows)]
    if status.jobs:
        lines += ["", *table(("job", "state", "step", "node", "model"), [_job_row(job) for job in status.jobs])]
    return "\n".join(map(printable, lines))


def printable(text: str) -> str:
    """What others chose (node ids, model names), without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _job_row(job: JobStatus) -> tuple[str, ...]:
    step = f"{job.step}/{job.steps}" if job.steps else ""
    return (job.job_id[:8], job.state, step, job.node_id, job.model)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns under their heads, two spaces apart."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    ]


def size(size_bytes: int) -> str:
    """Bytes for people; a dash for nothing known."""
    if not size_bytes:
        return "-"
    return f"{size_bytes / 1024**3:.1f} GiB" if size_bytes >= 1024**3 else f"{size_bytes / 1024**2:.0f} MiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} days"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
