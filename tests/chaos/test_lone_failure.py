"""A call fails on one rank only: the client reads what happened, in words that hold no path, and the next picture is right."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tutti.backend.errors import WorkerDied

from tests.chaos.jobs import ENDLESS, Waiting, picture, sample
from tests.support.daemon import Daemon, private_state_dir, running

MODULE = Path(__file__).with_name("paced") / "failing_rank.py"
WORDS = {
    "bug": "left because a call failed and the ranks could not go on together (their logs say why)",
    "memory": "left because memory ran out on a rank (use a smaller picture or batch, or another weight dtype)",
}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture
def daemon(models: Path) -> Iterator[Daemon]:
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(MODULE.parent))))
    with private_state_dir() as state_dir:
        environment = {"TEST_FAULT": str(state_dir / "fault"), "PYTHONPATH": path}
        arguments = ("--rank-module", MODULE.stem)
        with running(models, state_dir, ranks=2, arguments=arguments, environment=environment) as started:
            yield started


def set_fault(daemon: Daemon, text: str) -> None:
    path = daemon.state_dir / "fault"
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("how", WORDS)
def test_a_rank_that_fails_alone_is_explained_to_the_client(daemon: Daemon, how: str) -> None:
    expected = picture(daemon)
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=2)
        set_fault(daemon, f"1 {how}")
        with pytest.raises(WorkerDied) as died:
            waiting.result()
    sentence = (
        rf"Run it again when the worker group is back: rank [01] {re.escape(WORDS[how])} at step \d+ of {ENDLESS}\."
    )
    assert re.match(sentence, died.value.message)
    assert "/" not in died.value.message, "no path crosses the wire"
    assert ("/secret/place" in daemon.log_text()) == (how == "bug"), "the log does say why"
    (daemon.state_dir / "fault").unlink()
    assert picture(daemon) == expected


def test_the_same_failure_on_a_rank_that_is_not_there_disturbs_nobody(daemon: Daemon) -> None:
    """The control: it is the failure that the client hears of, not the file that asks for it."""
    expected = picture(daemon)
    set_fault(daemon, "2 bug")
    assert picture(daemon) == expected
    assert daemon.status().restarts == 0
