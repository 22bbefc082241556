"""What the daemon holds counts for somebody until it is let go of: behind an Abort, behind a Cancel, and while it is hashed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tutti.backend.broker.quotas import Accounts
from tutti.backend.broker.settings import Quotas
from tutti.backend.wire.messages import Accepted, Refused

from tests.unit.broker.rig import CONTEXT, CONTEXT_DIGEST, A, B, Rig, codes, job, ready_rig, told

ROUNDS = 50
FULL = ["queue_full"]


def nothing_counts(rig: Rig) -> bool:
    """For nobody: what is left over would be left over for ever."""
    return rig.broker.core.accounts == Accounts(rig.settings.quotas)


def until_refused(attempt: Callable[[int], list[str]]) -> int:
    """How often something can be done before the quota is used up."""
    for number in range(1, ROUNDS + 1):
        if attempt(number) == FULL:
            return number - 1
    raise AssertionError(f"it was taken {ROUNDS} times")


# --- behind an Abort ----------------------------------------------------------------------------------------------------------


def submit_and_cancel(rig: Rig, number: int, peer: bytes = A) -> list[str]:
    refused = codes(rig.submit(peer, number), peer)
    rig.cancel(peer, number)
    return refused


@pytest.mark.parametrize("quotas", [Quotas(client_jobs=5), Quotas(client_bytes=3000)], ids=["jobs", "bytes"])
def test_prepares_that_were_aborted_count_until_the_ranks_have_read_them(quotas: Quotas) -> None:
    rig = ready_rig(quotas=quotas)
    taken = until_refused(lambda number: submit_and_cancel(rig, number))
    assert 1 < taken < 10
    assert len(rig.broker.core.unread) == taken
    assert submit_and_cancel(rig, 99, peer=B) == [], "another client is not meant"
    rig.prepared([0])
    assert submit_and_cancel(rig, 1) == FULL, "rank 1 still has them all before it"
    rig.prepared()
    assert nothing_counts(rig)
    assert codes(rig.submit(A, 1), A) == []


def test_what_was_read_counts_no_longer_and_what_was_not_does() -> None:
    rig = ready_rig()
    submit_and_cancel(rig, 1)
    first = rig.sequence
    submit_and_cancel(rig, 2)
    for rank in rig.ranks:
        rig.rank(rank, Refused(sequence=first, code="bad_plan", message="no"))
    assert len(rig.broker.core.unread) == 1
    assert not nothing_counts(rig)


def test_a_prepare_that_every_rank_answered_before_its_abort_does_not_count() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared([0])
    rig.rank(1, Refused(sequence=1, code="bad_plan", message="no"))
    assert nothing_counts(rig)


def test_prepares_that_nobody_will_read_count_no_longer() -> None:
    rig = ready_rig()
    for number in (1, 2, 3):
        submit_and_cancel(rig, number)
    rig.group_lost()
    assert nothing_counts(rig)


def test_conditioning_that_was_sent_with_an_aborted_turn_counts_with_it() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    before = rig.broker.core.accounts.total.bytes
    rig.evaluate(A, 1, 0)
    rig.cancel(A, 1)
    context = sum(memoryview(tensor.data).nbytes for tensor in CONTEXT.values())
    assert rig.broker.core.unread.size_bytes > context
    assert rig.broker.core.accounts.total.bytes > before
    rig.prepared()
    assert nothing_counts(rig)


# --- behind a Cancel ----------------------------------------------------------------------------------------------------------


def rig_being_cancelled(size_bytes: int) -> Rig:
    """Job 1 of client A is being left by the ranks; its quota has room for so many bytes more than the job has."""
    rig = ready_rig()
    rig.submit(A, 1)
    rig.prepared()
    rig.cancel(A, 1)
    taken = rig.broker.core.accounts.total.bytes
    rig.broker.core.accounts.quotas = Quotas(client_bytes=taken + size_bytes)
    return rig


def test_a_submission_that_waits_for_a_cancel_has_to_fit_into_the_quota() -> None:
    rig = rig_being_cancelled(10)
    assert codes(rig.submit(A, 1), A) == FULL
    rig.failed(1, "cancelled")
    assert codes(rig.done(), A) == ["cancelled"]
    assert nothing_counts_but_quotas(rig)


def test_one_that_fits_takes_the_place_of_the_one_before_and_a_refused_one_does_not() -> None:
    rig = rig_being_cancelled(1000)
    for fill in (0.0, 1.0, 2.0, 3.0, 4.0):
        assert codes(rig.submit(A, 1, fill=fill), A) == []
    rig.broker.core.accounts.quotas = Quotas(client_bytes=1)
    assert codes(rig.submit(A, 1), A) == FULL
    rig.broker.core.accounts.quotas = Quotas()
    rig.failed(1, "cancelled")
    assert told(rig.done(), A)[-1] == Accepted(job_id=job(1), state="queued", ahead=0)
    rig.run(1)
    assert nothing_counts(rig)


def test_a_trajectory_that_cannot_be_begun_again_for_its_size_is_not_ended() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    for turn in (0, 1):
        rig.evaluate(A, 1, turn)
        rig.run_turn(1, turn)
    rig.broker.core.accounts.quotas = Quotas(client_bytes=rig.broker.core.accounts.total.bytes + 1000)
    rig.answer_digests = False
    rig.evaluate(A, 1, 0)
    rig.broker.core.accounts.quotas = Quotas(client_bytes=1)
    assert codes(rig.give_digests(), A) == FULL
    assert rig.broker.core.jobs.get(job(1)) is not None


def nothing_counts_but_quotas(rig: Rig) -> bool:
    """The rig's quota was changed on the way."""
    return rig.broker.core.accounts == Accounts(rig.broker.core.accounts.quotas)


