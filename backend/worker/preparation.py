"""The first phase of dispatch: check a job and make its model ready. Every rank does it alone and comes to the same answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BadRequest, RemoteProtocolError, WrongFamily
from ..models.lora.variants import NONE, Lora
from ..models.registry import ResidentModel
from ..parallel.codecs import codec_of
from ..parallel.plan import AUTO, COMPRESSIONS, Plan, choose_plan, compressed, split_compression
from ..wire.messages import Evaluate, ModelRef, Prepare, Repeat, Sample
from ..wire.tensors import TensorSpec, WireTensor
from .evaluate import Trajectories
from .inputs import evaluate_calls, sample_calls
from .residency import ModelKey, ResidentModels
from .tensors import DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A job that waits for Go."""

    sequence: int
    job: Sample | Evaluate
    specs: tuple[TensorSpec, ...]
    frames: Mapping[str, WireTensor]
    """The tensors' bytes: on rank 0 only."""
    model: ResidentModel
    plan: Plan
    variant: str = NONE
    """Key of its LoRA set."""
    left_out: str = ""
    """Why what was asked for is not done, for the node; empty where all of it is."""

    def next_turn(self, message: Repeat, frames: Mapping[str, WireTensor]) -> PreparedJob:
        """The same Evaluate with other bytes (``frames``, on rank 0 only).

        Raises:
            RemoteProtocolError: it is not the same.
        """
        if not isinstance(self.job, Evaluate) or message.turn != self.job.turn + 1:
            raise RemoteProtocolError(f"Repeat(turn {message.turn}) of something else")
        if frames and {tensor.spec(name) for name, tensor in frames.items()} != set(self.specs):
            raise RemoteProtocolError("a Repeat came with other tensors than the turn before it")
        return replace(self, sequence=message.sequence, job=replace(self.job, turn=message.turn), frames=frames)


def job_of(prepare: Prepare) -> Sample | Evaluate:
    """What is to be done: exactly one of the two, as the wire's rules ensure.

    Raises:
        RemoteProtocolError: neither.
    """
    job = prepare.sample or prepare.evaluate
    if job is None:
        raise RemoteProtocolError("a Prepare without a job")
    return job


def make_ready(
    prepare: Prepare,
    frames: Mapping[str, WireTensor],
    *,
    world_size: int,
    models: ResidentModels,
    trajectories: Trajectories,
    shared_folder: Path,
    progress: Callable[[float], None],
) -> PreparedJob:
    """Check a job against its model, which is loaded first if it is not resident. No collective.

    Raises:
        TuttiError: why the job is refused; every rank refuses it alike, except for memory that only one of them lacks.
    """
    job = job_of(prepare)
    specs = {spec.name: spec for spec in prepare.specs}
    calls = (
        sample_calls(job, specs)
        if isinstance(job, Sample)
        else evaluate_calls(job, specs, trajectories.uploads_with(job.job_id, specs))
    )
    key = ModelKey(path=prepare.path, fingerprint=prepare.fingerprint, dtype=DTYPES[job.on.dtype])
    model = models.get(key, job.on.model, progress)
    if model.family != job.on.family:
        raise WrongFamily(
            f"Load {job.on.model} anew: it is a checkpoint of {model.family} here, not of {job.on.family}. "
            "The file may differ between this machine and the daemon's."
        )
    requested, compression = requested_plan(job.on, prepare.plan)
    plan = compressed(choose_plan(requested, world_size, model.num_heads, branches=len(calls)), compression)
    codec_of(plan, model.device)  # refuses what this device lacks now, before anybody enters a collective
    for call in calls:
        model.adapter.check(call)
    return PreparedJob(
        sequence=prepare.sequence,
        job=job,
        specs=prepare.specs,
        frames=frames,
        model=model,
        plan=plan,
        variant=_variant(prepare, models, model, key, shared_folder, progress),
        left_out=what_is_left_out(plan, compression),
    )


def _variant(
    prepare: Prepare,
    models: ResidentModels,
    model: ResidentModel,
    key: ModelKey,
    folder: Path,
    progress: Callable[[float], None],
) -> str:
    """The job's LoRAs, computed before anybody enters a collective: a file that does not fit is a refusal."""
    if not prepare.loras:
        return NONE
    if model.variants is None:
        raise BadRequest("Take the LoRAs off this model: it has no weights that they could change.")
    loras = [Lora(path=lora.path, fingerprint=lora.fingerprint, strength=lora.strength) for lora in prepare.loras]
    identity = f"{key.path}|{key.fingerprint}|{key.dtype}"
    variant = model.variants.prepare(loras, identity=identity, folder=folder, progress=progress)
    # What is in the network now goes out first.
    more_bytes = model.variants.size_bytes(variant) - model.variants.size_bytes(model.variants.current)
    models.memory.check_loras_fit(more_bytes)
    return variant


def requested_plan(on: ModelRef, default: str) -> tuple[Plan | None, str]:
    """The job's own plan, else the daemon's; None leaves it to the model (``auto``). And likewise the compression, which either may
    name without a plan: empty where neither does."""
    own, compression = split_compression(on.plan)
    of_daemon, usual = split_compression(default)
    text = own or of_daemon
    plan = None if text in ("", AUTO) else Plan.parse(text)
    if not compression and own and plan is not None and not plan.can_compress:
        return plan, ""  # the job's own plan says otherwise
    return plan, compression or usual


def what_is_left_out(plan: Plan, compression: str) -> str:
    """Why a plan that was to be compressed is not, in words for the node."""
    if plan.exchanges or compression in ("", COMPRESSIONS[0]):
        return ""
    return f"{'one rank' if plan.world_size == 1 else 'one rank for each branch'}: nothing to compress"
