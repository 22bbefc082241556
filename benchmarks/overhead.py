"""What does the way through client, broker and ranks cost, with nothing computed at its end?

FLUX.1's payload at 1024 x 1024, through the real broker to 2 ranks on the CPU: the ranks' whole loop with a network that answers zeros,
and, for the share of the broker, ranks that only speak the protocol. As a ComfyUI on the same machine pays it (Unix socket), and as one
on another machine does (TCP and CURVE; over the loopback, so without the network's own time).

    python -m tutti.benchmarks.overhead [--json FILE] [--check] [--jobs N]
"""

from __future__ import annotations

import secrets
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from ..backend.client import Client
from ..backend.wire.codec import Received
from ..backend.wire.digest import content_digest
from ..backend.wire.dtypes import ITEM_BYTES, ComputeDtype
from ..backend.wire.messages import Branch, Call, Evaluate, ModelRef, Progress, Sample
from ..backend.wire.tensors import Tensors, WireTensor
from .daemon import daemon
from .report import Figure, Spread, argument_parser, finish

PayloadDtype = Literal["BF16", "F32"]
PAYLOADS: Final[tuple[tuple[PayloadDtype, str], ...]] = (("BF16", "bf16"), ("F32", "fp32"))
MODEL: Final = "diffusion_models/null.safetensors"
LATENT: Final = (1, 16, 128, 128)
CONTEXT: Final = (1, 512, 4096)
POOLED: Final = (1, 768)
RANKS: Final = 2
STEPS: Final = 4
WARM_UP: Final = 5
FIRST_STEP: Final = "Submit to first step"
ROUND_TRIP: Final = "Evaluate round trip"
RESIDENT: Final = "broker resident memory"
PEAK: Final = "broker peak memory"


@dataclass(frozen=True, slots=True)
class Setting:
    """Who is at the end of the way."""

    name: str
    rank_module: str
    over_tcp: bool = False


SETTINGS: Final = (
    Setting("2 ranks, null network, Unix socket", "tutti.backend.worker.null_rank"),
    Setting("broker alone, Unix socket", "tutti.benchmarks.null_rank"),
    Setting("2 ranks, null network, CURVE", "tutti.backend.worker.null_rank", over_tcp=True),
    Setting("broker alone, CURVE", "tutti.benchmarks.null_rank", over_tcp=True),
)


def tensor(dtype: PayloadDtype, shape: tuple[int, ...]) -> WireTensor:
    """Random bytes of the right length: nothing on the way may profit from zeros."""
    count = 1
    for size in shape:
        count *= size
    return WireTensor(dtype=dtype, shape=shape, data=secrets.token_bytes(count * ITEM_BYTES[dtype]))


def numbers(*values: float) -> WireTensor:
    """A row of float32."""
    return WireTensor(dtype="F32", shape=(len(values),), data=struct.pack(f"<{len(values)}f", *values))


def conditioning(dtype: PayloadDtype) -> dict[str, WireTensor]:
    """What FLUX.1 is told with a prompt."""
    return {"context": tensor(dtype, CONTEXT), "pooled": tensor(dtype, POOLED), "guidance": numbers(3.5)}


def sample_tensors(dtype: PayloadDtype) -> Tensors:
    """A Sample's: noise and sigmas are always float32."""
    sigmas = numbers(*[1 - step / STEPS for step in range(STEPS + 1)])
    branch = {f"branch.0.{name}": value for name, value in conditioning(dtype).items()}
    return {"noise": tensor("F32", LATENT), "sigmas": sigmas, **branch}


def model(dtype: ComputeDtype) -> ModelRef:
    """The null model."""
    return ModelRef(model=MODEL, family="null", dtype=dtype)


def time_first_steps(client: Client, dtype: PayloadDtype, jobs: int) -> list[float]:
    """Milliseconds from the call of ``sample`` to the news that the first step begins."""
    times, tensors = [], sample_tensors(dtype)
    for _ in range(jobs + WARM_UP):
        message = Sample(
            job_id=secrets.token_hex(16), node_id="1", on=model(dtype), sampler="euler", cfg=1.0, timestep_multiplier=1.0,
            branches=(Branch(kind="positive"),), previews=False,
        )  # fmt: skip
        heard: list[float] = []

        def listen(received: Received, heard: list[float] = heard) -> None:
            if isinstance(received.message, Progress) and received.message.phase == "sampling" and not heard:
                heard.append(time.perf_counter())

        began = time.perf_counter()
        client.sample(message, tensors, listen)
        times.append((heard[0] - began) * 1000)
    return times[WARM_UP:]


def time_round_trips(client: Client, dtype: PayloadDtype, turns: int) -> list[float]:
    """Milliseconds of one Evaluate of one call, conditioning already there."""
    times, job_id, uploaded = [], secrets.token_hex(16), conditioning(dtype)
    digest = content_digest(uploaded)
    client.upload(job_id, digest, uploaded)
    tensors = {"call.0.x": tensor(dtype, LATENT), "call.0.timestep": numbers(0.5)}
    for turn in range(turns + WARM_UP):
        message = Evaluate(
            job_id=job_id,
            node_id="1",
            turn=turn,
            on=model(dtype),
            calls=(Call(branch="positive", conditioning=digest),),
        )
        began = time.perf_counter()
        client.evaluate(message, tensors, lambda _: None)
        times.append((time.perf_counter() - began) * 1000)
    client.release(job_id)
    return times[WARM_UP:]


def broker_of(client: Client) -> psutil.Process:
    """The daemon's process: the launcher's parent, which is the ranks' parent."""
    launcher = psutil.Process(client.status().ranks[0].pid).parent()
    broker = launcher.parent() if launcher else None
    if broker is None:
        raise RuntimeError("the daemon is gone")
    return broker


def peak_bytes(process: psutil.Process) -> int:
    """The most that was ever resident."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def measure(setting: Setting, models: Path, jobs: int) -> list[Figure]:
    """Every figure of one setting, in both dtypes."""
    figures: list[Figure] = []
    arguments = ["--rank-module", setting.rank_module]
    with daemon(models, ranks=RANKS, arguments=arguments, over_tcp=setting.over_tcp) as client:
        broker = broker_of(client)
        for dtype, label in PAYLOADS:
            case = f"{setting.name}, {label}"
            first = time_first_steps(client, dtype, jobs)
            figures.append(Figure(case=case, metric=FIRST_STEP, spread=Spread.of(first), unit="ms"))
            trips = time_round_trips(client, dtype, jobs * 4)
            figures.append(Figure(case=case, metric=ROUND_TRIP, spread=Spread.of(trips), unit="ms"))
            for metric, size in ((RESIDENT, broker.memory_info().rss), (PEAK, peak_bytes(broker))):
                figures.append(Figure.one(case=case, metric=metric, value=size / 1e6, unit="MB"))
    return figures


@contextmanager
def null_models() -> Iterator[Path]:
    """A models folder with a file that stands for the null model."""
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as folder:
        path = Path(folder) / MODEL
        path.parent.mkdir(parents=True)
        header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--jobs", type=int, default=40, help="Samples of each case; four times as many Evaluates (default: 40)"
    )
    options = parser.parse_args(arguments)
    with null_models() as models:
        figures = [figure for setting in SETTINGS for figure in measure(setting, models, options.jobs)]
    return finish("overhead", figures, options)


if __name__ == "__main__":
    sys.exit(main())
