"""One legal example of every message, small and with every optional part in use. What they look like on the wire is
frozen in golden_1_0.json; the fuzzer starts from them, and the corpus of hostile frames is made by breaking them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from tutti.backend.wire import messages as m
from tutti.backend.wire.codec import encode
from tutti.backend.wire.dtypes import ITEM_BYTES, WireDtype
from tutti.backend.wire.status_rows import JobStatus, RankStatus
from tutti.backend.wire.tensors import WireTensor

JOB = "0123456789abcdef0123456789abcdef"
DIGEST = "fedcba9876543210fedcba9876543210"
CLIENT = "00112233445566778899aabbccddeeff"


@dataclass(frozen=True)
class Example:
    """A message as the application sees it."""

    message: m.Message
    tensors: dict[str, WireTensor] = field(default_factory=dict)
    manifest: tuple[m.ManifestEntry, ...] | None = None

    def frames(self) -> list[bytes]:
        """As it crosses the wire."""
        return [bytes(frame) for frame in encode(self.message, self.tensors, self.manifest)]


def tensor(dtype: WireDtype, *shape: int) -> WireTensor:
    """A tensor whose bytes count up, so that a shift or a swap is seen."""
    size = math.prod(shape) * ITEM_BYTES[dtype]
    return WireTensor(dtype=dtype, shape=shape, data=bytes(i % 251 for i in range(size)))


MODEL = m.ModelRef(model="diffusion_models/flux1-dev.safetensors", family="flux", dtype="BF16", plan="ulysses=2,ring=1")
SAMPLE = m.Sample(
    job_id=JOB,
    node_id="12",
    on=MODEL,
    sampler="dpmpp_2m",
    cfg=3.5,
    timestep_multiplier=1000.0,
    branches=(
        m.Branch(kind="positive", options={"ref_latents_method": "offset", "scale": 1.5, "start": -3, "exact": True}),
        m.Branch(kind="negative"),
    ),
    previews=True,
    keep_if_client_gone=False,
)
SAMPLE_TENSORS = {
    "noise": tensor("F32", 1, 4, 3, 5),
    "sigmas": tensor("F32", 5),
    "latent": tensor("F32", 1, 4, 3, 5),
    "mask": tensor("F32", 1, 3, 5),
    "branch.0.context": tensor("BF16", 1, 7, 8),
    "branch.0.pooled": tensor("F16", 1, 6),
    "branch.0.ref_latents.0": tensor("BF16", 1, 4, 3, 5),
    "branch.1.context": tensor("F8_E4M3", 1, 5, 8),
}
EVALUATE = m.Evaluate(
    job_id=JOB,
    node_id="12:4",
    turn=3,
    on=MODEL,
    calls=(
        m.Call(branch="positive", conditioning=DIGEST, options={"ref_latents_method": "index"}),
        m.Call(branch="negative", conditioning=JOB),
    ),
)
EVALUATE_TENSORS = {
    "call.0.x": tensor("BF16", 2, 4, 3, 5),
    "call.0.timestep": tensor("F32", 2),
    "call.1.x": tensor("BF16", 1, 4, 3, 5),
    "call.1.timestep": tensor("F32", 1),
}
UPLOAD_TENSORS = {"context": tensor("F16", 1, 7, 8), "ids": tensor("I64", 4), "odd": tensor("F8_E5M2", 0, 3)}
PREPARED_TENSORS = EVALUATE_TENSORS | {f"upload.{DIGEST}.{name}": part for name, part in UPLOAD_TENSORS.items()}


def _prepare(
    tensors: dict[str, WireTensor], *, sample: m.Sample | None = None, evaluate: m.Evaluate | None = None
) -> m.Prepare:
    return m.Prepare(
        sequence=7,
        path="/models/diffusion_models/flux1-dev.safetensors",
        fingerprint="23802906-1723-9f3c",
        plan="auto",
        specs=tuple(part.spec(name) for name, part in tensors.items()),
        forget=(DIGEST, CLIENT),
        sample=sample,
        evaluate=evaluate,
    )


EXAMPLES: dict[str, Example] = {
    "Hello": Example(m.Hello(client_id=CLIENT, software="tutti 0.1.0, ComfyUI 0.30.0")),
    "Welcome": Example(
        m.Welcome(instance=DIGEST, software="tutti 0.1.0", state="restarting", reason="rank 1 died", lease_s=15.0)
    ),
    "Ping": Example(m.Ping(nonce=2**63 - 1)),
    "Pong": Example(m.Pong(nonce=0, state="ready")),
    "Describe": Example(m.Describe(request=4, model="diffusion_models/flux1-dev.safetensors")),
    "Described": Example(
        m.Described(
            request=4,
            model="diffusion_models/flux1-dev.safetensors",
            fingerprint="23802906-1723-9f3c",
            metadata={"format": "pt", "title": "Flux é 漢 🎨"},
        ),
        manifest=(
            m.ManifestEntry(name="img_in.weight", kind="BF16", numbers=(3072, 64)),
            m.ManifestEntry(name="scale", kind="F32", numbers=()),
            m.ManifestEntry(name="diffusion_models/ä.safetensors", kind="FILE", numbers=(23_802_906_123,)),
        ),
    ),
    "StatusRequest": Example(m.StatusRequest(request=5)),
    "Status": Example(
        m.Status(
            request=5,
            state="busy",
            reason="",
            version="0.1.0",
            uptime_s=12.25,
            plan="auto",
            transport="gloo",
            device="cpu",
            ranks=(
                RankStatus(rank=0, pid=4711, device="cpu", memory_bytes=1 << 33),
                RankStatus(rank=1, pid=4712, device="cpu", memory_bytes=0),
            ),
            resident=("diffusion_models/flux1-dev.safetensors",),
            jobs=(JobStatus(job_id=JOB, node_id="12", model="flux", state="running", step=3, steps=20),),
            queued=0,
            finished=9,
            failed=1,
            restarts=2,
            compile="blocks, 4 graphs in 12 s",
            attention="torch-cuda-cudnn; xfuser-flash-4 is off for 2 shapes: ImportError, see the rank's log (rank 1)",
            compression="balanced: 7.6x fewer bytes, error 1.2 %, 0.4 GB of state",
        )
    ),
    "Sample": Example(SAMPLE, SAMPLE_TENSORS),
    "Upload": Example(m.Upload(job_id=JOB, digest=DIGEST), UPLOAD_TENSORS),
    "Evaluate": Example(EVALUATE, EVALUATE_TENSORS),
    "Release": Example(m.Release(job_id=JOB)),
    "Cancel": Example(m.Cancel(job_id=JOB)),
    "Accepted": Example(m.Accepted(job_id=JOB, state="queued", ahead=2)),
    "Progress": Example(m.Progress(job_id=JOB, phase="sampling", step=3, steps=20, text="ulysses=2,ring=1 on 2 ranks")),
    "Preview": Example(m.Preview(job_id=JOB, step=3), {"x0": tensor("BF16", 1, 4, 3, 5)}),
    "Result": Example(
        m.Result(job_id=JOB, step_ms=41.5, plan="ulysses=2,ring=1"),
        {"latent": tensor("F32", 1, 4, 3, 5), "x0": tensor("F32", 1, 4, 3, 5)},
    ),
    "Evaluated": Example(
        m.Evaluated(job_id=JOB, turn=3),
        {"call.0.out": tensor("BF16", 2, 4, 3, 5), "call.1.out": tensor("BF16", 1, 4, 3, 5)},
    ),
    "Ended": Example(m.Ended(job_id=JOB)),
    "Failed": Example(m.Failed(code="unknown_model", message="Copy the file there.", request=4)),
    "RankHello": Example(
        m.RankHello(
            token="5a" * 32,
            group_id=0,
            incarnation=DIGEST,
            rank=1,
            world_size=2,
            pid=4712,
            device="cpu",
            transport="gloo",
        )
    ),
    "Prepare": Example(_prepare(PREPARED_TENSORS, evaluate=EVALUATE), PREPARED_TENSORS),
    "Prepared": Example(m.Prepared(sequence=7)),
    "Prepared with LoRAs": Example(m.Prepared(sequence=7, changed=DIGEST)),
    "Refused": Example(m.Refused(sequence=7, code="out_of_memory", message="Free 3 GB.")),
    "Go": Example(m.Go(sequence=7)),
    "Repeat": Example(m.Repeat(sequence=8, turn=4), EVALUATE_TENSORS),
    "Abort": Example(m.Abort(sequence=7)),
    "Done": Example(
        m.Done(
            sequence=7,
            memory_bytes=1 << 33,
            resident=("flux",),
            compile="blocks, 4 graphs in 12 s",
            attention="torch-cuda-cudnn; xfuser-flash-4 is off for 2 shapes: ImportError, see the rank's log",
            compression="balanced: 7.6x fewer bytes, error 1.2 %, 0.4 GB of state",
        )
    ),
    "Store": Example(m.Store(request=6, digest=DIGEST, size_bytes=1 << 30, offset=3), {"bytes": tensor("U8", 5)}),
    "Stored": Example(m.Stored(request=6, digest=DIGEST, have_bytes=8)),
    # Second forms of messages that have two.
    "Store that only asks": Example(m.Store(request=6, digest=DIGEST, size_bytes=8)),
    "Sample with LoRAs": Example(
        replace(
            SAMPLE,
            on=replace(
                MODEL,
                loras=(
                    m.LoraRef(name="loras/detail.safetensors", strength=0.75),
                    m.LoraRef(name=f"stored/{DIGEST}.safetensors", strength=-1.5),
                ),
            ),
        ),
        SAMPLE_TENSORS,
    ),
    "Prepare with LoRAs": Example(
        replace(
            _prepare(SAMPLE_TENSORS, sample=SAMPLE),
            loras=(m.LoraFile(path="/models/loras/detail.safetensors", fingerprint="9f3c", strength=0.75),),
        )
    ),
    "Evaluate with a timestep per frame": Example(
        m.Evaluate(job_id=JOB, node_id="12", turn=0, on=MODEL, calls=(m.Call(branch="positive", conditioning=DIGEST),)),
        {"call.0.x": tensor("BF16", 1, 4, 3, 5, 2), "call.0.timestep": tensor("F32", 1, 3)},
    ),
    "Failed with a job": Example(m.Failed(code="cancelled", message="The job was cancelled.", job_id=JOB)),
    "Failed with neither": Example(m.Failed(code="remote_protocol", message="Not a message.")),
    "Prepare for another rank": Example(_prepare(SAMPLE_TENSORS, sample=SAMPLE)),
    "Repeat for another rank": Example(m.Repeat(sequence=8, turn=4)),
    "Sample with the least": Example(
        m.Sample(
            job_id=JOB,
            node_id="",
            on=m.ModelRef(model="flux", family="flux", dtype="F32"),
            sampler="euler",
            cfg=1.0,
            timestep_multiplier=1.0,
            branches=(m.Branch(kind="positive"),),
            previews=False,
        ),
        {"noise": tensor("F32", 1, 1, 1), "sigmas": tensor("F32", 1)},
    ),
    "Result with what was exchanged": Example(
        m.Result(job_id=JOB, step_ms=41.5, plan="ulysses=2,ring=1", exchanged_bytes=1 << 40),
        {"latent": tensor("F32", 1, 4, 3, 5), "x0": tensor("F32", 1, 4, 3, 5)},
    ),
}
"""Name -> example. A message's own name stands for its first example."""
