"""What every test of this folder needs: a checkpoint, and no core files of the processes that are killed."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.jobs import MODEL, OTHER_MODEL
from tests.support.checkpoints import write_tiny_flux


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the same tiny FLUX under two names."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "diffusion_models").mkdir()
    write_tiny_flux(folder / MODEL, depth=1, depth_single=2, context_dim=64, pooled_dim=32)
    shutil.copy(folder / MODEL, folder / OTHER_MODEL)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_core_files() -> Iterator[None]:
    """A rank that is killed by SIGSEGV leaves no gigabyte behind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
