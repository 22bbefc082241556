"""What ``tutti status`` is answered."""

from __future__ import annotations

from ..wire.job_states import JobState
from ..wire.limits import NAME_LENGTH, TEXT_LENGTH
from ..wire.messages import Status
from ..wire.status_rows import JobStatus, RankStatus
from ..wire.texts import joined, parts_of, shortened
from .core import Core
from .jobs import Job

JOBS_SHOWN = 64
RESIDENT_SHOWN = 8
NAME_SHOWN = 100
"""Characters of a model or node name; 64 jobs must fit into one header."""


def status(core: Core, request: int, uptime_s: float) -> Status:
    """The daemon's state at this moment."""
    ranks = core.group.ranks
    return Status(
        request=request,
        state=core.group_state(),
        reason=core.group.reason[:TEXT_LENGTH],
        version=core.settings.software,
        uptime_s=uptime_s,
        plan=core.settings.plan,
        transport=ranks[0].transport if ranks else "",
        device=core.settings.device,
        ranks=tuple(
            RankStatus(rank=rank.rank, pid=rank.pid, device=rank.device, memory_bytes=rank.memory_bytes)
            for rank in ranks
        ),
        resident=ranks[0].resident[:RESIDENT_SHOWN] if ranks else (),
        jobs=tuple(_job(job) for job in _shown(core)),
        queued=len(core.queue),
        finished=core.finished,
        failed=core.failed,
        restarts=core.group.restarts,
        compile=shortened(_compile(core), NAME_LENGTH),
        attention=_attention(core),
        compression=shortened(_compression(core), NAME_LENGTH),
    )


def _compile(core: Core) -> str:
    """What the first rank says, or the first that runs something eager against its will."""
    said = {rank.rank: rank.compile for rank in core.group.ranks if rank.compile}
    if not said:
        return core.settings.compile
    # Seconds differ from rank to rank, reasons hardly do.
    failed = {rank: text for rank, text in said.items() if "eager" in text}
    rank, text = next(iter((failed or said).items()))
    return f"{text} (rank {rank})" if failed and len(failed) < len(said) else text


def _attention(core: Core) -> str:
    """Once what all ranks say that had attentions; with their numbers what only some say."""
    said = {rank.rank: parts_of(rank.attention) for rank in core.group.ranks if rank.attention}
    saying: dict[str, list[int]] = {}
    for rank, parts in said.items():
        for part in parts:
            saying.setdefault(part, []).append(rank)
    return joined(
        (part if len(ranks) == len(said) else f"{part} ({_named(ranks)})" for part, ranks in saying.items()),
        NAME_LENGTH,
    )


def _compression(core: Core) -> str:
    """What the first rank says, or the first that has more to say than its figures: those differ from rank to rank by a little."""
    said = {rank.rank: rank.compression for rank in core.group.ranks if rank.compression}
    troubled = {rank: text for rank, text in said.items() if len(parts_of(text)) > 1}
    rank, text = next(iter((troubled or said).items()), (0, ""))
    return f"{text} (rank {rank})" if troubled and len(troubled) < len(said) else text


def _named(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _shown(core: Core) -> list[Job]:
    """The job in flight, then the queue in order, then open trajectories between two turns."""
    jobs = {job.job_id: job for job in core.jobs.open()}
    in_flight = [job_id for job_id, job in jobs.items() if job.state in (JobState.PREPARING, JobState.RUNNING)]
    waiting = [job_id for job_id, job in jobs.items() if job.state is JobState.WAITING]
    return [jobs[job_id] for job_id in (*in_flight, *core.queue.order(), *waiting)][:JOBS_SHOWN]


def _job(job: Job) -> JobStatus:
    return JobStatus(
        job_id=job.job_id,
        node_id=job.request.node_id[:NAME_SHOWN],
        model=job.on.model[:NAME_SHOWN],
        state=job.state.value,
        step=job.step,
        steps=job.steps,
    )
