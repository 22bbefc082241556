"""What clients ask for, and how an id that comes again is answered."""

from __future__ import annotations

import pytest
from tutti.backend.broker.actions import Action, DescribeModel, ForwardClient, Persist, SendClient, SendRanks
from tutti.backend.broker.events import DescribeAnswered, ModelFile
from tutti.backend.broker.settings import Quotas
from tutti.backend.errors import UnknownModel
from tutti.backend.wire.messages import (
    Accepted,
    Describe,
    Done,
    Failed,
    Pong,
    Result,
    Status,
    StatusRequest,
    Upload,
    Welcome,
)

from tests.unit.broker.rig import (
    CONTEXT,
    FILE,
    A,
    B,
    C,
    Rig,
    codes,
    job,
    persisted,
    ready_rig,
    sample,
    sample_tensors,
    told,
)


def test_a_hello_is_answered_with_the_instance_the_state_and_the_lease() -> None:
    rig = Rig()
    (welcome,) = told(rig.hello(A), A)
    assert welcome == Welcome(instance="1" * 32, software="test", state="starting", reason="", lease_s=15.0)


def test_what_comes_before_the_hello_is_refused_so_that_nobody_waits_for_ever() -> None:
    rig = Rig()
    (failed,) = told(rig.submit(C, 1), C)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.job_id) == ("not_ready", job(1))
    (asked,) = told(rig.client(C, StatusRequest(request=5)), C)
    assert isinstance(asked, Failed)
    assert asked.request == 5


def test_a_ping_is_answered_even_before_the_hello() -> None:
    assert told(Rig().ping(C), C) == [Pong(nonce=1, state="starting")]


def test_a_connection_cannot_speak_with_another_key_than_it_said_hello_with() -> None:
    rig = ready_rig()
    actions = rig.client(A, sample(job(1)), sample_tensors(), user="somebody else")
    assert codes(actions, A) == ["not_ready"]


def test_the_ledger_has_a_job_before_anybody_is_told() -> None:
    actions = ready_rig().submit(A, 1)
    kinds = [type(action) for action in actions if not isinstance(action, SendRanks)]
    assert kinds.index(Persist) < kinds.index(SendClient)
    assert persisted(actions)[0] == (job(1), "queued")
    assert told(actions, A) == [Accepted(job_id=job(1), state="queued", ahead=0)]


def test_accepted_tells_how_many_are_before_a_job() -> None:
    rig = ready_rig()
    assert [told(rig.submit(A, n), A)[0] for n in (1, 2, 3)] == [
        Accepted(job_id=job(n), state="queued", ahead=n - 1) for n in (1, 2, 3)
    ]


def test_a_job_is_queued_while_the_group_is_starting_and_runs_when_it_is_up() -> None:
    rig = Rig()
    rig.hello(A)
    rig.group_starts()
    assert isinstance(told(rig.submit(A, 1), A)[0], Accepted)
    assert rig.turn_of is None
    rig.rank(0, rig.rank_hello(0))
    assert rig.turn_of is None
    rig.rank(1, rig.rank_hello(1))
    assert rig.turn_of == job(1)


def test_the_same_sample_again_is_accepted_again_and_runs_once() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    states = []
    for moment in (lambda: None, rig.prepared):
        moment()
        actions = rig.submit(A, 1)
        states += [message.state for message in told(actions, A) if isinstance(message, Accepted)]
        assert not persisted(actions)
    queued = rig.submit(A, 2)
    assert states == ["preparing", "running"]
    assert told(queued, A) == [Accepted(job_id=job(2), state="queued", ahead=1)]
    rig.result(1)
    rig.done()
    rig.run(2)
    assert rig.broker.core.finished == 2


def test_a_done_job_submitted_again_gets_its_kept_result_and_does_not_run() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    actions = rig.submit(A, 1)
    accepted, result = told(actions, A)
    assert accepted == Accepted(job_id=job(1), state="done", ahead=0)
    assert isinstance(result, Result)
    assert rig.turn_of is None


def test_a_result_of_a_checkpoint_that_was_replaced_is_not_handed_out_again() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    replaced = ModelFile(path=FILE.path, fingerprint="f2")
    actions = rig.client(A, sample(job(1)), sample_tensors(), model=replaced)
    assert not any(isinstance(message, Result) for message in told(actions, A))
    assert rig.turn_of == job(1)
    rig.run(1)
    assert rig.broker.core.finished == 2


def test_the_connection_that_asks_again_is_the_one_that_is_told() -> None:
    rig = ready_rig()
    rig.hello(C, client=int.from_bytes(A, "big") + 1)
    rig.submit(A, 1)
    rig.submit(C, 1)
    rig.prepared()
    actions = rig.result(1)
    assert [type(message) for message in told(actions, C)] == [Result]
    assert told(actions, A) == []


