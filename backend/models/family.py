"""One transformer architecture as a declaration, and the one adapter that runs them all.

A family says how it is recognised, how large it is, where its parameters lie, which diffusers network it is, what it takes, what of it is split,
and how ComfyUI's inputs become the network's. Everything else is here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ..compression.store import ResidualCall
from ..errors import InternalError
from ..parallel.compile import Compiler
from ..parallel.hooks import Gather, Split, SplitOutput
from ..parallel.mesh import SequenceMesh
from ..parallel.seam import Binding, bind
from .adapter import CallSpec, Option
from .checkpoint import Checkpoint, Source
from .inputs import Inputs
from .keys import KeyMap, spelled_as_in

Geometry = TypeVar("Geometry")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """One call as ComfyUI's network would get it, on the rank's device and in the compute dtype."""

    x: Tensor
    timestep: Tensor
    """float32 ``[batch]``, ``[batch, frames]`` or ``[batch, positions, 1]``."""
    conditioning: Mapping[str, Tensor]
    options: Mapping[str, Option]

    def rows(self, chosen: Tensor) -> ModelCall:
        """The call of some pictures of the batch. References of one picture for all stay."""
        batch = len(self.x)
        conditioning = {
            name: tensor[chosen] if len(tensor) == batch else tensor for name, tensor in self.conditioning.items()
        }
        return replace(self, x=self.x[chosen], timestep=self.timestep[chosen], conditioning=conditioning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """A call as diffusers' network takes it."""

    arguments: Mapping[str, Any]
    """Of the network's ``forward``."""
    streams: Mapping[str, int]
    """Token streams and their lengths, in the order in which the joint attention sees them."""
    finish: Callable[[Tensor], Tensor]
    """The network's output -> the velocity, ``[batch, channels, ...]`` like x."""


class Family(ABC, Generic[Geometry]):
    """One architecture. Subclasses are declarations: they keep nothing between calls."""

    name: ClassVar[str]
    """On the wire: lower case, digits, underscores."""
    label: ClassVar[str]
    """For people."""
    original_marks: ClassVar[Sequence[str]]
    """Tensors that every file in the original naming has (that of the authors' code and of ComfyUI); empty where it is diffusers'."""
    diffusers_marks: ClassVar[Sequence[str]]
    """Tensors that every file in diffusers' naming has."""
    relatives: ClassVar[tuple[str, ...]] = ()
    """How names begin that this family lacks and its relatives have."""
    spellings: ClassVar[Mapping[str, str]] = {}
    """Ends of original names -> other ends for the same."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Tensors that published files have and that no network of this family reads: they may be there."""
    splits: ClassVar[Sequence[Split | SplitOutput]]
    """What is cut along its tokens."""
    gather: ClassVar[Gather]
    """What is put together again."""

    @abstractmethod
    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> Geometry:
        """Everything that this family's checkpoints differ in, read off the shapes. Raises ``BadCheckpoint``.

        ``named`` gives this file's name for a parameter of diffusers' network.
        """

    @abstractmethod
    def key_map(self, geometry: Geometry | None) -> KeyMap:
        """diffusers' names -> the original ones. Without a geometry only the names count, not the rows."""

    @abstractmethod
    def num_heads(self, geometry: Geometry) -> int:
        """Attention heads: what a ulysses degree must divide."""

    @abstractmethod
    def network(self, geometry: Geometry) -> Any:
        """diffusers' network, with what ComfyUI computes differently replaced. Called on the meta device."""

    @abstractmethod
    def inputs(self, geometry: Geometry) -> Inputs:
        """What a checkpoint of this geometry takes."""

    @abstractmethod
    def is_joint_attention(self, name: str) -> bool:
        """Whether the attention of this module name sees the tokens of all ranks. Others stay local: they see whole streams on every rank."""

    def streams_of(self, name: str) -> Sequence[str]:
        """The streams that the joint attention of this module name sees; empty: all of them."""
        return ()

    @abstractmethod
    def arrange(self, network: Any, geometry: Geometry, call: ModelCall) -> Arranged:
        """ComfyUI's inputs -> the network's."""

    def check(self, geometry: Geometry, request: CallSpec) -> None:
        """What :meth:`inputs` cannot say: which of a call's tensors must fit one another. Runs after its check, and raises the same."""

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        """What shapes do not say: masks that the network cannot follow. Raises like :meth:`check`."""

    def alike(self, call: ModelCall) -> list[Tensor]:
        """Pictures that can share a forward pass, as int64 row numbers; empty: all of them.

        A family whose rows have token masks of their own puts rows of one length together. The same on every rank.
        """
        return []

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the tensor names (prefix taken off) are this family's and no relative's; reads no tensor."""
        if self.relatives and any(name.startswith(self.relatives) for name in checkpoint.names):
            return False
        return self.is_original(checkpoint) or all(name in checkpoint for name in self.diffusers_marks)

    def is_original(self, checkpoint: Checkpoint) -> bool:
        """Whether the file's names are the original ones."""
        return bool(self.original_marks) and all(name in checkpoint for name in self.original_marks)

    def sources(self, checkpoint: Checkpoint, geometry: Geometry | None) -> Callable[[str], Source]:
        """For a parameter of the network, where it lies in this file."""
        if not self.is_original(checkpoint):
            return Source
        return spelled_as_in(checkpoint, self.key_map(geometry).source, self.spellings)

    def geometry_of(self, checkpoint: Checkpoint) -> Geometry:
        """The geometry of a file, whichever its naming. Raises ``BadCheckpoint``."""
        find = self.sources(checkpoint, None)
        return self.geometry(checkpoint, lambda parameter: find(parameter).name)

    def empty_network(self, geometry: Geometry) -> Any:
        """The network on the meta device, ready for its weights."""
        with torch.device("meta"):
            network = self.network(geometry)
        return network.requires_grad_(False).eval()


