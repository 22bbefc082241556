"""The worker group as one rank sees it: process groups, meshes and transport, built once per process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..compression.policy import LAYER_GROUPS
from ..errors import BadPlan, InternalError
from .mesh import SequenceMesh, build_meshes
from .plan import Plan
from .transport import Transport, choose_transport, gather_bytes

CONTROL_WORDS = 16 + LAYER_GROUPS
"""Words of the control vector; the last ones are errors of compressed exchange, by layer group."""

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others inside a collective before the group is given up. (Ranks without work wait on a socket.)"""


class WorkerGroup:
    """This process' place in the group. Made by :meth:`start`."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        control: ProcessGroup,
        transport: Transport,
        meshes: Mapping[Plan, SequenceMesh],
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.control = control
        self.transport = transport
        self._meshes = dict(meshes)
        self._any_mesh = next(iter(meshes.values()))  # the first one has cfg=1: its sequence is on all ranks

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._any_mesh.device

    @classmethod
    def start(
        cls, *, rank: int, world_size: int, init_method: str, device: torch.device, transport: str | None = None
    ) -> WorkerGroup:
        """Join the group: process groups for control (gloo, CPU) and for data, and the mesh of every plan. Collective.

        ``init_method`` is torch's (``file:///...`` opens no port); ``transport`` overrides the automatic choice.
        Gloo listens on the interface that ``GLOO_SOCKET_IFNAME`` names: whoever starts ranks of one host sets it to the loopback.
        """
        chosen = choose_transport(transport, device, world_size)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "gloo", init_method=init_method, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
        )
        control = dist.group.WORLD
        if control is None:
            raise InternalError("torch.distributed came up without a process group.")

        def new_group(ranks: list[int]) -> ProcessGroup:
            group: ProcessGroup = dist.new_group(ranks, backend=chosen.backend, timeout=COLLECTIVE_TIMEOUT)
            return group

        return cls(rank, world_size, control, chosen, build_meshes(rank, world_size, device, chosen, new_group))

    def mesh(self, plan: Plan) -> SequenceMesh:
        """The mesh of a plan; raises :class:`BadPlan` for one that does not use exactly this group."""
        if plan.split not in self._meshes:
            legal = "; ".join(str(known) for known in self._meshes if known == known.split)
            raise BadPlan(f"Choose a plan for {self.world_size} rank(s): {plan} is none. Plans of this group: {legal}.")
        if plan not in self._meshes:
            self._meshes[plan] = replace(self._meshes[plan.split], plan=plan)
        return self._meshes[plan]

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        """Overwrite ``tensor`` (contiguous, on :attr:`device`) with that of rank ``src``. Collective."""
        if self.world_size > 1:
            self.transport.broadcast(tensor, src, self._any_mesh.sequence.process_group)

    def exchange_control(self, vector: Tensor) -> Callable[[], Tensor]:
        """Begin to gather all ranks' control vectors. Collective.

        What it returns waits for them: int64 ``[world_size, CONTROL_WORDS]`` on the CPU, row ``i`` from rank ``i``.
        """
        if vector.shape != (CONTROL_WORDS,) or vector.dtype != torch.int64 or vector.device.type != "cpu":
            raise InternalError(
                f"A control vector is int64[{CONTROL_WORDS}] on the CPU, not {vector.dtype}{list(vector.shape)}."
            )
        everyone = vector.new_empty(self.world_size, CONTROL_WORDS)
        own = vector.contiguous()
        work = gather_bytes(everyone, own, self.control, wait=False)

        def wait() -> Tensor:
            if work is not None:
                work.wait()
            return everyone

        return wait

    def close(self) -> None:
        """Leave the group. Every rank waits for the others first: a rank that tears down early kills a collective of a slower one."""
        dist.barrier(group=self.control)
        dist.destroy_process_group()
