"""What the broker's state machine is told once, at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How much may wait in the daemon at once. Whoever asks for more is answered QueueFull."""

    client_jobs: int = 64
    """Open jobs of one client, and those that it gave up and the ranks have not read yet."""
    client_bytes: int = 1024 * MIB
    """Bytes of one client's waiting jobs and uploads, those whose model is being looked up included."""
    user_jobs: int = 256
    """Open jobs of all clients of one key: who holds a key can give as many client ids as there are."""
    user_bytes: int = 1536 * MIB
    """Bytes of all clients of one key; less than ``total_bytes``, so that no key can fill the daemon alone."""
    total_jobs: int = 1024
    """Open jobs of all clients."""
    total_bytes: int = 2048 * MIB
    """Bytes of all clients' waiting jobs and uploads."""
    trajectory_uploads: int = 64
    """Uploads of one Evaluate trajectory."""
    connection_describes: int = 8
    """Describes of one connection that have not been answered."""
    user_describes: int = 64
    """Describes of all connections of one key that have not been answered."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Everything that does not change while a daemon runs."""

    instance: str
    """128 bits in hexadecimal, new at every start."""
    software: str
    """``tutti 0.1.0``"""
    world_size: int
    """Ranks of the worker group."""
    plan: str = "auto"
    """For jobs that name no plan."""
    device: str = "cpu"
    """What the ranks compute on: ``cpu`` or ``cuda``."""
    compile: str = "auto"
    """How the ranks compile, as they were told."""
    lease_s: float = 15.0
    """A client that is silent for so long has vanished."""
    hold_s: float = 0.5
    """How long the group stays with a trajectory after an Evaluate reply."""
    hold_longest_s: float = 60.0
    """After so long in a row with one client, whatever its trajectories, another client that waits gets its turn all the same."""
    kept_s: float = 600.0
    """How long a result is kept for a client that asks again."""
    kept_bytes: int = 8 * MIB
    """Bytes of results kept although they were handed to their client."""
    kept_for_absent_bytes: int = 512 * MIB
    """Bytes of results kept for clients that were away when they came."""
    drain_s: float = 25.0
    """How long open jobs may go on once the daemon is told to stop."""
    prepare_s: float = 120.0
    """How long a rank may owe the answer to a Prepare while nothing is heard of it, its loading included."""
    leave_s: float = 120.0
    """How long the ranks may take to leave a job that was cancelled or answered; in a Sample at least twice its longest step. They leave
    before the next model call, and one call of a video model on a CPU takes a minute: a group that works must not be taken for one that
    hangs."""
    compiling_s: float = 600.0
    """Likewise while a network is compiled: ranks leave when that is over, and its first calls may take minutes."""
    quotas: Quotas = field(default_factory=Quotas)

    def __post_init__(self) -> None:
        for name in ("prepare_s", "leave_s", "compiling_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
