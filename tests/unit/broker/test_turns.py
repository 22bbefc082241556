"""Whose turn it is: fair between keys, then between their clients, first come first served within one, and a trajectory keeps its place for half a second."""

from __future__ import annotations

import random

import pytest
from tutti.backend.broker.turns import REMEMBERED, LastTurns, TurnQueue

from tests.unit.broker.rig import A, B, Rig, job, ready_rig

ALICE, BOB, CAROL = ("local", "a"), ("local", "b"), ("local", "c")
FAR, AWAY = ("other", "f"), ("other", "w")


def queue() -> TurnQueue:
    return TurnQueue(hold_s=0.5, hold_longest_s=60.0)


def every(turns: TurnQueue, now_s: float = 0.0) -> list[str]:
    chosen = []
    while (job_id := turns.choose(now_s, lambda _: True)) is not None:
        chosen.append(job_id)
    return chosen


def test_within_a_client_the_first_that_came_is_the_first_that_runs() -> None:
    turns = queue()
    for name in ("a1", "a2", "a3"):
        turns.push(ALICE, name)
    assert every(turns) == ["a1", "a2", "a3"]


def test_clients_take_turns_however_many_jobs_one_of_them_has() -> None:
    turns = queue()
    for name in ("a1", "a2", "a3", "a4"):
        turns.push(ALICE, name)
    for name in ("b1", "b2"):
        turns.push(BOB, name)
    assert turns.order() == ["a1", "b1", "a2", "b2", "a3", "a4"]
    assert every(turns) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_keys_take_turns_however_many_clients_one_of_them_invents() -> None:
    turns = queue()
    for number in range(6):
        turns.push(("local", f"client {number}"), f"a{number}")
    for name in ("f1", "f2"):
        turns.push(FAR, name)
    assert every(turns) == ["a0", "f1", "a1", "f2", "a2", "a3", "a4", "a5"]


def test_within_a_key_its_clients_take_turns() -> None:
    turns = queue()
    for owner, names in ((ALICE, "123"), (BOB, "1"), (FAR, "123"), (AWAY, "1")):
        for name in names:
            turns.push(owner, owner[1] + name)
    assert every(turns) == ["a1", "f1", "b1", "w1", "a2", "f2", "a3", "f3"]


def test_a_key_that_was_served_through_another_client_has_had_its_turn() -> None:
    turns = queue()
    turns.push(ALICE, "a1")
    every(turns)
    turns.push(BOB, "b1")
    turns.push(FAR, "f1")
    assert every(turns) == ["f1", "b1"], "Bob never had a turn, but his key had"


def test_a_key_whose_jobs_may_not_run_yet_holds_no_other_up() -> None:
    turns = queue()
    for owner, name in ((ALICE, "a1"), (BOB, "b1"), (FAR, "f1")):
        turns.push(owner, name)
    assert turns.choose(0.0, lambda job_id: job_id not in ("a1", "b1")) == "f1"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_to_be_ahead_is_what_runs_before(seed: int) -> None:
    dice, turns = random.Random(seed), queue()
    for number in range(60):
        turns.push(dice.choice([ALICE, BOB, CAROL, FAR, AWAY]), str(number))
        if dice.random() < 0.5:
            turns.choose(0.0, lambda _: True)
    expected = turns.order()
    assert len(expected) > 10
    assert every(turns) == expected


def test_the_one_that_waited_longest_since_its_last_turn_goes_first() -> None:
    turns = queue()
    turns.push(ALICE, "a1")
    turns.push(BOB, "b1")
    every(turns)
    turns.push(BOB, "b2")
    turns.push(ALICE, "a2")
    turns.push(CAROL, "c1")
    assert every(turns) == ["c1", "a2", "b2"]


def test_a_job_that_may_not_run_yet_holds_nobody_up() -> None:
    turns = queue()
    turns.push(ALICE, "a1")
    turns.push(ALICE, "a2")
    assert turns.choose(0.0, lambda job_id: job_id != "a1") == "a2"
    assert turns.choose(0.0, lambda job_id: job_id != "a1") is None
    assert turns.choose(0.0, lambda _: True) == "a1"


def test_a_job_given_back_goes_before_its_clients_others() -> None:
    turns = queue()
    turns.push(ALICE, "a2")
    turns.push(ALICE, "a1", first=True)
    assert every(turns) == ["a1", "a2"]


def test_a_held_group_waits_for_its_trajectory_and_no_longer_than_half_a_second() -> None:
    turns = queue()
    turns.push(BOB, "b1")
    turns.hold_for(ALICE, "a1", 10.0)
    assert turns.choose(10.4, lambda _: True) is None
    assert turns.held_until_s() == 10.5
    assert turns.choose(10.5, lambda _: True) == "b1"