# --- while it is hashed -------------------------------------------------------------------------------------------------------


def rig_that_hashes_slowly() -> Rig:
    """The group works for B; whatever A asks for waits in the queue, and its digests in theirs."""
    rig = ready_rig(quotas=Quotas(client_bytes=6000))
    rig.submit(B, 900)
    rig.answer_digests = False
    return rig


def test_a_submission_that_was_taken_back_counts_until_its_digest_has_come() -> None:
    rig = rig_that_hashes_slowly()

    def attempt(_: int) -> list[str]:
        refused = codes(rig.submit(A, 1) + rig.submit(A, 1), A)
        rig.cancel(A, 1)
        return refused

    assert 1 < until_refused(attempt) < 20
    rig.answer_digests = True
    assert codes(rig.give_digests(), A) == []
    rig.run(900)
    assert nothing_counts(rig)


def test_an_upload_counts_until_its_digest_has_come_even_if_its_trajectory_has_ended() -> None:
    rig = rig_that_hashes_slowly()

    def attempt(number: int) -> list[str]:
        refused = codes(rig.upload(A, number), A)
        rig.evaluate(A, number, 0)
        rig.cancel(A, number)
        return refused

    assert 1 < until_refused(attempt) < 40
    rig.answer_digests = True
    rig.give_digests()
    rig.run(900)
    rig.wait(16.0)  # uploads that nobody opened a trajectory for
    assert nothing_counts(rig)


def test_a_client_may_upload_its_whole_quota_in_a_row_however_slowly_it_is_hashed() -> None:
    rig = rig_that_hashes_slowly()
    rig.upload(A, 1)
    owner = rig.broker.core.connections.owner(A)
    assert owner is not None
    one = rig.broker.core.accounts.of(owner).bytes
    most = rig.settings.quotas.client_bytes // one
    assert most > 3
    assert until_refused(lambda number: codes(rig.upload(A, 1 + number), A)) == most - 1
    rig.give_digests()
    rig.wait(16.0)
    assert rig.broker.core.accounts.of(owner).bytes == 0


def test_a_job_and_its_digest_count_once_before_and_after_the_job_lets_go() -> None:
    rig = rig_that_hashes_slowly()
    owner = rig.broker.core.connections.owner(A)
    assert owner is not None
    usage = rig.broker.core.accounts.of
    rig.submit(A, 1)
    size_bytes = usage(owner).bytes
    rig.run(900)
    rig.prepared()
    rig.result(1)
    assert (usage(owner).jobs, usage(owner).bytes) == (0, size_bytes), "it is hashed"
    rig.done()
    rig.give_digests()
    assert nothing_counts(rig)


def test_a_turn_that_is_dropped_is_not_taken_for_the_one_that_is_hashed() -> None:
    """Of a trajectory only turn 0 is hashed; what it holds counts once, whatever becomes of later turns."""
    rig = ready_rig()
    rig.upload(A, 1)
    rig.answer_digests = False
    rig.evaluate(A, 1, 0)
    rig.run_turn(1, 0)
    before = rig.broker.core.accounts.total.bytes
    rig.evaluate(A, 1, 1)
    rig.run_turn(1, 1)
    assert rig.broker.core.accounts.total.bytes == before
    rig.release(A, 1)
    assert rig.broker.core.accounts.total.bytes > 0, "turn 0 is still hashed"
    rig.give_digests()
    assert nothing_counts(rig)


def test_the_digest_of_an_upload_says_nothing_about_another_that_came_under_its_name() -> None:
    rig = rig_that_hashes_slowly()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.cancel(A, 1)
    rig.upload(A, 1, {"context": CONTEXT["context"], "more": CONTEXT["context"]}, digest=CONTEXT_DIGEST)
    honest, *others = rig.digests
    rig.digests = [honest]
    rig.give_digests()
    owner = rig.broker.core.connections.owner(A)
    assert owner is not None
    upload = rig.broker.core.uploads.get((owner, job(1)), CONTEXT_DIGEST)
    assert upload is not None
    assert not upload.checked
    rig.digests = others
    assert codes(rig.give_digests(), A) == ["bad_request"]
