"""What ``tutti serve`` was asked for, checked: every mistake is one sentence with its remedy, before anything is started."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..broker.auth import check_libzmq
from ..broker.catalog import SUBFOLDERS
from ..parallel.compile_modes import BLOCKS, GRAPHS
from ..parallel.plan import CFG_DEGREES, COMPRESSIONS, Plan, factor_plans, split_compression
from ..planning.devices import Gpu, visible_gpus
from .listening import Address
from .main import CommandError

AUTO = "auto"
DEFAULT_CPU_RANKS = 2
RANK_MODULE = "tutti.backend.worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """One daemon."""

    state_dir: Path
    listen: Address
    device: str
    ranks: int
    plan: str
    """A plan, or ``auto``, or ``auto,compression=balanced``."""
    transport: str
    """Empty: the ranks choose."""
    models: tuple[Path, ...]
    compile: str = AUTO
    """One of ``COMPILE_MODES``."""
    rank_module: str = RANK_MODULE


def choose_device(asked: str | None, gpus: Sequence[Gpu]) -> str:
    """``cuda`` where there is a GPU, unless something else was asked for.

    Raises:
        CommandError: a GPU was asked for and there is none.
    """
    if asked == "cuda" and not gpus:
        raise CommandError(
            "Use `--device cpu`, or make an NVIDIA GPU visible (driver, CUDA_VISIBLE_DEVICES): `nvidia-smi` shows none here."
        )
    return asked or ("cuda" if gpus else "cpu")


def choose_ranks(asked: int | None, device: str, gpus: Sequence[Gpu]) -> int:
    """One rank for each GPU; two on a CPU.

    Raises:
        CommandError: fewer than one was asked for.
    """
    if asked is not None and asked < 1:
        raise CommandError(f"Ask for at least one rank: `--ranks {asked}` is none.")
    return asked or (len(gpus) if device == "cuda" else DEFAULT_CPU_RANKS)


def choose_transport(device: str, ranks: int, gpus: Sequence[Gpu]) -> str:
    """Ranks that share a GPU cannot use NCCL: their tensors go through pinned host memory."""
    return "gloo-host-staged" if device == "cuda" and ranks > len(gpus) else ""


def check_plan(text: str, ranks: int) -> str:
    """A plan that fits the ranks, in its full form; ``auto`` as it is, and with the compression that stands behind it.

    Raises:
        CommandError: it needs another number of ranks, or what this release does not have.
        BadPlan: it is no plan.
    """
    degrees, compression = split_compression(text)
    if degrees == AUTO or (not degrees and compression):
        return AUTO if compression in ("", COMPRESSIONS[0]) else f"{AUTO},compression={compression}"
    plan = Plan.parse(text)
    legal = "; ".join(map(str, factor_plans(ranks)))
    if plan.cfg not in CFG_DEGREES:
        raise CommandError(
            f"Use a plan with cfg=1 or cfg=2 (for {ranks} rank(s): auto; {legal}): guidance has two branches."
        )
    if plan.world_size != ranks:
        raise CommandError(
            f"Use `--ranks {plan.world_size}`, or a plan for {ranks} (auto; {legal}): {plan} needs {plan.world_size} rank(s)."
        )
    return str(plan)


def check_compile(mode: str, device: str) -> str:
    """A way to compile that the device has.

    Raises:
        CommandError: CUDA graphs without CUDA.
    """
    if mode == GRAPHS and device != "cuda":
        raise CommandError(f"Use `--compile {BLOCKS}`: CUDA graphs need an NVIDIA GPU, and the ranks run on {device}.")
    return mode


def check_models(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Folders like ComfyUI's ``models``, absolute.

    Raises:
        CommandError: one is not there, or is not such a folder.
    """
    checked = []
    for folder in folders:
        path = folder.expanduser().absolute()
        if not path.is_dir():
            raise CommandError(f"Give a folder that exists: --models {folder} does not.")
        if not any((path / name).is_dir() for name in SUBFOLDERS):
            raise CommandError(
                f"Give a `models` folder of ComfyUI, with `{SUBFOLDERS[0]}` in it: --models {folder} has none."
            )
        checked.append(path)
    return tuple(checked)


def check_installation(rank_module: str) -> None:
    """What the daemon and its ranks stand on.

    Raises:
        CommandError: something is missing.
    """
    unusable = check_libzmq()
    if unusable:
        raise CommandError(unusable)
    for name in ("torch", rank_module):
        if not _is_importable(name):
            raise CommandError(f"Run `python install.py backend` in the Tutti folder: {name} is not installed here.")


def find_gpus(asked_device: str | None) -> Sequence[Gpu]:
    """GPUs to use; none are looked for when the CPU was asked for."""
    return () if asked_device == "cpu" else visible_gpus()


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
