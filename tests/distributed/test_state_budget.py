"""Whole jobs on two real ranks whose residual state does not fit: it is kept smaller, by the formula of memory.py, and everybody is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tutti.backend.compression.memory import Geometry, smallest, state_bytes
from tutti.backend.compression.policy import PRESETS
from tutti.backend.compression.state import StateForm
from tutti.backend.parallel.plan import Plan
from tutti.backend.wire.messages import Result
from tutti.backend.wire.texts import size_text

from tests.support.checkpoints import write_tiny_flux
from tests.support.parity import relative_error
from tests.support.rank_leg import RankGroup, Turn, running, sample_of, sample_tensors

STEPS = tuple(1 - step / 12 for step in range(13))
TEXT, HEIGHT, WIDTH = 6, 8, 12
TOKENS = TEXT + HEIGHT // 2 * WIDTH // 2
BOUND = 150_000
"""Bytes: what a picture's bases take fits, with a trend it does not."""
TREND = PRESETS["balanced"].form

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, hidden=256, depth=1, depth_single=1)
    return path


@pytest.fixture(scope="module")
def group() -> Iterator[RankGroup]:
    with running(2, module="tests.distributed.tight_rank", environment={"TEST_STATE_BYTES": str(BOUND)}) as ranks:
        yield ranks


def predicted(plan: str, form: StateForm, batch: int = 1) -> int:
    """Of the tiny FLUX.1, in bytes."""
    geometry = Geometry(tokens=TOKENS, heads=2, head_dim=128, layers=2, batch=batch)
    degrees = Plan.parse(plan)
    return state_bytes(geometry, ring=degrees.ring, ulysses=degrees.ulysses, form=form, dtype=torch.float32)


def sampled(group: RankGroup, checkpoint: Path, plan: str, batch: int = 1) -> tuple[Turn, torch.Tensor]:
    inputs = sample_tensors(batch=batch, tokens=(TEXT,), height=HEIGHT, width=WIDTH, sigmas=STEPS)
    turn = group.run(sample_of(inputs, plan=plan), inputs, checkpoint)
    assert isinstance(turn.answer, Result), turn
    return turn, turn.tensors["latent"]


def told(turn: Turn) -> list[str]:
    """What comes behind the figures, on each rank's Done and in the Result."""
    assert isinstance(turn.answer, Result)
    texts = [*(turn.done[rank].compression for rank in range(2)), turn.answer.compression]
    return ["; ".join(text.split("; ")[1:]) for text in texts]


@pytest.mark.parametrize("degrees", ["ulysses=2", "ring=2"])
def test_a_job_whose_state_does_not_fit_keeps_bases_in_8_bits_and_says_so(
    degrees: str, group: RankGroup, checkpoint: Path
) -> None:
    asked, small = predicted(degrees, TREND), predicted(degrees, smallest(TREND))
    assert small < BOUND < asked
    _, exact = sampled(group, checkpoint, degrees)
    turn, latent = sampled(group, checkpoint, f"{degrees},compression=balanced")
    instead = f"instead of {size_text(asked)} or more, which do not fit into {size_text(BOUND)}"
    note = f"bases kept in 8 bits: {size_text(small)} {instead}"
    assert told(turn) == [note] * 3
    assert all(f", {size_text(small)} of state;" in turn.done[rank].compression for rank in range(2))
    texts = [progress.text for progress in turn.progress if progress.phase == "sampling"]
    assert ["bases kept" in text for text in texts] == [False, False, *[True] * 11], "known before the second call"
    assert texts[2].endswith(f", bases kept in 8 bits {instead}")
    assert all(text.endswith(f", {note}") for text in texts[3:])
    assert 1e-6 < relative_error(latent, exact) < 0.1

    fits, _ = sampled(group, checkpoint, f"{degrees},compression=fast")
    assert told(fits) == [""] * 3, "the control: bases without a trend fit"
    whole = predicted(degrees, PRESETS["fast"].form)
    assert all(fits.done[rank].compression.endswith(f", {size_text(whole)} of state") for rank in range(2))


def test_a_job_that_is_too_large_whatever_is_kept_travels_uncompressed_and_says_so(
    group: RankGroup, checkpoint: Path
) -> None:
    batch = 6
    needed = predicted("ulysses=2", TREND, batch)
    assert predicted("ulysses=2", smallest(TREND), batch) > BOUND
    turn, _ = sampled(group, checkpoint, "ulysses=2,compression=balanced", batch)
    assert (
        told(turn) == [f"not compressed: {size_text(needed)} of residual state do not fit into {size_text(BOUND)}"] * 3
    )
    assert " in 1 of 12 calls" in turn.done[0].compression