class TransformerAdapter:
    """A family's network with its weights. See :class:`.adapter.Adapter`."""

    def __init__(
        self, family: Family[Any], network: Any, geometry: Any, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.family = family
        self.network = network
        self.geometry = geometry
        self.dtype = dtype
        self.device = device
        self._inputs = family.inputs(geometry)
        self._binding: Binding | None = None

    def bind(self, mesh: SequenceMesh, compiler: Compiler | None = None) -> None:
        if self._binding is not None:
            if self._binding.mesh is mesh:
                return
            self._binding.remove()
            self._binding = None  # should binding fail, the next job finds a network without one
        self._binding = bind(
            self.network,
            mesh,
            splits=self.family.splits,
            gather=self.family.gather,
            is_joint_attention=self.family.is_joint_attention,
            streams_of=self.family.streams_of,
            compiler=compiler,
        )

    def check(self, request: CallSpec) -> None:
        self._inputs.check(request)
        self.family.check(self.geometry, request)

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        self.family.check_values(conditioning)

    def answer_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = self._inputs.channels if self._inputs.answer_channels is None else self._inputs.answer_channels
        return (x_shape[0], channels, *x_shape[2:])

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        conditioning: Mapping[str, Tensor],
        options: Mapping[str, Option],
        residuals: ResidualCall | None = None,
    ) -> Tensor:
        call = ModelCall(
            x=self._here(x),
            timestep=timestep.to(device=self.device, dtype=torch.float32),
            conditioning={name: self._here(tensor) for name, tensor in conditioning.items()},
            options=options,
        )
        groups = self.family.alike(call)
        if not groups:
            return self._run(call, residuals)
        together = torch.cat(
            [self._run(call.rows(rows), residuals and residuals.part(i)) for i, rows in enumerate(groups)]
        )
        return together[torch.cat(groups).argsort()]

    def _run(self, call: ModelCall, residuals: ResidualCall | None) -> Tensor:
        if self._binding is None:
            raise InternalError("A model has to be bound to a mesh before it runs.")
        with torch.no_grad():
            arranged = self.family.arrange(self.network, self.geometry, call)
            with self._binding.call(arranged.streams, residuals):
                out = self.network(**arranged.arguments, return_dict=False)[0]
            return arranged.finish(out).float()

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype if tensor.is_floating_point() else tensor.dtype)
