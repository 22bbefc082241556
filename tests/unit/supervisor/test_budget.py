"""How often a group may be started again."""

from __future__ import annotations

from tutti.backend.supervisor.budget import BudgetSettings, RestartBudget


def test_five_restarts_in_ten_minutes_with_growing_waits_and_then_none() -> None:
    budget = RestartBudget()
    assert [budget.note_death(float(second)) for second in range(6)] == [0.0, 1.0, 2.0, 4.0, 8.0, None]


def test_the_window_slides() -> None:
    budget = RestartBudget()
    for minute in range(40):
        assert budget.note_death(minute * 150.0) is not None


def test_a_minute_of_stability_clears_what_was() -> None:
    budget = RestartBudget()
    for second in range(5):
        budget.note_death(float(second))
    budget.note_ready(10.0)
    assert budget.note_death(70.0) == 0.0


def test_less_than_a_minute_does_not() -> None:
    budget = RestartBudget()
    for second in range(5):
        budget.note_death(float(second))
    budget.note_ready(10.0)
    assert budget.note_death(69.9) is None


def test_only_the_last_life_counts_as_stable() -> None:
    budget = RestartBudget(BudgetSettings(restarts=2, stable_s=60.0))
    budget.note_ready(0.0)
    assert budget.note_death(100.0) == 0.0
    assert budget.note_death(200.0) == 1.0, "it never came up in between"
    assert budget.note_death(201.0) is None


def test_a_job_that_was_done_clears_what_was() -> None:
    budget = RestartBudget()
    for second in range(20):
        budget.note_ready(float(second))
        budget.note_work()
        assert budget.note_death(second + 0.5) == 0.0
    waits = [budget.note_death(30.0 + second) for second in range(5)]
    assert waits == [1.0, 2.0, 4.0, 8.0, None], "what was done before the last death counts no more"
