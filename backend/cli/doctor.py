"""``tutti doctor``: looks at everything a daemon needs, and says what is missing and how to put it right."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ... import __version__
from ..assets.files import AUTOENCODER, TRANSFORMER, shipped_file
from ..assets.files import FOLDER as ASSETS
from ..broker.catalog import Catalog
from ..errors import TuttiError
from ..planning.devices import visible_gpus
from ..planning.findings import Finding, good, note, problem
from ..planning.installation import check_packages, check_torch, check_zmq
from ..planning.machine import check_cores, check_loopback, check_shared_memory, check_state_dir
from ..wire.connection import FOLDERS_FILE
from ..wire.plans import shown_plan
from . import state_directory
from .client import connected, locate

COMPRESSION: Final = note(
    "compression",
    "off, unless a plan names one: fewer bytes between the ranks, and pictures that are approximate",
    "For ranks that wait for a slow link; doctor measures none. `tutti demo --compression balanced` draws the same pictures both ways.",
)
_MARKS: Final = {"good": "✓", "note": "·", "problem": "✗"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--json", action="store_true", help="for programs: one JSON object with `healthy` and `findings`"
    )
    parser.add_argument(
        "--installation",
        action="store_true",
        help="look at the installation only, not at models and not at a daemon that runs already (perhaps another version's); "
        "what `install.py backend` asks before it switches to a new environment",
    )
    parser.add_argument(
        "--models",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a `models` folder to look into, as for `tutti serve`",
    )
    state_directory.add_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Look and print. Returns 1 when there is a problem."""
    state_dir = state_directory.chosen(options)
    findings = list(examine_installation(state_dir))
    if not options.installation:
        findings += [
            _check_models(state_dir, options.models),
            _check_demo_model(),
            _check_daemon(state_dir),
            COMPRESSION,
        ]
    healthy = all(finding.level != "problem" for finding in findings)
    if options.json:
        print(json.dumps({"healthy": healthy, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(
                errors="replace"
            )  # a terminal without these marks shows question marks, not a traceback
        print(as_text(findings))
    return 0 if healthy else 1


def examine_installation(state_dir: Path) -> Iterator[Finding]:
    """What a daemon of this installation will need on this machine, in the order in which a start needs it."""
    yield good(
        "tutti", f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    yield from check_packages()
    yield check_zmq()
    yield from check_torch(visible_gpus())
    yield check_cores()
    yield check_loopback()
    yield from check_shared_memory()
    yield from check_state_dir(state_dir)


def as_text(findings: list[Finding]) -> str:
    """A line each, fixes below, and a last line that sums up."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"  {_MARKS[finding.level]} {finding.topic.ljust(width)}  {finding.text}")
        if finding.fix:
            lines.append(f"    {' ' * width}  {finding.fix}")
    problems = sum(finding.level == "problem" for finding in findings)
    lines += ["", "All is well." if not problems else f"{problems} problem(s): see the lines with ✗."]
    return "\n".join(lines)


def _check_models(state_dir: Path, models: list[Path]) -> Finding:
    catalog = Catalog(models, state_dir / FOLDERS_FILE)
    folders = [folder for folder in catalog.folders() if folder.is_dir()]
    if not folders:
        return note(
            "models",
            "no folder is known yet",
            "Give --models DIR to `tutti serve`, or start ComfyUI with Tutti once: it makes its folders known.",
        )
    return good("models", f"{len(catalog.list_models())} checkpoint(s) in {', '.join(map(str, folders))}")


def _check_demo_model(assets: Path = ASSETS) -> Finding:
    try:
        for name in (TRANSFORMER, AUTOENCODER):
            shipped_file(name, assets)
    except TuttiError as error:
        return note("demo model", "cannot be used; everything else can", error.message)
    return good("demo model", "ships with Tutti; both files are whole")


def _check_daemon(state_dir: Path) -> Finding:
    try:
        with connected(locate(state_dir)) as client:
            status = client.status()
    except TuttiError as error:
        return note("daemon", "none answers", error.message)
    if status.state == "failed":
        return problem(
            "daemon",
            f"its worker group failed: {status.reason}",
            "Look at the logs in the state folder, then start it again.",
        )
    return good("daemon", f"{status.state}, {len(status.ranks)} rank(s), plan {shown_plan(status.plan)}")
