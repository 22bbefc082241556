"""The residual state of a trajectory between the gate and the store: who answers for what, and what the node is told."""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

import torch
from tutti.backend.compression.state import MatrixShape
from tutti.backend.compression.store import ResidualStore
from tutti.backend.parallel.plan import Plan
from tutti.backend.worker.residuals import Residuals, TrajectoryResiduals

CPU = torch.device("cpu")
PLAN = Plan(ulysses=2, compression="fast")
SHAPE = MatrixShape(rows=5, heads=1, head_dim=8)


SIDES: WeakKeyDictionary[ResidualStore, Residuals] = WeakKeyDictionary()


def residuals(store: ResidualStore, name: str = "t", plan: Plan = PLAN) -> TrajectoryResiduals:
    """As every turn of a rank asks for it."""
    found = SIDES.setdefault(store, Residuals(store)).of(plan, name)
    assert found is not None
    return found


def make_call(own: TrajectoryResiduals, x: float = 1.0, *, branch: Hashable = 0, channels: int = 1) -> list[bool]:
    """A call of a group of one; which of its transfers were key frames, none where it is not compressed."""
    call, found = own.of_call(branch, own.news(), "kind"), []
    for key in range(channels if call is not None else 0):
        assert call is not None
        channel, codec = call.channel((1 + key, "k", 0, 0), [SHAPE], torch.float32)
        channel.encode([torch.full((5, 8), x)], codec)
        found.append(codec.is_key)
    return found


def test_a_plan_that_does_not_compress_has_none() -> None:
    assert Residuals(ResidualStore(CPU, 2**20)).of(Plan(ulysses=2), "t") is None


def test_what_one_turn_left_is_what_the_next_one_refers_to() -> None:
    store = ResidualStore(CPU, 2**20)
    assert [make_call(residuals(store)) for _ in range(3)] == [[True], [False], [False]]


def test_a_broken_last_call_of_a_turn_is_told_in_the_next_turn_of_that_trajectory_and_in_no_other() -> None:
    store = ResidualStore(CPU, 2**20)
    for name in "tu":
        make_call(residuals(store, name))
    make_call(residuals(store, "t"), torch.nan)
    told = residuals(store, "u").news()
    assert (told.wants_key, told.is_broken, told.evictions, told.state_bytes) == (False, False, 0, 5 * 8 * 4)
    assert make_call(residuals(store, "u")) == [False], "another trajectory in between goes on"
    assert make_call(residuals(store, "t")) == [True]
    assert make_call(residuals(store, "t")) == [False]


def test_news_are_told_once() -> None:
    store = ResidualStore(CPU, 2**20)
    own = residuals(store)
    make_call(own, torch.nan)
    assert (own.news().is_broken, own.news().wants_key) == (True, False)


def test_other_degrees_in_a_later_turn_refer_to_nothing_of_before_and_coming_back_does() -> None:
    """A turn with two calls may run on two halves of the group, one with a single call on all of it."""
    store, halves = ResidualStore(CPU, 2**20), Plan(cfg=2, ulysses=2, compression="fast")
    make_call(residuals(store))
    assert make_call(residuals(store, plan=halves)) == [True]
    assert make_call(residuals(store, plan=halves)) == [False]
    assert make_call(residuals(store)) == [False]


def test_what_a_call_lost_is_not_forgotten_when_the_next_turn_has_other_degrees() -> None:
    store, halves = ResidualStore(CPU, 2**20), Plan(cfg=2, ulysses=2, compression="fast")
    make_call(residuals(store))
    make_call(residuals(store, plan=halves))
    make_call(residuals(store), torch.nan)
    residuals(store).look()  # as after the last call of a turn
    assert make_call(residuals(store, plan=halves)) == [True]
    assert make_call(residuals(store)) == [True]


def test_the_note_is_empty_until_something_happened_and_stays() -> None:
    store = ResidualStore(CPU, 2**20)
    notes = []
    for _ in range(5):
        make_call(residuals(store), torch.nan)
        notes.append(residuals(store).note)
    assert notes == [""] * 3 + ["compression paused: numbers that are not finite"] * 2
    small = ResidualStore(CPU, 79)
    own = residuals(small)
    assert make_call(own, channels=2) == [True, True]
    assert make_call(own, channels=2) == []
    assert own.note == "not compressed: 320 bytes of residual state do not fit into 79 bytes"
    small.forget(["t"])
    assert own.note == ""


def test_auto_goes_on_with_bases_in_8_bits_and_the_node_is_told() -> None:
    """Its preset asks for the same form whatever the bits are, so that what was found not to fit stays known."""
    own = residuals(ResidualStore(CPU, 300), plan=Plan(ulysses=2, compression="auto"))
    found = [make_call(own) for _ in range(7)]
    assert found == [*[[]] * 3, [True], [True], [False], [False]], "three are timed as they are, then two key frames"
    note = "bases kept in 8 bits: 60 bytes instead of 320 bytes or more, which do not fit into 300 bytes"
    assert own.note == note
    assert own.lines[-1] == note
    own.look()
    assert own.summary[-1] == note
