"""The small parts of a rank: settings, previews, reports, stopping, failures, and the null model's lock."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tutti.backend.errors import BadRequest, LocalProtocolError
from tutti.backend.wire.codec import encode
from tutti.backend.wire.limits import NAME_LENGTH
from tutti.backend.wire.messages import Done, Failed, Message, Progress
from tutti.backend.worker.failure import (
    EXIT_FAILED_ALONE,
    EXIT_GROUP_BROKEN,
    EXIT_NOT_STARTED,
    EXIT_OUT_OF_MEMORY,
    as_tutti_error,
    exit_status,
)
from tutti.backend.worker.null_rank import load_null
from tutti.backend.worker.preview import Previews
from tutti.backend.worker.report import JobReport, RankReport, StepClock
from tutti.backend.worker.settings import RankSettings
from tutti.backend.worker.stopping import StopSignal

CPU = torch.device("cpu")
ENVIRONMENT = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TUTTI_TOKEN": "f" * 64, "TUTTI_INCARNATION": "0" * 32, "TUTTI_GROUP_ID": "0",
    "TUTTI_RANK_ENDPOINT": "ipc://r", "TUTTI_SHARED_FOLDER": "/shared", "TUTTI_INIT_METHOD": "file:///store", "TUTTI_DEVICE": "cpu", "TUTTI_TRANSPORT": "",
}  # fmt: skip


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_rank_reads_its_environment_and_takes_the_token_out_of_it() -> None:
    environment = dict(ENVIRONMENT)
    settings = RankSettings.take(environment)
    assert (settings.rank, settings.world_size, settings.transport) == (1, 2, None)
    assert settings.token == "f" * 64
    assert settings.ranks_on_device == 1, "ranks of a host map the same pages"
    assert "TUTTI_TOKEN" not in environment
    assert "f" * 64 not in repr(settings)


@pytest.mark.parametrize("name", sorted(set(ENVIRONMENT) - {"TUTTI_TRANSPORT"}))
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(LocalProtocolError, match=name):
        RankSettings.take({key: value for key, value in ENVIRONMENT.items() if key != name})


@pytest.mark.parametrize("change", [{"RANK": "2"}, {"RANK": "-1"}, {"RANK": "one"}, {"TUTTI_DEVICE": "tpu"}])
def test_a_variable_that_makes_no_sense_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(LocalProtocolError):
        RankSettings.take(ENVIRONMENT | change)


def test_previews_are_bfloat16_and_at_most_eight_a_second() -> None:
    clock, sent = Clock(), list[tuple[int, Tensor]]()
    previews = Previews(lambda step, x0: sent.append((step, x0)), clock)
    for step in range(1000):  # ten seconds of steps
        previews.offer(step, torch.full((1, 4, 2, 2), float(step)))
        previews.flush()
        clock.now_s += 0.01
    assert sent[0][0] == 0
    assert 70 <= len(sent) <= 80
    assert all(
        x0.dtype == torch.bfloat16 and float(x0[0, 0, 0, 0]) == pytest.approx(step, rel=0.01) for step, x0 in sent
    )


def test_slow_steps_are_all_shown() -> None:
    clock, sent = Clock(), list[int]()
    previews = Previews(lambda step, x0: sent.append(step), clock)
    for step in range(5):
        previews.offer(step, torch.zeros(1))
        clock.now_s += 0.2
    assert sent == [0, 1, 2, 3, 4]


def test_loading_is_told_at_most_ten_times_a_second() -> None:
    clock, sent = Clock(), list[Message]()
    report = JobReport(lambda message, tensors: sent.append(message), "0" * 32, speaks=True, clock=clock)
    for per_cent in range(101):
        report.loading(per_cent / 100)
        clock.now_s += 0.01
    assert 10 <= len(sent) <= 12
    assert all(isinstance(message, Progress) and message.phase == "loading" for message in sent)


def test_only_rank_0_speaks_for_a_job_and_long_texts_are_cut() -> None:
    sent: list[Message] = []
    for speaks in (False, True):
        report = JobReport(lambda message, tensors: sent.append(message), "0" * 32, speaks=speaks)
        report.sampling(1, 2, "")
        report.failed(BadRequest("x" * 10_000))
    assert [type(message) for message in sent] == [Progress, Failed]
    encode(sent[1])


@pytest.mark.parametrize("length", [10, 1000])
def test_what_a_rank_says_of_itself_is_cut_so_that_it_shows(length: int) -> None:
    sent: list[Message] = []
    texts = ["a" * length, "b" * length]
    RankReport(lambda message, tensors: sent.append(message)).done(
        1, memory_bytes=0, resident=(), compile=texts[0], attention=texts, compression=texts
    )
    (done,) = sent
    assert isinstance(done, Done)
    encode(done)
    if length <= NAME_LENGTH // 2:
        assert (done.compile, done.attention, done.compression) == (texts[0], "; ".join(texts), "; ".join(texts))
    else:
        assert done.compile == done.attention == done.compression == "a" * (NAME_LENGTH - 2) + " …"


def test_every_rank_tells_that_it_loads() -> None:
    sent: list[Message] = []
    JobReport(lambda message, tensors: sent.append(message), "0" * 32, speaks=False).loading(0.5)
    assert sent == [Progress(job_id="0" * 32, phase="loading", step=50, steps=100)]


@pytest.mark.parametrize(("marks_s", "expected_ms"), [([2.0], 5000), ([1.0, 3.0, 3.5, 7.0], 2000)])
def test_the_step_time_is_the_median_between_steps(marks_s: list[float], expected_ms: float) -> None:
    clock = Clock()
    steps = StepClock(clock)
    for mark_s in marks_s:
        clock.now_s = 100 + mark_s
        steps.mark()
    clock.now_s = 105.0
    assert steps.median_ms() == pytest.approx(expected_ms)


def test_a_signal_wakes_whoever_waits_and_is_remembered() -> None:
    stop = StopSignal()
    stop.install()
    try:
        assert select.select([stop], [], [], 0) == ([], [], [])
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        assert select.select([stop], [], [], 10)[0] == [stop]
        assert stop.requested
        stop.clear()
        stop.clear()
        assert select.select([stop], [], [], 0) == ([], [], [])
        assert stop.requested
    finally:
        stop.restore()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("Do this."), "bad_request"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("/secret/path is wrong"), "internal"),
    ],
)
def test_errors_get_a_code_and_keep_neither_paths_nor_tensors(error: Exception, code: str) -> None:
    try:
        raise error
    except Exception as caught:
        named = as_tutti_error(caught, CPU)
    assert named.code == code
    assert "/secret" not in named.message
    assert named.__traceback__ is None
    assert named.__cause__ is None


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


def test_a_collective_that_nobody_joins_ends_the_process_with_a_line_that_says_so() -> None:
    done = _python(
        "import logging, time; logging.basicConfig()\n"
        "from tutti.backend.worker.failure import ends_process_after\n"
        "with ends_process_after(5, 'nothing'): pass\n"
        "with ends_process_after(0.1, 'agreeing'): time.sleep(30)\n"
    )
    assert done.returncode == EXIT_GROUP_BROKEN
    assert "this rank ends: agreeing took longer than 0.1 s" in done.stderr


def test_a_rank_that_cannot_join_the_group_says_by_its_exit_status_that_it_never_started(tmp_path: Path) -> None:
    numbers = dict.fromkeys(("RANK", "LOCAL_RANK", "TUTTI_GROUP_ID"), "0") | dict.fromkeys(
        ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"
    )
    done = _python(
        "from tutti.backend.worker.rank import run_rank; run_rank()", **numbers, TUTTI_TOKEN="t" * 64, TUTTI_INCARNATION="1" * 32,
        TUTTI_RANK_ENDPOINT=f"ipc://{tmp_path}/r", TUTTI_SHARED_FOLDER=f"{tmp_path}/shared", TUTTI_INIT_METHOD=f"file://{tmp_path}/store", TUTTI_DEVICE="cuda", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == EXIT_NOT_STARTED
    assert "cannot start" in done.stderr


def test_the_exit_status_says_what_kind_of_failure_broke_the_group() -> None:
    assert [exit_status(code) for code in ("", "out_of_memory", "internal", "bad_request")] == [
        EXIT_GROUP_BROKEN,
        EXIT_OUT_OF_MEMORY,
        EXIT_FAILED_ALONE,
        EXIT_FAILED_ALONE,
    ]


def test_the_null_model_answers_zeros_in_float32() -> None:
    model = load_null(Path("anything"), dtype=torch.bfloat16, device=CPU, progress=lambda fraction: None)
    velocity = model.adapter.velocity(torch.ones(1, 2, 3, 4, dtype=torch.bfloat16), torch.ones(1), {}, {})
    assert velocity.dtype == torch.float32
    assert velocity.shape == (1, 2, 3, 4)
    assert not velocity.any()


def test_an_ordinary_rank_never_imports_the_null_model() -> None:
    done = _python(
        "import sys, tutti.backend.worker.__main__, tutti.backend.worker.rank\n"
        "assert 'tutti.backend.worker.rank' in sys.modules\n"
        "assert not any('null' in name for name in sys.modules if name.startswith('tutti'))\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_life_of_a_rank_is_bound_before_anything_heavy_is_imported() -> None:
    done = _python(
        "import sys, tutti.backend.worker.__main__\nassert not {'torch', 'zmq', 'diffusers'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr
