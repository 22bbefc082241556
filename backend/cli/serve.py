"""``tutti serve``: the daemon, in the foreground."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import sys
from pathlib import Path

from ... import __version__
from ..broker.memory import keep_small
from ..parallel.compile_modes import COMPILE_MODES
from ..supervisor.logs import last_lines
from ..wire.plans import shown_plan
from . import listening, state_directory
from .daemon import Daemon
from .main import CommandError
from .settings import (
    AUTO,
    RANK_MODULE,
    ServeSettings,
    check_compile,
    check_installation,
    check_models,
    check_plan,
    choose_device,
    choose_ranks,
    choose_transport,
    find_gpus,
)  # fmt: skip

LOG_BYTES = 4 * 1024**2
LOGS_KEPT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="what the ranks compute on (default: cuda where there is a GPU)"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="how many ranks (default: one for each GPU, or 2 on a CPU)"
    )
    parser.add_argument(
        "--plan",
        default=AUTO,
        metavar="PLAN",
        help="how a model call is split: auto, or such as ulysses=2,ring=1, and perhaps compression=balanced behind it, which is approximate "
        "(default: auto)",
    )
    parser.add_argument(
        "--compile", choices=COMPILE_MODES, default=AUTO,
        help="auto (the repeated blocks, on a GPU, from a shape's second job on), off, blocks, whole (in one piece, once per shape), "
        "graphs (blocks with CUDA graphs) (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--models", action="append", type=Path, default=[], metavar="DIR",
        help="a `models` folder of ComfyUI; may be given several times. ComfyUI on this machine makes its own known by itself",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default=listening.DEFAULT, metavar="ADDRESS",
        help="where clients connect, HOST[:PORT] (default: this machine only, any free port). Beyond it, `tutti keys add` comes first",
    )  # fmt: skip
    state_directory.add_argument(parser)
    parser.add_argument("--rank-module", default=RANK_MODULE, help=argparse.SUPPRESS)  # tests and benchmarks run others


def run(options: argparse.Namespace) -> int:
    """Serve until stopped. Returns 0 after a drain, 1 if it could not be started."""
    state_directory.check_system()
    settings = _settings(options)
    _log_to(settings.state_dir / state_directory.LOGS_FOLDER)
    _set_title("tutti: daemon")
    keep_small()
    with Daemon(settings, _say_ready) as daemon:
        _introduce(settings, daemon)
        daemon.run()
        failure = daemon.failure
    if failure is not None:
        raise CommandError(_explain(failure, settings))
    print("Stopped.", flush=True)
    return 0


def _settings(options: argparse.Namespace) -> ServeSettings:
    check_installation(options.rank_module)
    models = check_models(options.models)
    gpus = find_gpus(options.device)
    device = choose_device(options.device, gpus)
    ranks = choose_ranks(options.ranks, device, gpus)
    return ServeSettings(
        plan=check_plan(options.plan, ranks),
        listen=listening.parse(options.listen),
        state_dir=state_directory.prepare(state_directory.chosen(options)),
        device=device,
        ranks=ranks,
        transport=choose_transport(device, ranks, gpus),
        models=models,
        compile=check_compile(options.compile, device),
        rank_module=options.rank_module,
    )


def _introduce(settings: ServeSettings, daemon: Daemon) -> None:
    where = ", ".join(daemon.endpoints)
    whom = "this machine only" if settings.listen.is_loopback else "holders of a key"
    transport = f", {settings.transport}" if settings.transport else ""
    folders = [folder for folder in daemon.catalog.folders() if folder.is_dir()]
    count = len(daemon.catalog.list_models())
    print(f"Tutti {__version__}")
    print(f"  listens on  {where} ({whom})")
    print(
        f"  group       {settings.ranks} rank(s) on {settings.device}{transport}, plan {shown_plan(settings.plan)}, compile {settings.compile}"
    )
    print(f"  models      {count} checkpoint(s) in {len(folders)} folder(s)")
    for folder in folders:
        print(f"                {folder}{' (ships with Tutti)' if folder == daemon.catalog.shipped else ''}")
    if set(folders) <= {daemon.catalog.shipped}:
        print("                give --models DIR, or start ComfyUI with Tutti once: it makes its folders known")
    print(f"  state       {settings.state_dir}")
    print("Starting the worker group ...", flush=True)


def _say_ready(seconds: float) -> None:
    print(f"Ready after {seconds:.1f} s. Stop with Ctrl-C or `tutti stop`.", flush=True)


def _explain(failure: str, settings: ServeSettings) -> str:
    logs = settings.state_dir / state_directory.LOGS_FOLDER
    words = [(path, last_lines(path)) for path in (*sorted(logs.glob("rank-*.log")), logs / "launcher.log")]
    said = "\n".join(f"--- {path}\n{text}" for path, text in words if text)
    return f"Run `tutti doctor`, and look at the logs in {logs}: the worker group does not come up ({failure}).\n{said}".rstrip()


def _log_to(folder: Path) -> None:
    """Everything into ``daemon.log``, which never grows without bound; warnings to the terminal too."""
    root = logging.getLogger(__package__.rpartition(".")[0] if __package__ else None)
    root.setLevel(logging.INFO)
    file = logging.handlers.RotatingFileHandler(
        folder / "daemon.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8"
    )
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("tutti: %(message)s"))
    root.handlers = [file, terminal]


def _set_title(title: str) -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)