def test_a_held_trajectory_goes_before_others_that_waited_longer() -> None:
    turns = queue()
    turns.push(BOB, "b1")
    turns.hold_for(ALICE, "a1", 10.0)
    turns.push(ALICE, "a0")
    turns.push(ALICE, "a1")
    assert turns.choose(10.1, lambda _: True) == "a1"


def test_a_trajectory_that_ended_is_not_waited_for() -> None:
    turns = queue()
    turns.push(BOB, "b1")
    turns.hold_for(ALICE, "a1", 10.0)
    turns.release("a1")
    assert turns.choose(10.1, lambda _: True) == "b1"


def test_after_a_minute_in_a_row_another_client_gets_its_turn() -> None:
    turns = queue()
    turns.push(BOB, "b1")
    for step in range(600):
        turns.hold_for(ALICE, "a1", step * 0.1)
    turns.push(ALICE, "a1")
    assert turns.choose(59.95, lambda _: True) == "a1"
    turns.push(ALICE, "a1")
    assert turns.choose(60.0, lambda _: True) == "b1"


def test_a_minute_in_a_row_is_no_limit_while_nobody_else_waits() -> None:
    turns = queue()
    turns.hold_for(ALICE, "a1", 0.0)
    turns.hold_for(ALICE, "a1", 59.9)
    assert turns.choose(60.1, lambda _: True) is None
    assert turns.held_until_s() == 59.9 + 0.5


def test_a_hold_does_not_bind_its_own_client() -> None:
    turns = queue()
    turns.push(BOB, "b1")
    turns.hold_for(ALICE, "a1", 10.0)
    turns.push(ALICE, "a2")
    turns.push(ALICE, "a3")
    assert turns.choose(10.1, lambda job_id: job_id != "a2") == "a3", "one that may not run yet holds nobody up"
    assert turns.choose(10.1, lambda _: True) == "a2"
    assert turns.choose(10.1, lambda _: True) is None, "another client waits as before"
    assert turns.choose(10.5, lambda _: True) == "b1"


def test_two_trajectories_of_one_client_have_no_longer_in_a_row_than_one() -> None:
    turns = queue()
    turns.push(BOB, "b1")
    for step in range(600):
        turns.hold_for(ALICE, f"a{step % 2}", step * 0.1)
    turns.push(ALICE, "a0")
    assert turns.choose(59.95, lambda _: True) == "a0"
    turns.push(ALICE, "a1")
    assert turns.choose(60.0, lambda _: True) == "b1"


def test_the_broker_gives_turns_fairly_between_two_clients() -> None:
    rig = ready_rig()
    for number in (1, 2, 3):
        rig.submit(A, number)
    rig.submit(B, 11)
    ran = []
    while rig.turn_of:
        ran.append(int(rig.turn_of, 16))
        rig.run(ran[-1])
    assert ran == [1, 11, 2, 3]


def loop_once(rig: Rig, turn: int) -> None:
    rig.evaluate(A, 1, turn)
    rig.run_turn(1, turn)


def test_an_evaluate_loop_keeps_its_place_and_loses_it_after_half_a_second() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    loop_once(rig, 0)
    rig.submit(B, 2)
    assert rig.turn_of is None, "the group stays with the trajectory"
    assert rig.broker.next_deadline_s() == rig.now_s + 0.5
    rig.wait(0.2)
    rig.evaluate(A, 1, 1)
    assert rig.turn_of == job(1)
    rig.run_turn(1, 1)
    rig.wait(0.5)
    assert rig.turn_of == job(2), "it took too long"
    rig.evaluate(A, 1, 2)
    rig.run(2)
    assert rig.turn_of == job(1), "its state survived the other's turn"


def test_a_client_that_alternates_two_trajectories_waits_for_neither_and_keeps_its_place() -> None:
    """As a guider with two models does: the hold of each turn must not stall the turn after it."""
    rig = ready_rig()
    for number in (1, 2):
        rig.upload(A, number)
    rig.evaluate(A, 1, 0)
    rig.submit(B, 9)
    before_s = rig.now_s
    for turn in range(3):
        for number in (1, 2):
            rig.evaluate(A, number, turn)
            assert rig.turn_of == job(number), "at once"
            rig.run_turn(number, turn)
            assert rig.turn_of is None, "the other client waits for the end of the hold"
    assert rig.now_s == before_s
    rig.wait(0.5)
    assert rig.turn_of == job(9)


def test_the_deadline_is_awaited_only_while_somebody_waits() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    loop_once(rig, 0)
    assert rig.broker.next_deadline_s() is None


def test_only_so_many_are_remembered_and_the_one_served_longest_ago_is_forgotten() -> None:
    turns = LastTurns[int]()
    for who in range(REMEMBERED + 1):
        turns.note(who)
    assert (turns.of(0), turns.of(1), turns.of(REMEMBERED)) == (0, 2, REMEMBERED + 1)
