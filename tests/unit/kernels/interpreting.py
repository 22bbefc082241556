"""Run a script of these tests in Triton's interpreter: a process of its own, because a kernel is told when it is defined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]


def interpreted(script: str) -> dict[str, dict[str, Any]]:
    """Case -> figures, as ``tests.unit.kernels.<script>`` prints them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.unit.kernels.{script}"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=280, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return figures
