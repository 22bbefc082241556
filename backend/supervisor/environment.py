"""What the ranks find in their environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .liveness import LIVENESS_VARIABLE

# What torchrun sets itself, and what would confuse it if the daemon was itself started below one.
_NOT_INHERITED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_NOT_INHERITED_PREFIX = "TORCHELASTIC_"
LOOPBACK_INTERFACE = "lo"
MOST_COMPILE_THREADS = 8
"""Processes in which one rank compiles kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnvironment:
    """What is the same for every rank of an incarnation."""

    token: str
    incarnation: str
    group_id: int
    rank_endpoint: str
    shared_folder: str
    """Where ranks of one host keep what they share: only this user's."""
    liveness: str
    init_method: str
    device: str
    transport: str
    world_size: int
    compile: str = "auto"
    """How networks are compiled."""
    compiled_folder: str = ""
    """Where compiled code is kept from one start to the next; empty: where torch keeps it."""
    one_host: bool = True
    """Nothing may leave this machine."""

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the launcher, which hands it on."""
        base = {
            name: value
            for name, value in inherited.items()
            if name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_PREFIX)
        }
        cores = max(1, available_cores() // self.world_size)
        base.setdefault("OMP_NUM_THREADS", str(cores))
        # torch's own default, up to 32 processes, is meant for one process on a machine.
        base.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(MOST_COMPILE_THREADS, cores)))
        base.setdefault("PYTHONUNBUFFERED", "1")
        if self.one_host:
            base |= {"GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE, "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE}
        if self.compiled_folder:
            base |= {
                "TORCHINDUCTOR_CACHE_DIR": self.compiled_folder,
                "TRITON_CACHE_DIR": f"{self.compiled_folder}/triton",
                "TUTTI_CACHE_FOLDER": self.compiled_folder,  # how fast which attention is
            }
        return base | {
            "TUTTI_TOKEN": self.token,
            "TUTTI_INCARNATION": self.incarnation,
            "TUTTI_GROUP_ID": str(self.group_id),
            "TUTTI_RANK_ENDPOINT": self.rank_endpoint,
            "TUTTI_SHARED_FOLDER": self.shared_folder,
            LIVENESS_VARIABLE: self.liveness,
            "TUTTI_INIT_METHOD": self.init_method,
            "TUTTI_DEVICE": self.device,
            "TUTTI_TRANSPORT": self.transport,
            "TUTTI_COMPILE": self.compile,
        }


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
