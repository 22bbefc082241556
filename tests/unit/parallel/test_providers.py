"""The choice among attention kernels: checked before use, measured once, and never a wrong one. On the CPU, with real kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.mesh import SequenceMesh
from tutti.backend.parallel.partition import Partition
from tutti.backend.parallel.providers import AttentionProvider, CpuFlash, MathFallback, provider_for
from tutti.backend.parallel.providers import choice as choice_module
from tutti.backend.parallel.providers import trials as trials_module
from tutti.backend.parallel.providers.cache import TimesCache, versions
from tutti.backend.parallel.providers.case import AttentionCase
from tutti.backend.parallel.providers.choice import PROVIDERS, Choices
from tutti.backend.parallel.providers.from_xfuser import XFUSER
from tutti.backend.parallel.providers.notes import AttentionNotes
from tutti.backend.parallel.providers.trials import WORTH_IT, fastest

from tests.support.meshes import single_rank_mesh
from tests.support.providers import ChangedKernel, case, raising, wrong_output

CPU = torch.device("cpu")
DELAY_S = 0.02
"""Far longer than an attention of these sizes takes, also while other processes want the processor."""


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> AttentionNotes:
    """Those of a process that has just begun."""
    fresh = AttentionNotes()
    monkeypatch.setattr(choice_module, "NOTES", fresh)
    monkeypatch.setattr(trials_module, "NOTES", fresh)
    return fresh


def choices(*providers: AttentionProvider, folder: Path | None = None) -> Choices:
    return Choices(providers, CPU, TimesCache(folder, versions(CPU)))


def test_the_fastest_right_kernel_is_chosen_and_wrong_ones_are_reported(notes: AttentionNotes) -> None:
    slow = ChangedKernel("slow", delay_s=DELAY_S)
    chosen = choices(wrong_output(), slow, raising(), CpuFlash()).get(case(), single_rank_mesh())
    assert chosen.name == CpuFlash.name
    told = "\n".join(notes.reports())
    assert "wrong-output is off for float32 b3 h5 d16 q48 k96" in told
    assert "raising is off for" in told
    assert f"lse own: {CpuFlash.name}" in told
    assert notes.parts() == [
        "wrong-output is off for 1 shape: its output is off by 1.7e-01 of the largest value (1e-05 allowed)",
        "raising is off for 1 shape: RuntimeError, see the rank's log",
    ]


def test_an_inexact_kernel_is_not_even_tried() -> None:
    quantised = ChangedKernel("quantised", exact=False)
    slow = ChangedKernel("slow", delay_s=DELAY_S)
    assert choices(quantised, slow).get(case(), single_rank_mesh()) is slow
    assert quantised.calls == 0


def test_a_job_runs_by_the_formula_when_every_kernel_is_wrong(notes: AttentionNotes) -> None:
    chosen = choices(wrong_output(), raising()).get(case(), single_rank_mesh())
    assert chosen.name == MathFallback.name
    assert any("no kernel is right" in text for text in notes.reports())
    assert notes.parts()[-1] == "attention runs by the formula, slowly, for 1 shape: no kernel is right on every rank"


def test_a_single_kernel_is_checked_and_not_timed() -> None:
    only = ChangedKernel("only")
    assert choices(only).get(case(), single_rank_mesh()) is only
    assert only.calls == 1


def test_a_case_is_measured_once_in_a_process_and_once_on_a_disk(tmp_path: Path) -> None:
    first, second = ChangedKernel("first", delay_s=DELAY_S), ChangedKernel("second")
    table = choices(first, second, folder=tmp_path)
    assert table.get(case(), single_rank_mesh()) is second
    measured = second.calls
    assert measured > 2
    table.get(case(), single_rank_mesh())
    assert second.calls == measured
    # Another process: checked anew, but not timed.
    assert choices(first, second, folder=tmp_path).get(case(), single_rank_mesh()) is second
    assert second.calls == measured + 1
    # Negative control: another case is measured.
    choices(first, second, folder=tmp_path).get(case(keys=128), single_rank_mesh())
    assert second.calls > measured + 4


def test_a_shortcut_leads_to_the_kernel_of_the_very_case(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(self: Choices, case: AttentionCase, mesh: SequenceMesh) -> AttentionProvider:
        asked.append(case.key)
        return CpuFlash()

    monkeypatch.setattr(Choices, "get", noted)
    monkeypatch.setattr(choice_module, "SHORTCUTS", 5)
    table, mesh, q = choices(CpuFlash()), single_rank_mesh(), torch.empty(1, 9, 4, 16)
    partition = Partition.equal({"image": 9}, ring=1, ulysses=1)
    for _ in range(3):
        table.seen(q, 0.25, partition, mesh)
    assert len(asked) == 1
    # Whatever differs is another question.
    table.seen(q, 0.5, partition, mesh)
    table.seen(q.half(), 0.25, partition, mesh)
    table.seen(q[:, :, :2], 0.25, partition, mesh)
    table.seen(q, 0.25, Partition.equal({"image": 9}, ring=1, ulysses=1), mesh)
    assert len(asked) == 5
    table.seen(q, 0.25, partition, single_rank_mesh())
    assert len(asked) == 6  # and made room
    table.seen(q, 0.25, partition, mesh)
    assert len(asked) == 7


def test_a_kernel_that_turned_wrong_is_not_used_for_its_kept_time(tmp_path: Path) -> None:
    right, broken = ChangedKernel("right", delay_s=DELAY_S), wrong_output()
    TimesCache(tmp_path, versions(CPU)).put(case().key, {"right": 1.0, "wrong-output": 0.1})
    assert choices(broken, right, folder=tmp_path).get(case(), single_rank_mesh()) is right


def test_a_kernel_without_a_kept_time_is_measured(tmp_path: Path) -> None:
    TimesCache(tmp_path, versions(CPU)).put(case().key, {"first": 1e-6})
    first, later = ChangedKernel("first"), ChangedKernel("later")
    assert choices(later, first, folder=tmp_path).get(case(), single_rank_mesh()) is first
    assert (first.calls, later.calls > 2) == (1, True)


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ({"a": 1.0, "b": 0.5}, "b"),
        ({"a": 1.0, "b": 0.99 * WORTH_IT}, "b"),
        ({"a": 1.0, "b": 1.01 * WORTH_IT}, "a"),  # noise must not decide
        ({"a": 1.0, "b": 2.0}, "a"),
        ({"b": 3.0}, "b"),
        ({}, "a"),
    ],
)
def test_a_later_kernel_wins_only_by_a_margin(times: dict[str, float], winner: str) -> None:
    assert fastest(["a", "b"], times) == winner


def test_on_a_cpu_nothing_is_measured_and_nothing_imported(
    monkeypatch: pytest.MonkeyPatch, notes: AttentionNotes
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("measured on a CPU")

    monkeypatch.setattr(choice_module, "_choices", never)
    partition = Partition.equal({"image": 9}, ring=1, ulysses=1)
    assert notes.parts() == []
    assert provider_for(torch.empty(1, 9, 4, 16), 0.25, partition, single_rank_mesh()).name == CpuFlash.name
    assert notes.parts() == [CpuFlash.name]
    assert not any(provider.takes(CPU, torch.bfloat16, 128) for provider in XFUSER)
    assert "xfuser" not in sys.modules


def test_every_kernel_has_a_name_of_its_own_and_quantised_ones_are_not_exact() -> None:
    names = [provider.name for provider in PROVIDERS]
    assert len(set(names)) == len(names)
    assert {p.name for p in PROVIDERS if not p.exact} == {"xfuser-flash-3-fp8", "xfuser-sage"}