@pytest.mark.parametrize("moment", ["queued", "preparing", "running", "done"])
def test_the_same_id_with_other_bytes_is_a_conflict(moment: str) -> None:
    rig = ready_rig()
    if moment == "queued":
        rig.submit(A, 9)
    rig.submit(A, 1)
    if moment in ("running", "done"):
        rig.prepared()
    if moment == "done":
        rig.result(1)
        rig.done()
    before = rig.broker.core.turn
    assert codes(rig.submit(A, 1, fill=5.0), A) == ["job_conflict"]
    assert rig.broker.core.turn is before
    assert codes(rig.submit(A, 1), A) == [], "the job itself is untouched"


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_a_failed_or_cancelled_id_may_come_again_with_any_bytes(ending: str) -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    if ending == "failed":
        rig.prepared()
        rig.failed(1, "out_of_memory")
        rig.done()
    else:
        rig.cancel(A, 1)
    actions = rig.submit(A, 1, fill=5.0)
    assert told(actions, A) == [Accepted(job_id=job(1), state="queued", ahead=0)]
    records = [action.record for action in actions if isinstance(action, Persist)]
    assert records[0].attempt == 2


def test_an_id_of_another_client_is_a_conflict_and_its_result_is_never_told() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    assert codes(rig.submit(B, 1), B) == ["job_conflict"]


def test_a_duplicate_waits_for_its_digest_and_the_first_is_not_held_up() -> None:
    rig = ready_rig()
    rig.answer_digests = False
    rig.submit(A, 1)
    rig.prepared()
    assert told(rig.submit(A, 1), A) == []
    actions = rig.result(1) + rig.done()
    assert [type(message) for message in told(actions, A)] == [Result]
    late = rig.give_digests()
    assert [type(message) for message in told(late, A)] == [Accepted, Result]


def test_a_cancel_is_about_duplicates_too_whose_digest_is_still_being_computed() -> None:
    rig = ready_rig()
    rig.answer_digests = False
    rig.submit(A, 1)
    rig.submit(A, 1)
    assert codes(rig.cancel(A, 1), A) == ["cancelled"]
    assert told(rig.give_digests(), A) == []
    assert rig.turn_of is None


def test_an_unknown_model_is_refused_before_anything_is_kept() -> None:
    rig = ready_rig()
    actions = rig.client(A, sample(job(1)), sample_tensors(), model=UnknownModel("Choose another: it is not there."))
    assert codes(actions, A) == ["unknown_model"]
    assert persisted(actions) == []


def test_a_failed_group_refuses_work_with_its_reason() -> None:
    rig = ready_rig()
    rig.group_lost(failed=True)
    (failed,) = told(rig.submit(A, 1), A)
    assert isinstance(failed, Failed)
    assert failed.code == "group_failed"
    assert "rank 1 was killed by signal 9" in failed.message


def test_a_client_cannot_have_more_open_jobs_than_its_quota() -> None:
    rig = ready_rig(quotas=Quotas(client_jobs=2))
    rig.submit(A, 1)
    rig.submit(A, 2)
    assert codes(rig.submit(A, 3), A) == ["queue_full"]
    assert codes(rig.submit(B, 4), B) == [], "another client has its own"
    rig.run(1)
    assert codes(rig.submit(A, 3), A) == []


def test_a_jobs_bytes_count_until_it_is_answered() -> None:
    size = 16 * 4 + 12 + 400
    rig = ready_rig(quotas=Quotas(client_bytes=2 * size))
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared()
    assert codes(rig.submit(A, 3), A) == ["queue_full"]
    rig.result(1)
    assert codes(rig.submit(A, 3), A) == []


def test_no_digest_is_computed_before_the_first_answer() -> None:
    """Hashing would take a core from the first step."""
    rig = ready_rig()
    rig.answer_digests = False
    rig.submit(A, 1)
    rig.prepared()
    assert rig.digests == []
    rig.result(1)
    assert len(rig.digests) == 1


def test_all_clients_together_have_a_quota_too() -> None:
    rig = ready_rig(quotas=Quotas(total_jobs=2))
    rig.submit(A, 1)
    rig.submit(B, 2)
    assert codes(rig.submit(A, 3), A) == ["queue_full"]


def test_uploads_count_and_are_given_back_when_the_trajectory_ends() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    core = rig.broker.core
    owner = core.connections.owner(A)
    assert owner is not None
    assert core.accounts.of(owner).bytes > 0
    rig.evaluate(A, 1, 0)
    rig.run_turn(1, 0)
    rig.release(A, 1)
    assert (core.accounts.of(owner).jobs, core.accounts.of(owner).bytes) == (0, 0)


def test_uploads_that_no_evaluate_follows_are_dropped_after_a_lease() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    rig.ping(A)
    rig.wait(16.0)
    rig.ping(A)
    assert rig.broker.core.accounts.total.bytes == 0
    assert codes(rig.evaluate(A, 1, 0), A) == ["bad_request"]


