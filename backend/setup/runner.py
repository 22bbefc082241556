"""Doing things, and saying so: every command and every change of the installer goes through a :class:`Runner`.

With ``dry_run`` nothing is done and each action is printed instead.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TAIL_LINES = 15
"""How much of a failed command's output is shown."""

# Settings of the caller that would send pip's files elsewhere, or another Python's modules into ours.
_LEAKING_VARIABLES = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_USER",
    "PIP_REQUIRE_VIRTUALENV",
    "VIRTUAL_ENV",
)


class SetupError(Exception):
    """Something could not be installed: what happened, what to do, and the last lines of the output."""

    def __init__(self, what: str, remedy: str, output: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy
        self.tail = "\n".join(output.strip().splitlines()[-TAIL_LINES:])

    def __str__(self) -> str:
        output = f"\n\nThe last lines of its output:\n{self.tail}" if self.tail else ""
        return f"{self.args[0]}{output}\n\nWhat to do: {self.remedy}"


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without what must not leak into an installation; pip made patient with slow networks."""
    kept = {name: value for name, value in environ.items() if name not in _LEAKING_VARIABLES}
    for name, value in {"PIP_DEFAULT_TIMEOUT": "120", "PIP_RETRIES": "10", "PIP_NO_INPUT": "1"}.items():
        kept.setdefault(name, value)
    kept["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return kept


class Runner:
    """Runs commands and changes files, or only says what it would do."""

    def __init__(self, *, dry_run: bool = False, say: Callable[[str], None] | None = None) -> None:
        self.dry_run = dry_run
        self.say = say or _print
        self.environment = clean_environment(os.environ)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        title: str,
        remedy: str,
        cwd: Path | None = None,
        timeout_s: float = 7200.0,
    ) -> str:
        """Run to the end and return stdout and stderr together. :class:`SetupError` when it fails or takes longer than ``timeout_s``."""
        words = [os.fspath(word) for word in command]
        if self.dry_run:
            self.say(f"would run: {_quoted(words)}" + (f"   (in {cwd})" if cwd else ""))
            return ""
        self.say(f"{title} ...")
        started_s = time.monotonic()
        try:
            done = subprocess.run(
                words,
                cwd=cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as problem:
            raise SetupError(
                f"{title}: not finished after {timeout_s:.0f} s.", remedy, _text(problem.stdout)
            ) from problem
        except OSError as problem:
            raise SetupError(f"{title}: {words[0]} could not be started ({problem.strerror}).", remedy) from problem
        if done.returncode != 0:
            raise SetupError(f"{title}: failed with exit status {done.returncode}.", remedy, done.stdout)
        self.say(f"{title}: {time.monotonic() - started_s:.0f} s")
        return done.stdout

    def change(self, description: str, action: Callable[[], object]) -> None:
        """Change files by calling ``action``; ``description`` begins with a verb."""
        if self.dry_run:
            self.say(f"would {description}")
        else:
            action()


def _print(text: str) -> None:
    print(text, flush=True)


def _quoted(words: Sequence[str]) -> str:
    return " ".join(f'"{word}"' if " " in word else word for word in words)


def _text(output: str | bytes | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
