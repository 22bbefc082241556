"""Every message of the protocol, as frozen dataclasses. docs/wire-protocol.md tells who sends which and when.

Tensors are not fields: they travel as frames beside the header, under the names that each docstring lists. Directions:
C client, B broker, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .dtypes import ComputeDtype
from .limits import (
    ARRAY_LENGTH,
    BRANCHES,
    KIND_LENGTH,
    LISTED,
    LORAS,
    MANIFEST_NUMBERS,
    NAME_LENGTH,
    STORED_BYTES,
    TENSOR_FRAMES,
    TEXT_LENGTH,
)  # fmt: skip
from .schema import Scalar, bounded
from .status_rows import JobStatus, RankStatus
from .tensors import TensorSpec

_ID = bounded(length=32, pattern=r"[0-9a-f]{32}")
_NAME = bounded(length=NAME_LENGTH)
_TEXT = bounded(length=TEXT_LENGTH)
_COUNT = bounded(low=0)
_POSITIVE = bounded(low=1)

GroupState = Literal["starting", "ready", "busy", "restarting", "failed", "draining"]
Phase = Literal["queued", "loading", "compiling", "sampling"]


# --- Client and broker: the connection --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """C -> B. The first message of a client process on a connection; sent again after the broker restarted."""

    client_id: str = field(metadata=_ID)
    """128 bits kept on the client's disk: the same ComfyUI is the same client tomorrow."""
    software: str = field(metadata=_TEXT)
    """Name and version, for the log: ``tutti 0.1.0, ComfyUI 0.30.0``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """B -> C. Answers Hello."""

    instance: str = field(metadata=_ID)
    """Changes whenever the daemon is started."""
    software: str = field(metadata=_TEXT)
    state: GroupState
    reason: str = field(metadata=_TEXT)
    """Why the group is not ready, or empty."""
    lease_s: float = field(metadata=bounded(low=0.1, high=3600))
    """A client that is silent for so long has vanished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """C -> B. Sign of life while the client waits or owns open jobs; renews its lease."""

    nonce: int = field(metadata=_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """B -> C. Answers Ping."""

    nonce: int = field(metadata=_COUNT)
    state: GroupState


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe:
    """C -> B. Asks for the list of model names (``model`` empty) or for one checkpoint's tensors."""

    request: int = field(metadata=_COUNT)
    """Chosen by the client, comes back in the answer."""
    model: str = field(default="", metadata=_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One line of a manifest frame: a checkpoint's tensor (dtype, shape), or a model file (``FILE``, size in bytes)."""

    name: str = field(metadata=_NAME)
    kind: str = field(metadata=bounded(length=KIND_LENGTH))
    numbers: tuple[int, ...] = field(metadata=bounded(low=0, items=MANIFEST_NUMBERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """B -> C. Answers Describe; a manifest frame follows the header."""

    request: int = field(metadata=_COUNT)
    model: str = field(metadata=_NAME)
    fingerprint: str = field(default="", metadata=bounded(length=64))
    """Changes when the file changes (size, time, header). Empty for the list."""
    metadata: dict[str, Scalar] = field(default_factory=dict)
    """The checkpoint's own metadata, as far as it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """C -> B."""

    request: int = field(metadata=_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """B -> C. Answers StatusRequest."""

    request: int = field(metadata=_COUNT)
    state: GroupState
    reason: str = field(metadata=_TEXT)
    version: str = field(metadata=_NAME)
    uptime_s: float = field(metadata=bounded(low=0))
    plan: str = field(metadata=_NAME)
    """The plan in use, or ``auto``."""
    transport: str = field(metadata=_NAME)
    device: str = field(metadata=_NAME)
    ranks: tuple[RankStatus, ...]
    resident: tuple[str, ...] = field(metadata=bounded(items=LISTED, length=NAME_LENGTH))
    """Names of the models in memory."""
    jobs: tuple[JobStatus, ...] = field(metadata=bounded(items=LISTED))
    """Running job first, then the queue in order."""
    queued: int = field(metadata=_COUNT)
    finished: int = field(metadata=_COUNT)
    failed: int = field(metadata=_COUNT)
    restarts: int = field(metadata=_COUNT)
    compile: str = field(default="", metadata=_NAME)
    """What runs compiled, or why nothing does; before the first job how the daemon was told to compile."""
    attention: str = field(default="", metadata=_NAME)
    """Which kernels attentions run on, and what was switched off and why; empty before the first attention."""
    compression: str = field(default="", metadata=_NAME)
    """How the last job's exchange was compressed and what that brought; empty where it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """C -> B. A piece of a file that the client has only in memory, a LoRA that ComfyUI has read: safetensors, named by its bytes.

    Tensor: ``bytes`` U8 [n]; absent, it asks how much is there. Pieces come in order; a piece that does not begin where the file ends
    is not taken. The digest is the 128-bit BLAKE2b of the whole file; the broker checks it when the last byte is there.
    """

    request: int = field(metadata=_COUNT)
    digest: str = field(metadata=_ID)
    size_bytes: int = field(metadata=bounded(low=1, high=STORED_BYTES))
    """Of the whole file."""
    offset: int = field(default=0, metadata=_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """B -> C. Answers Store: how much of the file is there. All of it: jobs may name ``stored/<digest>.safetensors``."""

    request: int = field(metadata=_COUNT)
    digest: str = field(metadata=_ID)
    have_bytes: int = field(metadata=_COUNT)


# --- Client and broker: jobs ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRef:
    """One LoRA of a job."""

    name: str = field(metadata=_NAME)
    """In the daemon's folders (``loras/detail.safetensors``), or what was stored (``stored/<digest>.safetensors``)."""
    strength: float = field(metadata=bounded(low=-1000, high=1000))
    """Negative ones take away; 0 changes nothing and is not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Which model a job runs on, and how."""

    model: str = field(metadata=_NAME)
    """Name in the daemon's folders: ``diffusion_models/flux1-dev.safetensors``."""
    family: str = field(metadata=bounded(length=64, pattern=r"[a-z0-9_]+"))
    """What the client took the checkpoint for; the back end refuses if it disagrees."""
    dtype: ComputeDtype
    """Compute dtype."""
    plan: str = field(default="", metadata=bounded(length=128, pattern=r"[a-z0-9=,-]*"))
    """``ulysses=2,ring=1,codec=fp8-all``; empty leaves it to the daemon, and so does ``compression=balanced`` its degrees."""
    loras: tuple[LoraRef, ...] | None = field(default=None, metadata=bounded(items=LORAS))
    """In the order in which they are applied; absent where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One conditioning of a Sample. Its tensors are ``branch.<index>.<name>``: context, pooled, ref_latents.0, ..."""

    kind: Literal["positive", "negative"]
    options: dict[str, Scalar] = field(default_factory=dict)
    """Conditioning that is no tensor, such as ``ref_latents_method``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """C -> B. One whole trajectory.

    Tensors: ``noise`` F32 [B,C,H,W]; ``sigmas`` F32 [steps + 1]; ``latent`` F32 like noise (absent = all zeros);
    ``mask`` F32 broadcastable to noise (absent = none); the branches' conditioning. Latents are in model space; a
    conditioning whose batch is not B is repeated (and cut) along its first dimension to B, as ComfyUI does.
    """

    job_id: str = field(metadata=_ID)
    node_id: str = field(metadata=_NAME)
    on: ModelRef
    sampler: Literal["euler", "heun", "dpmpp_2m"]
    cfg: float
    """Guidance scale; at 1 the negative branch is not sent."""
    timestep_multiplier: float = field(metadata=bounded(low=1e-6, high=1e6))
    """What the network is given is ``sigma * timestep_multiplier``."""
    branches: tuple[Branch, ...] = field(metadata=bounded(items=BRANCHES))
    previews: bool
    """Whether Preview messages are wanted."""
    keep_if_client_gone: bool = True
    """Finish even if the client vanishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """C -> B. Conditioning of an Evaluate trajectory, sent once, then named by its digest. Answered only if refused.

    Tensors: one or more, by conditioning name (``context``, ``pooled``, ...). The digest is the 128-bit BLAKE2b that
    :func:`.digest.content_digest` makes of them; the broker checks it.
    """

    job_id: str = field(metadata=_ID)
    digest: str = field(metadata=_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call of an Evaluate. Its tensors are ``call.<index>.x`` and ``call.<index>.timestep``."""

    branch: str = field(metadata=bounded(length=128))
    """What residual state belongs to: the same branch has the same name in every call of a trajectory."""
    conditioning: str = field(metadata=_ID)
    """Digest of an Upload of this trajectory."""
    options: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """C -> B. One turn of a trajectory whose loop runs in the client: a list of model calls. The first turn opens it.

    Tensors: ``call.<index>.x`` [B,C,H,W] or [B,C,F,H,W] as the network gets it (concat channels included),
    ``call.<index>.timestep`` F32 [B], or one for each frame [B,F] or position [B,F*H*W,1].
    """

    job_id: str = field(metadata=_ID)
    node_id: str = field(metadata=_NAME)
    turn: int = field(metadata=_COUNT)
    """0, 1, 2, ... A repeated turn is answered again, not run again; a gap is an error."""
    on: ModelRef
    calls: tuple[Call, ...] = field(metadata=bounded(items=BRANCHES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """C -> B. Ends an Evaluate trajectory; its state is freed. Answered by Ended."""

    job_id: str = field(metadata=_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """C -> B, and B -> rank 0. The job ends once all ranks can leave together; Failed(code ``cancelled``) follows."""

    job_id: str = field(metadata=_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """B -> C. Answers Sample and the first Evaluate, also when the same job is submitted again."""

    job_id: str = field(metadata=_ID)
    state: Literal["queued", "preparing", "running", "waiting", "done"]
    ahead: int = field(metadata=_COUNT)
    """How many jobs are before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """R0 -> B -> C. What is going on with a job. Other ranks report their loading too, to the broker only."""

    job_id: str = field(metadata=_ID)
    phase: Phase
    step: int = field(metadata=_COUNT)
    """Steps done, or per cent while loading."""
    steps: int = field(metadata=_COUNT)
    text: str = field(default="", metadata=_TEXT)
    """For the node: ``ulysses=2,ring=1 on 2 ranks``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """R0 -> B -> C. Tensor: ``x0`` BF16 like the latent. Latest only: a slow reader misses some."""

    job_id: str = field(metadata=_ID)
    step: int = field(metadata=_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """R0 -> B -> C. The end of a Sample. Tensors: ``latent`` and ``x0`` (the last denoised), F32 like the noise."""

    job_id: str = field(metadata=_ID)
    step_ms: float = field(metadata=bounded(low=0))
    """Median time of a step on rank 0."""
    plan: str = field(metadata=_NAME)
    """The plan it ran with."""
    exchanged_bytes: int | None = field(default=None, metadata=_COUNT)
    """What all ranks together sent to one another during its model calls; absent where nobody counted."""
    compression: str = field(default="", metadata=_NAME)
    """As in Status, of this job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """R0 -> B -> C. Answers one Evaluate. Tensors: ``call.<index>.out`` in the dtype of x."""

    job_id: str = field(metadata=_ID)
    turn: int = field(metadata=_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """B -> C. Answers Release."""

    job_id: str = field(metadata=_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """B -> C, and R0 -> B. A request or a job ended with an error; the one that did is named.

    Neither is named when bytes could not be read as a message.
    """

    code: str = field(metadata=bounded(length=64, pattern=r"[a-z_]+"))
    """The wire code of a class in backend/errors.py."""
    message: str = field(metadata=_TEXT)
    request: int | None = field(default=None, metadata=_COUNT)
    job_id: str | None = field(default=None, metadata=_ID)


# --- Broker and ranks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHello:
    """R -> B. The rank is in the group and waits for work."""

    token: str = field(repr=False, metadata=bounded(length=64, pattern=r"[0-9a-f]{64}", secret=True))
    """The incarnation's secret, handed to the ranks by their environment."""
    group_id: int = field(metadata=_COUNT)
    incarnation: str = field(metadata=_ID)
    """Changes with every start of the group."""
    rank: int = field(metadata=_COUNT)
    world_size: int = field(metadata=_POSITIVE)
    pid: int = field(metadata=_POSITIVE)
    device: str = field(metadata=_NAME)
    transport: str = field(metadata=_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA of a job, found."""

    path: str = field(metadata=_TEXT)
    """Only on the rank leg, like the checkpoint's."""
    fingerprint: str = field(metadata=bounded(length=64))
    strength: float = field(metadata=bounded(low=-1000, high=1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """B -> every R. The first phase of dispatch: check and load, touch no collective.

    Exactly one of ``sample`` and ``evaluate`` is set. ``specs`` describes the job's tensors to every rank; the frames
    themselves go to rank 0 only. Conditioning that was uploaded is ``upload.<digest>.<name>``.
    """

    sequence: int = field(metadata=_POSITIVE)
    """Grows by one with every Prepare of an incarnation."""
    path: str = field(metadata=_TEXT)
    """The checkpoint's file. Only on this leg, never to a client."""
    fingerprint: str = field(metadata=bounded(length=64))
    plan: str = field(metadata=_NAME)
    """What the daemon was started with, for a job that names none: a plan, or ``auto``."""
    specs: tuple[TensorSpec, ...] = field(metadata=bounded(items=TENSOR_FRAMES))
    forget: tuple[str, ...] = field(metadata=bounded(items=ARRAY_LENGTH, length=32, pattern=r"[0-9a-f]{32}"))
    """Trajectories whose state every rank drops now."""
    sample: Sample | None = None
    evaluate: Evaluate | None = None
    loras: tuple[LoraFile, ...] | None = field(default=None, metadata=bounded(items=LORAS))
    """Those of the job, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """R -> B. This rank could run the job."""

    sequence: int = field(metadata=_POSITIVE)
    changed: str | None = field(default=None, metadata=_ID)
    """Checksum of the weights that the job's LoRAs changed; absent without LoRAs. Ranks of several hosts compute them from files of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """R -> B. This rank cannot run the job; the broker sends Abort to all and fails the job."""

    sequence: int = field(metadata=_POSITIVE)
    code: str = field(metadata=bounded(length=64, pattern=r"[a-z_]+"))
    message: str = field(metadata=_TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """B -> every R, after Prepared from all of them: run it."""

    sequence: int = field(metadata=_POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """B -> every R, instead of Prepare and Go: the Evaluate that every rank ran last, its next turn.

    Only where nothing is left to check: the same trajectory, model, plan, calls and descriptions, and no other job in between. What
    the group was ready for it is still ready for, so the turn begins at once. Tensors, to rank 0 only: those of the Evaluate.
    """

    sequence: int = field(metadata=_POSITIVE)
    """The next of the numbers that Prepare counts."""
    turn: int = field(metadata=_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """B -> every R, instead of Go: forget what was prepared. Not answered; the rank waits for the next Prepare."""

    sequence: int = field(metadata=_POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """R -> B. The rank has left the job, however it ended, and waits for work."""

    sequence: int = field(metadata=_POSITIVE)
    memory_bytes: int = field(metadata=_COUNT)
    resident: tuple[str, ...] = field(metadata=bounded(items=LISTED, length=NAME_LENGTH))
    compile: str = field(default="", metadata=_NAME)
    attention: str = field(default="", metadata=_NAME)
    compression: str = field(default="", metadata=_NAME)


MESSAGES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        Hello, Welcome, Ping, Pong, Describe, Described, StatusRequest, Status, Store, Stored,
        Sample, Upload, Evaluate, Release, Cancel, Accepted, Progress, Preview, Result, Evaluated, Ended, Failed,
        RankHello, Prepare, Prepared, Refused, Go, Repeat, Abort, Done,
    )
}  # fmt: skip
"""Name on the wire -> class."""

Message = (
    Hello | Welcome | Ping | Pong | Describe | Described | StatusRequest | Status | Store | Stored
    | Sample | Upload | Evaluate | Release | Cancel | Accepted | Progress | Preview | Result | Evaluated | Ended | Failed
    | RankHello | Prepare | Prepared | Refused | Go | Repeat | Abort | Done
)  # fmt: skip
