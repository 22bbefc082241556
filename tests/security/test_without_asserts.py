"""No check depends on an assert: the core of the promises holds under ``python -O``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tutti

CHECKS = Path(__file__).with_name("without_asserts.py")
PACKAGE = Path(tutti.__file__).parent


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, str(CHECKS)], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_core_of_the_promises_holds_when_asserts_are_removed() -> None:
    done = run("-O")
    assert (done.returncode, done.stdout) == (0, "all refused\n"), done.stderr


def test_the_same_checks_notice_that_asserts_are_there() -> None:
    """Negative control: what they print is not printed in any case."""
    done = run()
    assert done.returncode == 1
    assert "python -O" in done.stderr


def test_the_daemons_code_has_no_assert_at_all() -> None:
    folders = ("broker", "supervisor", "wire", "cli", "client", "planning")
    files = [path for folder in folders for path in (PACKAGE / "backend" / folder).rglob("*.py")]
    assert len(files) > 40
    found = [
        str(path)
        for path in files
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
    ]
    assert found == []
