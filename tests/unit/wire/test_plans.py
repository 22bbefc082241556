"""What a plan's text may be on the wire, and how people are shown it."""

from __future__ import annotations

import pytest
from tutti.backend.cli.status import as_text
from tutti.backend.parallel.plan import CODECS, SCHEDULES, Plan, choose_plan
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.connection import Connection
from tutti.backend.wire.messages import Branch, ModelRef, Result, Sample, Status
from tutti.backend.wire.plans import shown_plan
from tutti.backend.wire.tensors import WireTensor
from tutti.comfy_nodes.report import finished


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_plan_fits_into_a_message_and_an_approximate_one_says_so(schedule: str, codec: str) -> None:
    plan = Plan(cfg=2, ring=16, ulysses=16, schedule=schedule, codec=codec)
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
    for plan, says in ((Plan(ulysses=2, codec="fp8"), True), (Plan(ulysses=2), False)):
        result = Result(job_id="a" * 32, step_ms=1.0, plan=str(plan))
        assert ("codec=fp8 (approximate)" in finished(result, 4, ())) == says
        assert ("codec=fp8 (approximate)" in as_text(status(str(plan)), CONNECTION)) == says


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
