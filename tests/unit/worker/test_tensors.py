"""Wire tensors and torch tensors: every dtype, no copies, and one packed broadcast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire.dtypes import ITEM_BYTES
from tutti.backend.wire.tensors import TensorSpec, WireTensor
from tutti.backend.worker.tensors import DTYPES, share, to_torch, to_wire

from tests.support.bits import same_bits

SHAPES = [(), (1,), (3, 5), (2, 3, 1, 7), (0,), (3, 0, 2)]


def make(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Random bytes read as ``dtype``: NaN payloads and denormals included."""
    count = torch.tensor(shape).prod().long().item() if shape else 1
    item = torch.empty(0, dtype=dtype).element_size()
    if dtype == torch.bool:
        return (torch.arange(count) % 3 == 0).reshape(shape)
    return torch.randint(0, 256, (int(count) * item,), dtype=torch.uint8).view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_and_shape_comes_back_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    tensor = make(DTYPES[name], shape)  # type: ignore[index]
    wire = to_wire(tensor)
    assert (wire.dtype, wire.shape, memoryview(wire.data).nbytes) == (name, shape, tensor.nbytes)
    assert same_bits(to_torch(wire), tensor)


def test_the_dtypes_are_those_of_the_wire() -> None:
    assert {name: torch.empty(0, dtype=dtype).element_size() for name, dtype in DTYPES.items()} == ITEM_BYTES


def test_a_contiguous_tensor_keeps_its_memory_both_ways() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    wire = to_wire(tensor)
    tensor[0, 0] = 42
    assert float(to_torch(wire)[0, 0]) == 42


def test_a_tensor_with_gaps_is_packed_first() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    assert same_bits(to_torch(to_wire(tensor)), tensor.contiguous())


class OneRank:
    """A group of one, which counts its broadcasts."""

    rank = 0
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.broadcasts: list[int] = []

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        assert tensor.is_contiguous()
        self.broadcasts.append(tensor.nbytes)


def described(frames: dict[str, WireTensor]) -> list[TensorSpec]:
    return [tensor.spec(name) for name, tensor in frames.items()]


def test_a_job_of_all_dtypes_is_shared_by_one_broadcast() -> None:
    tensors = {f"{name}.{len(shape)}": make(dtype, shape) for name, dtype in DTYPES.items() for shape in SHAPES[:4]}
    frames = {name: to_wire(tensor) for name, tensor in tensors.items()}
    group = OneRank()
    shared = share(group, described(frames), frames)
    assert len(group.broadcasts) == 1
    assert shared.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(shared[name], tensor), name
        assert shared[name].data_ptr() % tensor.element_size() == 0


def test_the_frames_are_free_once_a_job_is_shared() -> None:
    source = torch.ones(4)
    shared = share(OneRank(), described({"x": to_wire(source)}), {"x": to_wire(source)})
    source[:] = 0
    assert shared["x"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("shapes", [[], [(0,)], [(0, 3), (2, 0)]], ids=str)
def test_a_job_without_bytes_needs_no_broadcast(shapes: list[tuple[int, ...]]) -> None:
    frames = {f"t{i}": to_wire(torch.empty(shape)) for i, shape in enumerate(shapes)}
    group = OneRank()
    assert [tuple(t.shape) for t in share(group, described(frames), frames).values()] == shapes
    assert group.broadcasts == []


def test_an_announced_tensor_that_did_not_come_is_refused() -> None:
    frames = {"x": to_wire(torch.ones(2)), "y": to_wire(torch.ones(2))}
    with pytest.raises(RemoteProtocolError):
        share(OneRank(), described(frames), {"x": frames["x"]})
