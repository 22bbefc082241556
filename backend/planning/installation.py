"""Are the packages of the back end there, and new enough? Torch is asked in a process of its own: a broken one must not take doctor down."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from .devices import Gpu
from .findings import Finding, good, note, problem

REINSTALL: Final = "Run `python install.py backend` in the pack's folder."
_NEEDED: Final = {
    "torch": (2, 11), "diffusers": (0, 42), "safetensors": (0, 4), "pyzmq": (26,), "msgpack": (1, 0), "psutil": (5, 9),
    "setproctitle": (1, 3),
}  # fmt: skip
"""Package -> the oldest version that works."""
LIBZMQ: Final = (4, 3, 5)
"""Older ones have known holes that a peer can use before it has shown a key."""
_TORCH_S: Final = 120.0
_ASK_TORCH: Final = """
import json, torch, torch.distributed as dist
cuda = torch.cuda.is_available()
print(json.dumps({
    "cuda": torch.version.cuda, "gpus": torch.cuda.device_count() if cuda else 0, "gloo": dist.is_gloo_available(),
    "nccl": dist.is_nccl_available(), "capabilities": [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())] if cuda else [],
}))
"""


def check_packages() -> Iterator[Finding]:
    """One finding for each package that the ranks and the daemon need."""
    for name, oldest in _NEEDED.items():
        wanted = ".".join(map(str, oldest))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield problem(name, "is not installed", REINSTALL)
            continue
        if _numbers(version) < oldest:
            yield problem(name, f"{version} is too old, {wanted} or later is needed", REINSTALL)
        else:
            yield good(name, version)


def check_zmq() -> Finding:
    """libzmq, its encryption and its Unix sockets."""
    try:
        import zmq
    except ImportError as error:
        return problem("libzmq", f"does not load ({error})", REINSTALL)
    version = zmq.zmq_version()
    if zmq.zmq_version_info() < LIBZMQ:
        return problem(
            "libzmq", f"{version} has known holes, {'.'.join(map(str, LIBZMQ))} or later is needed", REINSTALL
        )
    missing = [feature for feature in ("curve", "ipc") if not zmq.has(feature)]
    if missing:
        return problem("libzmq", f"{version} was built without {' and '.join(missing)}", REINSTALL)
    return good("libzmq", f"{version} with CURVE and ipc")


def check_torch(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Whether torch loads, can talk between ranks, and sees the GPUs that the driver lists."""
    answer = _ask_torch()
    if isinstance(answer, str):
        yield problem("torch", f"does not load: {answer}", REINSTALL)
        return
    if not answer["gloo"]:
        yield problem("gloo", "this torch was built without it, ranks cannot agree on anything", REINSTALL)
    if not gpus:
        yield note("devices", "no NVIDIA GPU: ranks run on the CPU, for trying out and for tests")
        return
    if answer["gpus"] == 0:
        built = f"built for CUDA {answer['cuda']}" if answer["cuda"] else "built without CUDA"
        fix = f"Update the driver ({gpus[0].driver}), or run `python install.py backend` again: it picks the build by the driver."
        yield problem("devices", f"the driver lists {len(gpus)} GPU(s), torch ({built}) sees none", fix)
        return
    names = ", ".join(f"{gpu.name} ({gpu.memory_mib // 1024} GiB)" for gpu in gpus)
    yield good("devices", f"{answer['gpus']} GPU(s): {names}")
    if answer["gpus"] > 1 and not answer["nccl"]:
        yield problem("nccl", "this torch was built without it, GPUs would talk through host memory", REINSTALL)
    yield from _check_gpu_extras()


def _check_gpu_extras() -> Iterator[Finding]:
    for name in ("triton", "xfuser"):
        try:
            yield good(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield note(name, "is not installed: torch's own attention kernels are used", REINSTALL)


def _ask_torch() -> dict[str, Any] | str:
    """What torch says about itself, or the last line of why it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TORCH_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"importing it took longer than {_TORCH_S:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"its process ended with status {done.returncode}"
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
