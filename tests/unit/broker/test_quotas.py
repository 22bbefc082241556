"""What may wait in the daemon: of one client, of one key with all the clients it invents, and of everybody."""

from __future__ import annotations

import pytest
from tutti.backend.broker.quotas import Accounts
from tutti.backend.broker.settings import MIB, Quotas
from tutti.backend.errors import QueueFull
from tutti.backend.wire.messages import Failed

from tests.unit.broker.rig import A, Rig, codes, ready_rig, told


def from_invented_clients(rig: Rig, count: int, user: str) -> list[str]:
    """One job of each of ``count`` clients that share a key; returns what they were refused with."""
    refused: list[str] = []
    for number in range(1, count + 1):
        peer = f"{user} {number}".encode()
        rig.hello(peer, client=number, user=user)
        refused += codes(rig.submit(peer, len(user) * 1000 + number), peer)
    return refused


def test_a_key_that_invents_clients_has_no_more_jobs_than_its_quota_and_leaves_others_theirs() -> None:
    rig = ready_rig(quotas=Quotas(client_jobs=2, user_jobs=5, total_jobs=20))
    assert from_invented_clients(rig, 8, "greedy") == ["queue_full"] * 3
    assert from_invented_clients(rig, 4, "polite one") == []
    assert codes(rig.submit(A, 1), A) == [], "nor is the local key meant"


def test_the_bytes_of_a_key_are_bounded_whatever_its_clients_call_themselves() -> None:
    rig = ready_rig(quotas=Quotas(user_bytes=3000))
    refused = from_invented_clients(rig, 20, "greedy")
    assert 0 < len(refused) < 20
    assert set(refused) == {"queue_full"}
    assert rig.broker.core.accounts.total.bytes <= 3000


def test_the_client_is_told_that_its_key_is_meant_and_not_what_others_do() -> None:
    rig = ready_rig(quotas=Quotas(user_jobs=1))
    rig.submit(A, 1)
    (failed,) = told(rig.submit(A, 2), A)
    assert isinstance(failed, Failed)
    expected = (
        "Wait until some of the jobs under your key are done: 1 are open or still being let go of, 1 are allowed."
    )
    assert failed.message == expected


def test_a_job_that_ends_makes_room_for_its_key() -> None:
    rig = ready_rig(quotas=Quotas(user_jobs=1))
    rig.submit(A, 1)
    assert codes(rig.submit(A, 2), A) == ["queue_full"]
    rig.run(1)
    assert codes(rig.submit(A, 2), A) == []


def test_accounts_that_are_settled_leave_nothing_behind() -> None:
    accounts, quotas = Accounts(Quotas()), Quotas()
    owners = [("key", "one"), ("key", "two"), ("other", "one")]
    for owner in owners:
        accounts.take(owner, jobs=1, size_bytes=5)
    for owner in owners:
        assert accounts != Accounts(quotas)
        accounts.give_back(owner, jobs=1, size_bytes=5)
    assert accounts == Accounts(quotas)


def test_no_key_can_fill_the_daemon_alone_by_default() -> None:
    quotas = Quotas()
    assert quotas.client_jobs < quotas.user_jobs < quotas.total_jobs
    assert quotas.client_bytes < quotas.user_bytes < quotas.total_bytes
    accounts = Accounts(quotas)
    accounts.take(("key", "one"), size_bytes=quotas.user_bytes)
    with pytest.raises(QueueFull, match="they hold 1536 of 1536 MiB"):
        accounts.check(("key", "two"), jobs=0, size_bytes=MIB)
    accounts.check(("other", "one"), jobs=1, size_bytes=MIB)
