"""Whose turn is next.

Among keys with work waiting, the one that has waited longest since its last turn goes first; among the clients of a key likewise; within
a client, first come first served. After an Evaluate reply the group stays with that client for a moment, so that a loop in it does not lose its place at every
step: with that trajectory, or with another job of the same client, if one waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from .clients import ClientKey

REMEMBERED = 4096
"""Keys, and clients, whose last turn is remembered."""


Who = TypeVar("Who")


@dataclass(slots=True)
class Hold:
    """The group stays with one client, in the first place with one trajectory of it."""

    owner: ClientKey
    job_id: str
    since_s: float
    """When it began to have the group to itself."""
    until_s: float


class LastTurns(Generic[Who]):
    """Who had a turn when, of those that had one lately."""

    def __init__(self) -> None:
        self._number: dict[Who, int] = {}
        self._turns = 0

    def note(self, who: Who) -> None:
        """It is its turn."""
        self._turns += 1
        self._number.pop(who, None)
        self._number[who] = self._turns
        if len(self._number) > REMEMBERED:
            del self._number[next(iter(self._number))]

    def of(self, who: Who) -> int:
        """Grows with every turn that is given; 0 for who never had one."""
        return self._number.get(who, 0)


@dataclass(slots=True)
class TurnQueue:
    """Jobs that wait for a turn."""

    hold_s: float
    hold_longest_s: float
    _waiting: dict[ClientKey, deque[str]] = field(default_factory=dict)
    """Clients with work waiting, in order of arrival."""
    _clients: LastTurns[ClientKey] = field(default_factory=LastTurns)
    _users: LastTurns[str] = field(default_factory=LastTurns)
    _hold: Hold | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, owner: ClientKey, job_id: str, *, first: bool = False) -> None:
        """Queue a job, at the head of its client's queue if ``first``."""
        queue = self._waiting.setdefault(owner, deque())
        if first:
            queue.appendleft(job_id)
        else:
            queue.append(job_id)

    def remove(self, owner: ClientKey, job_id: str) -> None:
        """Take a job out that will not run."""
        self._waiting[owner].remove(job_id)
        if not self._waiting[owner]:
            del self._waiting[owner]

    def order(self) -> list[str]:
        """Job ids in the order in which they would run if nothing else came."""
        return _in_rounds(
            [_in_rounds([self._waiting[owner] for owner in clients]) for clients in self._clients_by_key()]
        )

    def choose(self, now_s: float, may_run: Callable[[str], bool]) -> str | None:
        """The job that runs next, taken out of the queue; None if none can run or the group is being held.

        A job that may not run yet is passed over: its client's next one, the next client, or the next key goes before it.
        """
        hold = self._current_hold(now_s)
        if hold:
            waiting = self._waiting.get(hold.owner, ())
            first = [hold.job_id] if hold.job_id in waiting else []
            job_id = next(filter(may_run, (*first, *waiting)), None)
            return None if job_id is None else self._take(hold.owner, job_id)
        for owner in chain.from_iterable(self._clients_by_key()):
            for job_id in self._waiting[owner]:
                if may_run(job_id):
                    return self._take(owner, job_id)
        return None

    def _take(self, owner: ClientKey, job_id: str) -> str:
        self.remove(owner, job_id)
        self._clients.note(owner)
        self._users.note(owner[0])
        return job_id

    def hold_for(self, owner: ClientKey, job_id: str, now_s: float) -> None:
        """An Evaluate of this trajectory was answered: the group stays with it, and with its client, for ``hold_s``."""
        again = self._hold is not None and self._hold.owner == owner
        since_s = self._hold.since_s if again and self._hold else now_s
        self._hold = Hold(owner, job_id, since_s, now_s + self.hold_s)

    def release(self, job_id: str) -> None:
        """This trajectory ended: nobody waits for it."""
        if self._hold and self._hold.job_id == job_id:
            self._hold = None

    def held_until_s(self) -> float | None:
        """When the hold ends for whoever waits."""
        if self._hold is None:
            return None
        longest_s = self._hold.since_s + self.hold_longest_s
        return min(self._hold.until_s, longest_s) if self._others_wait(self._hold.owner) else self._hold.until_s

    def _current_hold(self, now_s: float) -> Hold | None:
        if self._hold and now_s >= self._hold.until_s:
            self._hold = None
        if self._hold and now_s - self._hold.since_s >= self.hold_longest_s and self._others_wait(self._hold.owner):
            self._hold = None
        return self._hold

    def _others_wait(self, owner: ClientKey) -> bool:
        return any(other != owner for other in self._waiting)

    def _clients_by_key(self) -> list[list[ClientKey]]:
        """Clients with work waiting, those of a key together, in the order of their next turns."""
        by_key: dict[str, list[ClientKey]] = {}
        # A dict keeps the order of arrival and sorting is stable: who never had a turn goes first, by arrival.
        for owner in sorted(self._waiting, key=self._clients.of):
            by_key.setdefault(owner[0], []).append(owner)
        return [by_key[user] for user in sorted(by_key, key=self._users.of)]


def _in_rounds(queues: Sequence[Sequence[str]]) -> list[str]:
    """One of each, and again, until all are empty."""
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