def test_a_trajectory_cannot_upload_without_end() -> None:
    rig = ready_rig(quotas=Quotas(trajectory_uploads=1))
    rig.upload(A, 1)
    other = {"pooled": CONTEXT["context"]}
    assert codes(rig.upload(A, 1, other), A) == ["bad_request"]


def test_an_upload_whose_content_is_not_what_it_claims_is_refused() -> None:
    rig = ready_rig()
    actions = rig.upload(A, 1, digest=job(99))
    assert codes(actions, A) == ["bad_request"]
    assert rig.broker.core.accounts.total.bytes == 0


def test_describe_is_handed_to_the_catalog() -> None:
    actions = ready_rig().client(A, Describe(request=3, model="diffusion_models/x.safetensors"))
    assert [(type(a).__name__, getattr(a, "request", None)) for a in actions] == [("DescribeModel", 3)]


def describe(rig: Rig, peer: bytes, request: int, user: str = "local") -> list[Action]:
    return rig.client(peer, Describe(request=request, model=""), user=user)


def looked_up(actions: list[Action]) -> int:
    return sum(isinstance(action, DescribeModel) for action in actions)


def test_a_flood_of_describes_is_refused_beyond_what_may_wait_and_goes_on_when_they_are_answered() -> None:
    rig = ready_rig(quotas=Quotas(connection_describes=3))
    answers = [describe(rig, A, request) for request in range(1, 1001)]
    assert sum(map(looked_up, answers)) == 3
    (refused,) = told(answers[3], A)
    assert isinstance(refused, Failed)
    assert (refused.code, refused.request) == ("queue_full", 4)
    assert looked_up(describe(rig, B, 1)) == 1, "another connection is not held up"
    rig.give(DescribeAnswered(peer=A, user="local"))
    assert [looked_up(describe(rig, A, request)) for request in (1001, 1002)] == [1, 0]


def test_many_connections_of_one_key_share_a_bound_on_describes() -> None:
    rig = ready_rig(quotas=Quotas(connection_describes=3, user_describes=5))
    asked = 0
    for number in range(10):
        peer = b"P%d" % number
        rig.hello(peer)
        asked += sum(looked_up(describe(rig, peer, request)) for request in range(1, 4))
    assert asked == 5
    rig.hello(C, user="another key")
    assert looked_up(describe(rig, C, 1, user="another key")) == 1


def test_describes_that_were_answered_leave_no_count_behind() -> None:
    rig = ready_rig()
    for _ in range(3):
        describe(rig, A, 1)
        rig.give(DescribeAnswered(peer=A, user="local"))
    describes = rig.broker.core.describes
    assert (len(describes), describes._by_connection, describes._by_user) == (0, {}, {})


def test_status_shows_ranks_jobs_and_counts() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    for number in (2, 3):
        rig.submit(A, number)
    (status,) = told(rig.client(B, StatusRequest(request=1)), B)
    assert isinstance(status, Status)
    assert (status.state, status.queued, status.finished, status.restarts) == ("busy", 1, 1, 0)
    assert [(entry.job_id, entry.state) for entry in status.jobs] == [(job(2), "preparing"), (job(3), "queued")]
    assert [(rank.rank, rank.pid, rank.memory_bytes) for rank in status.ranks] == [(0, 100, 1), (1, 101, 1)]
    assert status.resident == ("diffusion_models/m.safetensors",)


def test_a_message_that_clients_do_not_send_changes_nothing() -> None:
    rig = ready_rig()
    assert rig.client(A, Done(sequence=1, memory_bytes=0, resident=())) == []


def test_the_kept_result_of_a_vanished_client_waits_for_it() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    rig.wait(20.0)
    assert not [action for action in rig.result(1) if isinstance(action, ForwardClient)]
    rig.done()
    rig.hello(C, client=int.from_bytes(A, "big") + 1)
    assert [type(message) for message in told(rig.submit(C, 1), C)] == [Accepted, Result]


def test_results_are_kept_for_ten_minutes() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    rig.wait(599.0)
    assert [type(message) for message in told(rig.submit(A, 1), A)] == [Accepted, Result]
    rig.wait(2.0)
    assert told(rig.submit(A, 1), A) == [Accepted(job_id=job(1), state="queued", ahead=0)], "it runs again"


def test_kept_results_are_bounded_in_bytes_and_the_oldest_goes() -> None:
    rig = ready_rig(kept_bytes=700)
    for number in (1, 2, 3):
        rig.submit(A, number)
        rig.run(number)
    kept = [number for number in (1, 2, 3) if rig.broker.core.jobs.get(job(number))]
    assert kept == [2, 3]


def test_an_upload_under_the_id_of_a_sample_is_refused() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    assert codes(rig.upload(A, 1), A) == ["unknown_job"]
    assert isinstance(Upload(job_id=job(1), digest=job(2)), Upload)
