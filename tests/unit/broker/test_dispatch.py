"""Three phases, and what happens when a rank or the whole group is lost in any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from tutti.backend.broker.actions import Action, ForwardPreview, RestartGroup
from tutti.backend.broker.events import RankGarbled
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire.digest import content_digest
from tutti.backend.wire.messages import (
    Abort,
    Cancel,
    Done,
    Ended,
    Evaluated,
    Failed,
    Go,
    Prepare,
    Preview,
    Progress,
    Refused,
    Result,
)
from tutti.backend.wire.tensors import WireTensor

from tests.unit.broker.rig import (
    CONTEXT_DIGEST,
    LATENT,
    MODEL,
    TOO_MANY,
    A,
    B,
    Rig,
    codes,
    evaluate,
    evaluate_tensors,
    f32,
    job,
    prepares,
    ready_rig,
    sample,
    sample_tensors,
    sent_to_ranks,
    told,
)


def restarts(actions: list[object]) -> list[str]:
    return [action.cause for action in actions if isinstance(action, RestartGroup)]


def test_prepare_goes_to_every_rank_and_tensors_to_rank_0_only() -> None:
    actions = ready_rig().submit(A, 1)
    (alone, first), (others, second) = sent_to_ranks(actions)
    assert isinstance(first, Prepare)
    assert first == second
    assert (alone, others) == (1, 1)
    assert [len(action.frames) for action in actions if hasattr(action, "peers")] == [4, 2]
    assert first.path == "/models/m.safetensors"
    assert {spec.name for spec in first.specs} == {"noise", "sigmas"}


def test_go_follows_prepared_from_every_rank_and_not_before() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    assert sent_to_ranks(rig.prepared([0])) == []
    assert sent_to_ranks(rig.prepared([0])) == [], "the same rank twice is one rank"
    assert sent_to_ranks(rig.prepared([1])) == [(2, Go(sequence=1))]


def test_ranks_that_changed_their_weights_differently_do_not_begin() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared([0], changed="a" * 32)
    actions = rig.prepared([1], changed="b" * 32)
    assert [type(message) for _, message in sent_to_ranks(actions)] == [Abort]
    (failed,) = told(actions, A)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message.split(":")[0]) == (
        "bad_checkpoint",
        "Copy the same LoRA and model files to every host",
    )
    rig.submit(A, 2)
    rig.prepared([0], changed="a" * 32)
    assert [type(message) for _, message in sent_to_ranks(rig.prepared([1], changed="a" * 32))] == [Go]


def test_the_next_turn_waits_until_every_rank_is_done() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared()
    assert [type(message) for message in told(rig.result(1), A)] == [Result], "the client is told at once"
    assert prepares(rig.done([0])) == []
    ((prepare, _),) = prepares(rig.done([1]))
    assert (prepare.sequence, rig.turn_of) == (2, job(2))


def test_a_refusal_of_one_rank_aborts_the_turn_and_fails_the_job() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared([0])
    actions = rig.rank(1, Refused(sequence=1, code="bad_plan", message="Choose a plan for 2 ranks."))
    assert sent_to_ranks(actions)[0] == (2, Abort(sequence=1))
    assert codes(actions, A) == ["bad_plan"]
    assert [prepare.sequence for prepare, _ in prepares(actions)] == [2], "the next turn begins at once"


def test_what_still_comes_from_an_aborted_turn_is_ignored() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.rank(1, Refused(sequence=1, code="bad_plan", message="no"))
    from_before = rig.rank(0, Refused(sequence=1, code="bad_plan", message="no"))
    assert (codes(from_before, A), rig.turn_of) == ([], job(2))
    assert rig.rank(0, Progress(job_id=job(1), phase="loading", step=5, steps=100)) == []


def test_a_rank_error_is_told_when_every_rank_has_left_and_the_group_stays() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    assert codes(rig.failed(1, "out_of_memory", "Use more ranks."), A) == []
    assert codes(rig.done([0]), A) == []
    assert codes(rig.done([1]), A) == ["out_of_memory"]
    assert rig.broker.core.group_state() == "ready"


def test_an_error_code_that_nobody_knows_becomes_internal_and_paths_do_not_cross() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    rig.failed(1, "who_knows", "cannot read /models/m.safetensors")
    (failed,) = told(rig.done(), A)
    assert isinstance(failed, Failed)
    assert failed.code == "internal"
    assert "/models" not in failed.message
    assert MODEL in failed.message


def test_ranks_that_leave_without_an_answer_are_an_error_of_ours() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    assert codes(rig.done(), A) == ["internal"]


def test_progress_is_handed_on_and_shown_in_the_status() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.rank(0, Progress(job_id=job(1), phase="loading", step=40, steps=100))
    rig.prepared()
    progress = Progress(job_id=job(1), phase="sampling", step=3, steps=20)
    assert told(rig.rank(0, progress), A) == [progress]
    seen = rig.broker.core.jobs.get(job(1))
    assert seen is not None
    assert (seen.step, seen.steps) == (3, 20)


def test_previews_take_the_way_that_may_lose_them() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    x0 = WireTensor(dtype="BF16", shape=LATENT, data=bytes(32))
    actions = rig.rank(0, Preview(job_id=job(1), step=2), {"x0": x0})
    assert [type(action) for action in actions] == [ForwardPreview]


@pytest.mark.parametrize(
    "message",
    [
        Progress(job_id=job(1), phase="sampling", step=1, steps=2),
        Progress(job_id=job(1), phase="loading", step=1, steps=2),
        Failed(code="internal", message="x", job_id=job(1)),
    ],
)
def test_only_rank_0_speaks_for_the_group(message: Progress | Failed) -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    assert restarts(rig.rank(1, message)) == [f"rank 1 sent a {type(message).__name__} that it may not send now"]


def test_a_result_before_go_and_a_done_before_go_are_not_believed() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    assert len(restarts(rig.result(1))) == 1
    assert len(restarts(rig.rank(0, Done(sequence=1, memory_bytes=0, resident=())))) == 1


def test_an_answer_of_the_other_kind_or_turn_is_not_believed() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    assert len(restarts(rig.evaluated(1, 0))) == 1
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.prepared()
    assert len(restarts(rig.evaluated(1, 5))) == 1


def test_a_rank_that_sends_what_is_no_message_is_not_trusted_any_more() -> None:
    rig = ready_rig()
    actions = rig.give(RankGarbled(peer=rig.rank_peer(1), error=RemoteProtocolError("not a message")))
    assert len(restarts(actions)) == 1


@pytest.mark.parametrize("wrong", ["token", "incarnation", "world_size", "rank", "twice"])
def test_a_rank_hello_that_is_not_of_this_incarnation_is_turned_away(wrong: str) -> None:
    rig = Rig()
    rig.group_starts()
    hello = rig.rank_hello(1)
    changed = {
        "token": {"token": "f" * 64},
        "incarnation": {"incarnation": job(77)},
        "world_size": {"world_size": 3},
        "rank": {"rank": 2, "world_size": 3},
        "twice": {"rank": 0},
    }[wrong]
    rig.rank(0, rig.rank_hello(0))
    rig.rank(1, dataclasses.replace(hello, **changed))  # type: ignore[arg-type]
    assert not rig.broker.core.group.ready
    assert [rank.rank for rank in rig.broker.core.group.ranks] == [0]


def test_what_comes_from_somebody_that_is_no_rank_is_dropped() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.incarnation = job(1234)  # another identity
    assert rig.result(1) == []
    assert rig.give(RankGarbled(peer=b"stranger", error=RemoteProtocolError("x"))) == []


# --- the group dies -----------------------------------------------------------------------------------------------------------


def test_a_job_that_was_being_prepared_when_the_group_died_runs_on_the_next_one() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    assert codes(rig.group_lost(), A) == []
    actions = rig.group_up()
    ((prepare, tensors),) = prepares(actions)
    assert (rig.turn_of, prepare.sequence, set(tensors)) == (job(1), 1, {"noise", "sigmas"})
    rig.run(1)
    rig.run(2)
    assert rig.broker.core.finished == 2


def test_a_job_that_kills_the_group_twice_before_go_is_not_tried_again() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.group_lost()
    rig.group_up()
    (failed,) = told(rig.group_lost("rank 0 was killed by signal 11 (SIGSEGV)"), A)
    assert isinstance(failed, Failed)
    assert failed.code == "worker_died"
    assert "rank 0 was killed by signal 11 (SIGSEGV)" in failed.message


def test_a_running_job_fails_naming_rank_signal_and_step_and_the_next_one_runs() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared()
    rig.rank(0, Progress(job_id=job(1), phase="sampling", step=7, steps=20))
    rig.failed(1, "internal", "the connection to rank 1 was reset")
    (failed,) = told(rig.group_lost(), A)
    assert isinstance(failed, Failed)
    assert failed.code == "worker_died"
    assert "rank 1 was killed by signal 9 (SIGKILL) at step 7 of 20" in failed.message
    assert rig.broker.core.group_state() == "restarting"
    rig.group_up()
    assert rig.turn_of == job(2)
    assert rig.broker.core.group.restarts == 1


def test_a_result_that_was_told_stays_told_when_the_group_dies_right_after() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    rig.result(1)
    assert told(rig.group_lost(), A) == []
    assert rig.broker.core.finished == 1


def test_a_job_being_cancelled_is_cancelled_when_the_group_dies() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    rig.cancel(A, 1)
    assert codes(rig.group_lost(), A) == ["cancelled"]


def test_a_trajectory_between_two_turns_survives_a_restart_with_its_conditioning() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.run_turn(1, 0)
    assert codes(rig.group_lost(), A) == []
    rig.group_up()
    ((prepare, tensors),) = prepares(rig.evaluate(A, 1, 1))
    assert f"upload.{CONTEXT_DIGEST}.context" in tensors
    assert prepare.evaluate is not None
    assert [type(message) for message in told(rig.run_turn(1, 1), A)] == [Evaluated]


def test_every_job_ends_when_the_group_does_not_come_back() -> None:
    rig = ready_rig()
    rig.upload(B, 3)
    rig.evaluate(B, 3, 0)
    rig.run_turn(3, 0)
    rig.wait(1.0)
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared()
    actions = rig.group_lost(failed=True)
    assert codes(actions, A) == ["worker_died", "group_failed"]
    assert codes(actions, B) == ["group_failed"]
    assert rig.broker.core.accounts.total.jobs == 0


def test_a_loss_of_an_incarnation_that_is_gone_already_changes_nothing() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    before, rig.incarnation = rig.incarnation, job(4321)
    assert rig.group_lost() == []
    rig.incarnation = before
    assert rig.turn_of == job(1)


# --- trajectories on the ranks ------------------------------------------------------------------------------------------------


def test_conditioning_crosses_once_per_trajectory() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    ((_, first),) = prepares(rig.evaluate(A, 1, 0))
    rig.run_turn(1, 0)
    ((_, second),) = prepares(rig.evaluate(A, 1, 1))
    assert f"upload.{CONTEXT_DIGEST}.context" in first
    assert set(second) == {"call.0.x", "call.0.timestep"}


def test_conditioning_that_was_prepared_but_never_went_is_sent_again() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.group_lost()
    ((_, tensors),) = prepares(rig.group_up())
    assert f"upload.{CONTEXT_DIGEST}.context" in tensors


def test_ranks_are_told_once_what_to_forget() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.run_turn(1, 0)
    assert told(rig.release(A, 1), A) == [Ended(job_id=job(1))]
    ((prepare, _),) = prepares(rig.submit(A, 2))
    assert prepare.forget == (job(1),)
    rig.run(2)
    ((prepare, _),) = prepares(rig.submit(A, 3))
    assert prepare.forget == ()


def test_samples_leave_nothing_to_forget_and_neither_does_a_lost_group() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    rig.upload(A, 2)
    rig.evaluate(A, 2, 0)
    rig.run_turn(2, 0)
    rig.group_lost()
    rig.release(A, 2)
    rig.group_up()
    ((prepare, _),) = prepares(rig.submit(A, 3))
    assert prepare.forget == ()


def too_many_frames(rig: Rig) -> list[Action]:
    """Each message is legal; together they are one tensor more than a Prepare may carry."""
    rig.upload(A, 1, TOO_MANY)
    return rig.client(A, evaluate(job(1), 0, digest=content_digest(TOO_MANY)), evaluate_tensors())


def too_long_a_header(rig: Rig) -> list[Action]:
    """A Prepare names every tensor twice: in its specs and among its frames."""
    extra = {f"branch.0.{str(n).rjust(500, 'x')}": f32(1) for n in range(62)}
    return rig.client(A, sample(job(1)), sample_tensors() | extra)


@pytest.mark.parametrize("submit", [too_many_frames, too_long_a_header])
def test_a_job_too_large_for_a_prepare_is_refused_and_costs_the_ranks_no_number(
    submit: Callable[[Rig], list[Action]],
) -> None:
    rig = ready_rig()
    rig.upload(A, 3)
    rig.evaluate(A, 3, 0)
    rig.run_turn(3, 0)
    rig.release(A, 3)
    before = rig.sequence
    actions = submit(rig)
    assert codes(actions, A) == ["bad_request"]
    assert sent_to_ranks(actions) == []
    assert rig.turn_of is None
    ((prepare, _),) = prepares(rig.submit(A, 2))
    assert prepare.sequence == before + 1, "the ranks count: after a gap they do not go on"
    assert prepare.forget == (job(3),), "what was not said yet is said with the next job"


def test_rank_0_alone_hears_a_cancel() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    assert sent_to_ranks(rig.cancel(A, 1)) == [(1, Cancel(job_id=job(1)))]


@pytest.mark.parametrize("ending", ["cancel", "release", "again"])
def test_a_trajectory_that_ends_while_its_ranks_still_leave_a_turn_does_not_block_the_group(ending: str) -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.prepared()
    rig.evaluated(1, 0)
    rig.done([0])
    if ending == "release":
        rig.release(A, 1)
    else:
        rig.cancel(A, 1)
    if ending == "again":
        rig.upload(A, 1)
        rig.evaluate(A, 1, 0)
    rig.submit(B, 2)
    rig.done([1])
    assert rig.turn_of == job(2)
    rig.run(2)
    assert rig.turn_of == (job(1) if ending == "again" else None)
