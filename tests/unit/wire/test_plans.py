"""What a plan's text may be on the wire, and how people are shown it."""

from __future__ import annotations

import pytest
from tutti.backend.cli.status import as_text
from tutti.backend.parallel.plan import CODECS, COMPRESSED_SCHEDULES, COMPRESSIONS, SCHEDULES, Plan, choose_plan
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.connection import Connection
from tutti.backend.wire.messages import Branch, ModelRef, Result, Sample, Status
from tutti.backend.wire.plans import shown_plan
from tutti.backend.wire.tensors import WireTensor
from tutti.comfy_nodes.report import finished, step_by_step, with_plan


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_plan_fits_into_a_message_and_an_approximate_one_says_so(schedule: str, codec: str) -> None:
    check(Plan(cfg=2, ring=16, ulysses=16, schedule=schedule, codec=codec))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("schedule", COMPRESSED_SCHEDULES)
def test_and_so_does_every_compressed_one(schedule: str, compression: str) -> None:
    check(Plan(cfg=2, ring=16, ulysses=16, schedule=schedule, compression=compression))
    assert "approximate" in shown_plan(f"auto,compression={compression}"), "as a daemon is started with it"


def check(plan: Plan) -> None:
    """It crosses the wire, and is shown as what it is."""
    sample = Sample(
        job_id="a" * 32, node_id="1", on=ModelRef(model="m", family="flux", dtype="BF16", plan=str(plan)), sampler="euler", cfg=1.0,
        timestep_multiplier=1.0, branches=(Branch(kind="positive"),), previews=False,
    )  # fmt: skip
    noise = WireTensor(dtype="F32", shape=(1, 1, 1), data=bytes(4))
    sigmas = WireTensor(dtype="F32", shape=(1,), data=bytes(4))
    assert decode(encode(sample, {"noise": noise, "sigmas": sigmas})).message == sample
    assert ("approximate" in shown_plan(str(plan))) == (not plan.exact)
    assert shown_plan("auto") == "auto"


def test_the_node_and_the_command_line_say_that_a_plan_is_approximate() -> None:
    for plan, says in (
        (Plan(ulysses=2, codec="fp8"), "codec=fp8 (approximate)"),
        (Plan(ulysses=2, compression="fast"), "compression=fast (approximate)"),
        (Plan(ulysses=2), ""),
    ):
        result = Result(job_id="a" * 32, step_ms=1.0, plan=str(plan))
        for text in (finished(result, 4, ()), as_text(status(str(plan)), CONNECTION)):
            assert says in text
            assert ("approximate" in text) == bool(says)


def test_the_nodes_last_line_keeps_what_compression_brought() -> None:
    result = Result(
        job_id="a" * 32, step_ms=12.0, plan="ulysses=2,compression=fast", compression="fast: 3.8x fewer bytes"
    )
    assert finished(result, 4, ["a note"]).splitlines() == [
        "Tutti: whole loop in the daemon, ulysses=2,compression=fast (approximate), 4 steps at 12 ms, fast: 3.8x fewer bytes",
        "a note",
    ]


def test_a_loop_that_runs_in_comfyui_says_how_its_calls_run_where_that_is_not_as_usual() -> None:
    line = step_by_step("a reason", ["a note"])
    assert with_plan(line, "") == line
    assert with_plan("", "ulysses=2") == "", "a call outside of any loop has no line"
    assert with_plan(line, "ulysses=2,compression=fast (approximate) on 2 ranks").splitlines() == [
        "Tutti: step by step, because a reason, ulysses=2,compression=fast (approximate) on 2 ranks",
        "a note",
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("heads", [1, 2, 24])
@pytest.mark.parametrize("branches", [1, 2])
def test_auto_never_chooses_what_is_approximate(world_size: int, heads: int, branches: int) -> None:
    assert choose_plan(None, world_size, heads, branches=branches).exact
    assert Plan().exact, "and it is off by default"


CONNECTION = Connection(
    endpoint="tcp://127.0.0.1:1", server_public_key="a" * 40, client_public_key="b" * 40, client_secret_key="c" * 40
)


def status(plan: str) -> Status:
    return Status(
        request=1, state="ready", reason="", version="0", uptime_s=1.0, plan=plan, transport="gloo", device="cpu",
        ranks=(), resident=(), jobs=(), queued=0, finished=0, failed=0, restarts=0,
    )  # fmt: skip
