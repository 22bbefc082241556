"""What a rank tells of compression: totals over a job, each trajectory's own, and why a plan that was to be compressed is not."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.compression.channel import Sightings
from tutti.backend.compression.state import MatrixShape
from tutti.backend.compression.store import ResidualCall, ResidualStore
from tutti.backend.errors import BadPlan
from tutti.backend.parallel.plan import Plan, choose_plan, compressed
from tutti.backend.wire.messages import ModelRef
from tutti.backend.worker.control import ResidualNews
from tutti.backend.worker.preparation import requested_plan, what_is_left_out
from tutti.backend.worker.residuals import Residuals
from tutti.backend.worker.savings import Savings

CPU = torch.device("cpu")
BALANCED = Plan(ulysses=2, compression="balanced")


def seen(raw_bytes: int, payload_bytes: int, error: float) -> Sightings:
    return Sightings(mismatches=0, broken=0, raw_bytes=raw_bytes, payload_bytes=payload_bytes, error=error)


def test_the_ratio_is_of_the_whole_job_and_the_error_the_last_that_was_measured() -> None:
    savings = Savings()
    assert (savings.line, savings.ratio) == ("", 0.0)
    savings.add(seen(1000, 500, 0.002))
    assert savings.line == "compressed 2.0x, error 0.2 %"
    savings.add(seen(1000, 50, 0.0121))
    savings.add(seen(8000, 200, 0.0))  # no channel was measured in this call
    assert savings.line == "compressed 13.3x, error 1.2 %"
    assert savings.summary(450_000_000) == "13.3x fewer bytes, error 1.2 %, 450.0 MB of state"


@pytest.mark.parametrize(
    ("error", "text"), [(0.0, ""), (1.5e-7, "1.5e-05 %"), (0.00049, "0.049 %"), (0.123, "12.3 %"), (1.2, "120.0 %")]
)
def test_an_error_is_told_in_per_cent(error: float, text: str) -> None:
    savings = Savings()
    savings.add(seen(10, 5, error))
    assert savings.line == f"compressed 2.0x{', error ' if text else ''}{text}"


def test_nothing_is_made_up_where_nothing_was_sent() -> None:
    assert Savings().summary(0) == "nothing was compressed"


def call(residuals: Residuals, trajectory: str) -> ResidualCall:
    """A model call of a trajectory, up to where its tensors travel."""
    side = residuals.of(BALANCED, trajectory)
    assert side is not None
    found = side.of_call("positive", side.news(), "kind")
    assert found is not None
    return found


def send(side: ResidualCall, *, twice: bool = False) -> None:
    """One transfer that this rank encodes, or that it decodes although it is not its turn."""
    channel, codec = side.channel((1, "k", 0, 0), [MatrixShape(rows=8, heads=1, head_dim=128)], torch.float32)
    payload, _ = channel.encode([torch.ones(8, 128)], codec)
    if twice:
        channel.decode(payload, codec)


def test_a_trajectory_counts_its_own_transfers_and_no_others() -> None:
    residuals = Residuals(ResidualStore(CPU, 2**20))
    first, second = residuals.of(BALANCED, "a"), residuals.of(BALANCED, "b")
    assert first is not None
    assert second is not None
    for _ in range(2):
        send(call(residuals, "a"))
    first.look()  # as after the last call of a turn
    send(call(residuals, "b"))
    second.look()
    assert (first.savings.raw_bytes, second.savings.raw_bytes) == (2 * 8 * 128 * 4, 8 * 128 * 4)
    assert first.summary[0].startswith("balanced: ")
    assert first.note == ""


def test_what_went_wrong_in_the_last_call_of_a_turn_is_told_before_that_trajectorys_next_one() -> None:
    residuals = Residuals(ResidualStore(CPU, 2**20))
    first, second = residuals.of(BALANCED, "a"), residuals.of(BALANCED, "b")
    assert first is not None
    assert second is not None
    send(call(residuals, "a"))
    send(call(residuals, "a"), twice=True)
    first.look()
    assert not second.news().wants_key, "another trajectory has nothing to do with it"
    assert first.news().wants_key
    assert not first.news().wants_key


def test_a_trajectory_is_known_until_it_is_forgotten_and_under_one_preset() -> None:
    residuals = Residuals(ResidualStore(CPU, 2**20))
    assert residuals.of(Plan(ulysses=2), "a") is None
    known = residuals.of(BALANCED, "a")
    assert known is residuals.of(BALANCED, "a")
    other = residuals.of(Plan(ulysses=2, compression="fast"), "a")
    assert other is not None
    assert other.compression == "fast"
    residuals.forget(["a", "never seen"])
    assert residuals.of(BALANCED, "a") is not known
    assert isinstance(other.news(), ResidualNews)


def asked(own: str, of_daemon: str) -> tuple[Plan | None, str]:
    return requested_plan(ModelRef(model="m", family="flux", dtype="F32", plan=own), of_daemon)


@pytest.mark.parametrize(
    ("own", "of_daemon", "plan", "compression"),
    [
        ("", "auto", None, ""),
        ("", "ulysses=2", Plan(ulysses=2), ""),
        ("ring=2", "ulysses=2", Plan(ring=2), ""),
        ("compression=balanced", "auto", None, "balanced"),
        ("compression=balanced", "ulysses=2", Plan(ulysses=2), "balanced"),
        ("auto,compression=balanced", "ulysses=2", None, "balanced"),
        ("ring=2,compression=small", "auto,compression=fast", Plan(ring=2), "small"),
        ("", "auto,compression=fast", None, "fast"),
        ("ring=2", "auto,compression=fast", Plan(ring=2), "fast"),
        ("compression=off", "ulysses=2,compression=fast", Plan(ulysses=2), "off"),
    ],
)
def test_a_job_may_ask_for_a_compression_and_leave_the_degrees_to_the_daemon(
    own: str, of_daemon: str, plan: Plan | None, compression: str
) -> None:
    assert asked(own, of_daemon) == (plan, compression)


@pytest.mark.parametrize("own", ["compression=zip", "zip", "ulysses=2,compression=off,compression=off"])
def test_what_is_no_plan_is_refused(own: str) -> None:
    with pytest.raises(BadPlan):
        asked(own, "auto")


@pytest.mark.parametrize(
    ("world_size", "branches", "compression", "said"),
    [
        (2, 1, "balanced", ""),
        (4, 2, "balanced", ""),
        (1, 1, "balanced", "one rank: nothing to compress"),
        (2, 2, "balanced", "one rank for each branch: nothing to compress"),
        (1, 1, "off", ""),
        (1, 1, "", ""),
    ],
)
def test_where_there_is_nothing_to_compress_the_node_is_told_and_the_job_runs(
    world_size: int, branches: int, compression: str, said: str
) -> None:
    plan = compressed(choose_plan(None, world_size, 24, branches=branches), compression)
    assert what_is_left_out(plan, compression) == said
    assert plan.exact == (bool(said) or compression != "balanced")
