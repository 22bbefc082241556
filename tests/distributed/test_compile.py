"""Compiled networks on real gloo ranks: no graph breaks, few graphs, and the eager picture, for every plan, text length and family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tutti.backend.models.tiny import write_tiny, write_tiny_flux

from tests.support.calls import DrawnCall, draw, write_calls
from tests.support.families import ROWS
from tests.support.parity import FP32_TOLERANCE
from tests.support.ranks import RankResult, run_ranks

LENGTHS = (13, 77, 201, 512)
FLUX_CALLS = {
    f"{length} text tokens": draw(
        (1, 16, 14, 18), {"context": (1, length, 64), "y": (1, 32)}, numbers={"guidance": 3.5}
    )
    for length in LENGTHS
}
PLANS = {2: ("ring=2", "ulysses=2"), 4: ("ring=2,ulysses=2",)}
GRAPHS_OF_A_KIND = 2
"""One for the first shape, one for all other text lengths."""
FAMILY_CALLS = 2
MOST_SORTS = 4
"""Sorts of blocks of one class in the small checkpoints: SD3's have dual attention, the last one, and the rest."""

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]


def compile_on_ranks(
    folder: Path, checkpoint: Path, calls: Mapping[str, DrawnCall], world_size: int, plans: tuple[str, ...], **more: Any
) -> list[RankResult]:
    """Every call eager and compiled under every plan."""
    write_calls(calls, folder)
    arguments = {"checkpoint": str(checkpoint), "calls": str(folder), "mode": "blocks", "plans": plans, **more}
    return run_ranks("tests.distributed.compile_ranks", world_size, folder / "ranks", arguments, timeout_s=450)


def check(result: RankResult) -> None:
    """The eager picture, the same bits again, nothing compiled again, and a check that can fail."""
    assert result.facts["failures"] == {}
    assert result.facts["breaks"] == 0
    for row in result.facts["rows"]:
        assert row["error"] <= FP32_TOLERANCE, row
        assert row["repeats"], row
        assert row["graphs_again"] == 0, row
        assert row["control"] > 100 * FP32_TOLERANCE, "the control changes nothing"


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.compile)])
def test_flux_compiles_twice_for_all_plans_and_text_lengths(world_size: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, hidden=512, depth=2, depth_single=3)
    for result in compile_on_ranks(tmp_path, checkpoint, FLUX_CALLS, world_size, PLANS[world_size]):
        check(result)
        assert len(result.facts["rows"]) == len(LENGTHS) * len(PLANS[world_size])
        assert result.facts["kinds"] == 2
        assert 0 < result.facts["graphs"] <= GRAPHS_OF_A_KIND * result.facts["kinds"]


@pytest.mark.compile
@pytest.mark.parametrize("world_size", PLANS)
@pytest.mark.parametrize("name", ROWS)
def test_every_family_compiles_under_every_plan(name: str, world_size: int, tmp_path: Path) -> None:
    """One plan of each family is compared with stock ComfyUI in ``test_family_parity``."""
    family, rows = ROWS[name]
    row = rows[0]
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny(checkpoint, family, row.geometry, seed=0, metadata=row.metadata)
    calls = {call: row.calls[call] for call in list(row.calls)[:FAMILY_CALLS]}
    for result in compile_on_ranks(tmp_path, checkpoint, calls, world_size, PLANS[world_size]):
        check(result)
        # Blocks of one class may differ, as SD3's last one does: each sort has graphs of its own.
        assert 0 < result.facts["graphs"] <= FAMILY_CALLS * MOST_SORTS * result.facts["kinds"]


def test_the_whole_network_compiles_in_one_piece_around_the_gather(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, depth=1, depth_single=1)
    calls = dict(list(FLUX_CALLS.items())[:2])
    for result in compile_on_ranks(tmp_path, checkpoint, calls, 2, ("ulysses=2",), mode="whole"):
        assert result.facts["failures"] == {}
        assert result.facts["graphs"] >= len(calls)
        for row in result.facts["rows"]:
            assert (row["error"] <= FP32_TOLERANCE, row["graphs_again"]) == (True, 0), row
            assert row["control"] > 100 * FP32_TOLERANCE, row


def test_a_restart_finds_what_was_compiled_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, depth=1, depth_single=1)
    call = dict(list(FLUX_CALLS.items())[:1])
    runs = []
    for start in ("cold", "warm"):
        folder = tmp_path / start
        folder.mkdir()
        runs.append(compile_on_ranks(folder, checkpoint, call, 1, ("ulysses=1",))[0].facts)
    cold, warm = runs
    assert (cold["hits"], cold["misses"]) == (0, 2), "the control: an empty folder"
    assert (warm["hits"], warm["misses"]) == (2, 0)
    assert warm["graphs"] == cold["graphs"] == 2
    assert warm["seconds"] < cold["seconds"], (warm["seconds"], cold["seconds"])


def test_without_a_compiler_the_network_runs_eager_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, depth=1, depth_single=1)
    for result in compile_on_ranks(tmp_path, checkpoint, dict(list(FLUX_CALLS.items())[:1]), 2, ("ulysses=2",)):
        assert set(result.facts["failures"]) == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
        assert "runs eager" in result.facts["state"]
        assert "no C++ compiler is installed" in result.facts["state"]
        assert "/" not in result.facts["state"], "it crosses the wire: no path of this machine"
        assert [row["error"] for row in result.facts["rows"]] == [0.0], "eager is eager"


def test_a_rank_that_cannot_compile_runs_eager_beside_one_that_can(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, depth=1, depth_single=1)
    calls = dict(list(FLUX_CALLS.items())[:1])
    results = compile_on_ranks(tmp_path, checkpoint, calls, 2, ("ring=2",), without_compiler=[1])
    assert results[0].facts["failures"] == {}
    assert results[1].facts["failures"] != {}
    for result in results:
        assert all(row["error"] <= FP32_TOLERANCE for row in result.facts["rows"])


def test_a_rank_without_memory_for_a_compiled_block_runs_it_eager_beside_one_that_has_it(tmp_path: Path) -> None:
    """It finds out behind the block's exchange, which the other rank does not make again."""
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, depth=1, depth_single=1)
    calls = dict(list(FLUX_CALLS.items())[:1])
    results = compile_on_ranks(tmp_path, checkpoint, calls, 2, ("ring=2",), without_memory=[1])
    assert results[0].facts["failures"] == {}
    assert results[1].facts["failures"] == {"FluxTransformerBlock": "memory ran out"}
    assert "FluxTransformerBlock runs eager: memory ran out" in results[1].facts["state"]
    for result in results:
        for row in result.facts["rows"]:
            assert row["error"] <= FP32_TOLERANCE, row
            assert row["control"] > 100 * FP32_TOLERANCE, row
