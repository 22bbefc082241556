"""The command line of ``install.py``: one function for each command that is more than one call."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from . import backend_env, checkout, comfyui, folders
from .connect import connect
from .environment import Environment
from .runner import Runner, SetupError

EPILOG = """\
environment variables:
  TUTTI_PIP_ARGS   extra arguments for every `pip install`, for example an index with another build of torch. Without it a plain
                   `torch==2.13.0` is installed, in the build that your package index offers.
  XDG_DATA_HOME    (Linux) where installed back ends live: $XDG_DATA_HOME/tutti, else ~/.local/share/tutti
  TUTTI_STATE_DIR  where keys and connection files are, as for `tutti`
  XDG_BIN_HOME     (Linux, macOS) where the command `tutti` is linked: $XDG_BIN_HOME/tutti, else ~/.local/bin/tutti
"""

DEMO_OPTIONS = (
    "--prompt",
    "--out",
    "--plan",
    "--codec",
    "--compression",
    "--size",
    "--ranks",
    "--steps",
    "--guidance",
    "--seed",
)
"""What `tutti demo` can be told."""


def check_pack(pack: Path, runner: Runner) -> int:
    """What ComfyUI-Manager runs: is everything importable that the pack needs inside ComfyUI, and what comes next?"""
    missing = [
        name for name, module in {"pyzmq": "zmq", "msgpack": "msgpack"}.items() if not importlib.util.find_spec(module)
    ]
    if missing:
        runner.say(
            f"Tutti needs {' and '.join(missing)} in the Python that runs ComfyUI. Run:\n\n"
            f'  "{sys.executable}" -m pip install -r "{pack / "requirements.txt"}"\n'
        )
        return 1
    current = folders.read_current(folders.data_folder())
    if current is not None and current.version == backend_env.pack_version(pack):
        runner.say(
            f"Tutti is complete: the nodes start the back end {current.version} by themselves ({current.executable})."
        )
        return 0
    state = f"The installed back end is {current.version}" if current else "The back end is not installed yet"
    runner.say(
        f'Tutti\'s nodes are ready. {state}; install this version\'s, once, with:\n\n  "{sys.executable}" "{pack / "install.py"}" backend\n'
    )
    return 0


def install_test_parts(pack: Path, runner: Runner) -> Environment:
    """Everything the whole test suite needs."""
    environment = checkout.install_dev(pack, runner)
    for version in comfyui.SOURCES:
        comfyui.install_comfyui(pack, runner, version)
    checkout.install_chromium(runner)
    return environment


def hand_over(runner: Runner, command: list[str]) -> int:
    """Run the last command with the terminal as its own, and return its exit status."""
    if runner.dry_run:
        runner.say(f"would run: {' '.join(command)}")
        return 0
    return subprocess.run(command, env=runner.environment).returncode


def run_demo(pack: Path, runner: Runner, extra: list[str]) -> int:
    """The demo, in this folder's development environment if there is one, else in the installed back end."""
    if (pack / ".venv").exists():
        executable = str(checkout.install_dev(pack, runner).command("tutti"))
    else:
        executable = backend_env.install_backend(pack, runner, torch="auto", comfy_python=sys.executable).executable
    return hand_over(runner, [executable, "demo", *extra])


def run_tests(pack: Path, runner: Runner, extra: list[str]) -> int:
    """The whole suite, or what ``extra`` selects; pytest's summary is the last thing printed."""
    environment = install_test_parts(pack, runner)
    os.chdir(pack)
    return hand_over(runner, [str(environment.python), "-m", "pytest", *extra])


def _is_no_option_of_the_demo(word: str) -> bool:
    """A typing error is told before anything is installed; what the values may be, `tutti demo` says."""
    return word.startswith("-") and word.partition("=")[0] not in DEMO_OPTIONS


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; what follows ``--``, or what only ``tutti demo`` knows, goes to the command that is run in the end."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        description="Install Tutti. Without a command: check, and print the next step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    always = argparse.ArgumentParser(add_help=False)
    always.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS, help="only say what would be done")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    backend = commands.add_parser("backend", parents=[always], help="install the back end into your data folder")
    backend.add_argument(
        "--torch",
        choices=["auto", "reuse", "own"],
        default="auto",
        help="reuse ComfyUI's torch (linked, nothing is written there) or download an own one; auto: reuse if it fits",
    )
    backend.add_argument("--python", default=sys.executable, help="the Python that runs ComfyUI (default: this one)")
    remote = commands.add_parser(
        "connect", parents=[always], help="let ComfyUI here use the daemon of another box; nothing is installed"
    )
    remote.add_argument("file", nargs="?", type=Path, metavar="FILE", help="what `tutti keys add` wrote on that box")
    remote.add_argument("--forget", action="store_true", help="use this machine's own daemon again")
    commands.add_parser("dev", parents=[always], help="make .venv in this folder, with development tools")
    comfy = commands.add_parser("comfyui", parents=[always], help="install a real ComfyUI for the tests")
    comfy.add_argument("--version", choices=list(comfyui.SOURCES), default=comfyui.DEFAULT_VERSION)
    commands.add_parser(
        "demo",
        parents=[always],
        allow_abbrev=False,
        help="draw a sheet of pictures on all devices: demo.png (other options go to `tutti demo`: --prompt TEXT, --plan PLAN, --out DIR, ...)",
    )
    commands.add_parser("test", parents=[always], help="set everything up and run all tests (-- ARGS go to pytest)")

    parsed, others = parser.parse_known_args(arguments[:cut])
    unknown = [word for word in others if parsed.command != "demo" or _is_no_option_of_the_demo(word)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    parsed.extra = others + arguments[cut + 1 :]
    if parsed.extra and parsed.command not in ("demo", "test"):
        parser.error("only `demo` and `test` take arguments after --")
    return parsed


def run(pack: Path, arguments: argparse.Namespace, runner: Runner) -> int:
    """Do what the command line asks for; the exit status."""
    if arguments.command == "backend":
        backend_env.install_backend(pack, runner, torch=arguments.torch, comfy_python=os.path.abspath(arguments.python))
    elif arguments.command == "connect":
        connect(pack, runner, arguments.file, forget=arguments.forget)
    elif arguments.command == "dev":
        checkout.install_dev(pack, runner)
    elif arguments.command == "comfyui":
        comfyui.install_comfyui(pack, runner, arguments.version)
    elif arguments.command == "demo":
        return run_demo(pack, runner, arguments.extra)
    elif arguments.command == "test":
        return run_tests(pack, runner, arguments.extra)
    else:
        return check_pack(pack, runner)
    return 0


def main(pack: Path, arguments: list[str]) -> int:
    """Run ``install.py`` of the pack in folder ``pack``; the exit status."""
    parsed = parse(arguments)
    try:
        return run(pack, parsed, Runner(dry_run=parsed.dry_run))
    except SetupError as problem:
        print(f"\ninstall.py: {problem}", file=sys.stderr)
    except BrokenPipeError:  # our reader went away (`install.py ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        print(f"\ninstall.py: {problem}\n\nWhat to do: check permissions and free disk space.", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninstall.py: stopped. Run the same command again to continue.", file=sys.stderr)
        return 130
    return 1
