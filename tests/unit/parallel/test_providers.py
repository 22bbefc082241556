"""The choice among attention kernels: checked before use, measured once, kept on disk, and never a wrong one. On the CPU, with real kernels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.mesh import SequenceMesh
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.providers import AttentionProvider, CpuFlash, MathFallback, provider_for, reports
from tutti.backend.parallel.providers import choice as choice_module
from tutti.backend.parallel.providers.cache import TimesCache, versions
from tutti.backend.parallel.providers.case import AttentionCase, bucket, case_of, draw
from tutti.backend.parallel.providers.check import TOLERANCES, fault, time_ms
from tutti.backend.parallel.providers.choice import PROVIDERS, WORTH_IT, Choices, fastest
from tutti.backend.parallel.providers.from_xfuser import XFUSER

from tests.support.meshes import single_rank_mesh
from tests.support.providers import ChangedKernel, case, no_lse, raising, wrong_lse, wrong_output

CPU = torch.device("cpu")
REAL = [CpuFlash(), MathFallback()]


def choices(*providers: AttentionProvider, folder: Path | None = None) -> Choices:
    return Choices(providers, CPU, TimesCache(folder, versions(CPU)))


@pytest.mark.parametrize("provider", REAL, ids=lambda provider: provider.name)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("needs_lse", [False, True])
def test_real_kernels_pass_the_check(
    provider: AttentionProvider, dtype: torch.dtype, exchanged: bool, needs_lse: bool
) -> None:
    asked = case(dtype=dtype, from_exchange=exchanged, needs_lse=needs_lse)
    assert fault(provider, *draw(asked, CPU), asked.scale, needs_lse=needs_lse) is None


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (wrong_output(), "its output is off by"),
        (wrong_lse(), "its log-sum-exp is off by"),
        (no_lse(), "no log-sum-exp"),
        (raising(), "raises RuntimeError: no kernel image is available"),
        (ChangedKernel("half", lambda a: a._replace(out=a.out.half())), "answers torch.float16"),
        (ChangedKernel("nan", lambda a: a._replace(out=a.out * float("nan"))), "off by nan"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_wrong_kernel_is_found_out_and_the_reason_said(provider: AttentionProvider, reason: str) -> None:
    found = fault(provider, *draw(case(), CPU), 0.25, needs_lse=True)
    assert found is not None
    assert reason in found
    assert "\n" not in found


def test_a_kernel_that_ignores_the_scale_is_found_out() -> None:
    assert fault(CpuFlash(), *draw(case(), CPU), 0.25, needs_lse=False) is None

    class OwnScale(CpuFlash):
        def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float):  # type: ignore[no-untyped-def]
            return super().__call__(q, k, v, 0.3)

    assert "output is off" in (fault(OwnScale(), *draw(case(), CPU), 0.25, needs_lse=False) or "")


@pytest.mark.parametrize("wrong", [wrong_lse(), no_lse()], ids=lambda provider: provider.name)
def test_a_log_sum_exp_counts_only_where_a_ring_needs_it(wrong: AttentionProvider) -> None:
    assert fault(wrong, *draw(case(), CPU), 0.25, needs_lse=False) is None


def test_the_fastest_right_kernel_is_chosen_and_wrong_ones_are_reported() -> None:
    slow = ChangedKernel("slow", delay_s=0.002)
    chosen = choices(wrong_output(), slow, raising(), CpuFlash()).get(case(), single_rank_mesh())
    assert chosen.name == CpuFlash.name
    told = "\n".join(reports())
    assert "wrong-output is off for float32 b3 h5 d16 q48 k96" in told
    assert "raising is off for" in told
    assert f"lse own: {CpuFlash.name}" in told


def test_an_inexact_kernel_is_not_even_tried() -> None:
    quantised = ChangedKernel("quantised", exact=False)
    slow = ChangedKernel("slow", delay_s=0.002)
    assert choices(quantised, slow).get(case(), single_rank_mesh()) is slow
    assert quantised.calls == 0


def test_a_job_runs_by_the_formula_when_every_kernel_is_wrong() -> None:
    chosen = choices(wrong_output(), raising()).get(case(), single_rank_mesh())
    assert chosen.name == MathFallback.name
    assert any("no kernel is right" in text for text in reports())


def test_a_single_kernel_is_checked_and_not_timed() -> None:
    only = ChangedKernel("only")
    assert choices(only).get(case(), single_rank_mesh()) is only
    assert only.calls == 1


def test_a_case_is_measured_once_in_a_process_and_once_on_a_disk(tmp_path: Path) -> None:
    first, second = ChangedKernel("first", delay_s=0.001), ChangedKernel("second")
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
    right, broken = ChangedKernel("right", delay_s=0.001), wrong_output()
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


def test_kept_times_belong_to_the_versions_that_gave_them(tmp_path: Path) -> None:
    made_by = {"torch": "2.13.0", "gpu": "one", "driver": "580"}
    cache = TimesCache(tmp_path / "new" / "folder", made_by)
    assert cache.get("case") == {}
    cache.put("case", {"a": 1.5})
    cache.put("other case", {"b": 2.5})
    assert TimesCache(tmp_path / "new" / "folder", made_by).get("case") == {"a": 1.5}
    for changed in ("torch", "gpu", "driver"):
        other = TimesCache(tmp_path / "new" / "folder", {**made_by, changed: "another"})
        assert other.get("case") == {}
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", '{"versions": {}}', "\x00"],
)
def test_a_damaged_file_is_an_empty_one(content: str, tmp_path: Path) -> None:
    cache = TimesCache(tmp_path, {"torch": "1"})
    assert cache.path is not None
    cache.path.write_text(content)
    assert cache.get("case") == {}
    cache.put("case", {"a": 1.0})
    assert cache.get("case") == {"a": 1.0}


def test_times_that_are_no_times_are_left_out(tmp_path: Path) -> None:
    cache = TimesCache(tmp_path, {"torch": "1"})
    assert cache.path is not None
    times = {"case": {"a": "fast", "b": -1, "c": 2}, "other": 3}
    cache.path.write_text(json.dumps({"versions": {"torch": "1"}, "times": times}))
    assert cache.get("case") == {"c": 2.0}
    assert cache.get("other") == {}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = TimesCache(tmp_path / "file", {"torch": "1"})
    cache.put("case", {"a": 1.0})
    assert "cannot keep measured attention times" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "rounded"), [(1, 16), (16, 16), (17, 24), (63, 64), (65, 96), (4608, 6144), (4096, 4096), (32760, 32768)]
)
def test_a_length_falls_into_a_bucket_at_most_half_as_long_again(tokens: int, rounded: int) -> None:
    assert bucket(tokens) == rounded
    assert tokens <= rounded <= max(16, 1.5 * tokens)


def test_a_case_is_the_same_on_ranks_that_hold_unequal_shares() -> None:
    partition = Partition(ring=3, ulysses=1, streams={"image": StreamSplit.explicit([50, 0, 7])})
    cases = {case_of(torch.empty(2, held, 4, 16), 0.25, partition, single_rank_mesh()).key for held in partition.held}
    assert len(cases) == 1
    assert "q64 k64" in cases.pop()


@pytest.mark.parametrize("exchanged", [False, True])
def test_drawn_tensors_are_strided_like_the_rings(exchanged: bool) -> None:
    q, k, v = draw(case(from_exchange=exchanged, needs_lse=False), CPU)
    assert (q.shape, k.shape, v.shape) == ((3, 5, 48, 16), (3, 5, 96, 16), (3, 5, 96, 16))
    assert {x.stride(2) for x in (q, k, v)} == {3 * 3 * 5 * 16 if exchanged else 5 * 16}
    assert all(x.stride(3) == 1 for x in (q, k, v))


def test_drawing_changes_nothing_that_a_job_draws() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draw(case(), CPU)
    assert torch.rand(3).equal(expected)


def test_on_a_cpu_nothing_is_measured_and_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("measured on a CPU")

    monkeypatch.setattr(choice_module, "_choices", never)
    partition = Partition.equal({"image": 9}, ring=1, ulysses=1)
    assert provider_for(torch.empty(1, 9, 4, 16), 0.25, partition, single_rank_mesh()).name == CpuFlash.name
    assert not any(provider.takes(CPU, torch.bfloat16, 128) for provider in XFUSER)
    assert "xfuser" not in sys.modules


def test_every_kernel_has_a_name_of_its_own_and_quantised_ones_are_not_exact() -> None:
    names = [provider.name for provider in PROVIDERS]
    assert len(set(names)) == len(names)
    assert {p.name for p in PROVIDERS if not p.exact} == {"xfuser-flash-3-fp8", "xfuser-sage"}


def test_a_time_is_that_of_one_call() -> None:
    asked = case()
    slow = ChangedKernel("slow", delay_s=0.01)
    assert 10 <= time_ms(slow, *draw(asked, CPU), asked.scale) < 100  # milliseconds, not seconds and not all runs
