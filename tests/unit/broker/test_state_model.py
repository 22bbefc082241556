"""What the broker promises, in short stories that Hypothesis finds and in long random lives (broker_model.py has the rules)."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from tutti.backend.broker.quotas import Accounts
from tutti.backend.wire.job_states import JobState

from tests.unit.broker.broker_model import PEERS, SAMPLES, TRAJECTORIES, BrokerModel

EXAMPLES = int(os.environ.get("TUTTI_STATE_MODEL_EXAMPLES", "200"))
WALK = int(os.environ.get("TUTTI_STATE_MODEL_WALK", "6000"))
"""Steps of one random walk."""

TestBrokerModel = BrokerModel.TestCase
TestBrokerModel.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


Move = tuple[int, Callable[[], object], bool]
"""(weight, what happens, whether it can happen now)"""


def client_moves(model: BrokerModel, dice: random.Random) -> list[Move]:
    """What clients may do, some sensible and some not."""
    peer, trajectory = dice.choice(PEERS), dice.choice(TRAJECTORIES)
    sample, number = dice.choice(SAMPLES), dice.choice([*SAMPLES, *TRAJECTORIES])
    fill, keep, honest, turn = dice.choice([0.0, 1.0]), dice.random() < 0.5, dice.random() < 0.8, dice.randrange(3)
    return [
        (6, lambda: model.submit(peer, sample, fill, keep), True),
        (2, lambda: model.upload(peer, trajectory, honest), True),
        (2, lambda: model.any_turn(peer, trajectory, turn, 0.0), True),
        (4, lambda: model.open_trajectory(peer, trajectory), True),
        (10, lambda: model.next_turn(trajectory), True),
        (1, lambda: model.turn_that_fits_into_no_prepare(peer, trajectory), True),
        (2, lambda: model.cancel(peer, number), True),
        (1, lambda: model.release(peer, number), True),
        (6, lambda: model.ping(peer), True),
    ]


def other_moves(model: BrokerModel, dice: random.Random) -> list[Move]:
    """What ranks, the helper thread and the clock may do."""
    rank, chance, seconds = dice.randrange(2), dice.randrange(6), dice.choice([0.1, 0.6, 3.0, 16.0, 125.0])
    return [
        (4, model.digests_come, True),
        (3, lambda: model.time_passes(seconds), True),
        (9, model.group_comes_up, not model.up),
        (1, lambda: model.group_dies(1), model.up),
        (4, lambda: model.rank_prepares(rank, chance), model.is_preparing()),
        (4, lambda: model.rank_0_answers(chance), model.is_computing()),
        (8, lambda: model.rank_is_done(rank), model.is_leaving()),
        (9, model.turn_goes_through, model.ranks.prepare is not None),
    ]


def random_walk(seed: int, steps: int) -> BrokerModel:
    """Hypothesis finds short stories; this walks far, with the weights of a busy daemon."""
    dice, model = random.Random(seed), BrokerModel()
    model.begin()
    for _ in range(steps):
        possible = [(weight, move) for weight, move, now in client_moves(model, dice) + other_moves(model, dice) if now]
        dice.choices([move for _, move in possible], [weight for weight, _ in possible])[0]()
        model.check_all()
    return model


@pytest.mark.parametrize("seed", range(4))
def test_a_long_busy_life_breaks_no_promise(seed: int) -> None:
    model = random_walk(seed, WALK)
    states = Counter(model.last_state.values())
    assert model.turns > WALK / 20, "a walk that gives no turns proves nothing"
    assert model.turns_after_restart > 0
    assert model.forgotten > 0
    assert model.repeats > 0
    assert model.hung > 0
    assert model.unfit > 0
    model.wind_down()
    assert model.rig.broker.core.accounts == Accounts(model.rig.settings.quotas), "something still counts for somebody"
    assert min(states[state] for state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)) > 0
