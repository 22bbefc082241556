"""torch tensors keep their bits, dtype and shape on the way to the wire and back."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.errors import LocalProtocolError, RemoteProtocolError
from tutti.backend.wire.dtypes import ITEM_BYTES
from tutti.backend.wire.tensors import WireTensor
from tutti.comfy_nodes.tensors import compute_dtype, from_wire, to_wire, torch_dtype

DTYPES = [dtype for name in ITEM_BYTES if (dtype := torch_dtype(name)) is not None]
SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 4), (1, 16, 11, 9)]


def some(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(shape, generator=generator) * 9).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_comes_back_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = some(shape, dtype)
    wire = to_wire(sent)
    assert memoryview(wire.data).nbytes == wire.spec("x").size_bytes
    back = from_wire(WireTensor(dtype=wire.dtype, shape=wire.shape, data=bytes(wire.data)))
    assert back.dtype == dtype
    assert back.shape == sent.shape
    assert torch.equal(back.reshape(-1).view(torch.uint8), sent.reshape(-1).view(torch.uint8))


def test_every_dtype_of_the_wire_is_one_of_torch() -> None:
    assert len(DTYPES) == len(ITEM_BYTES)


def test_a_view_that_is_not_dense_is_sent_dense() -> None:
    sent = some((4, 6), torch.float32).t()[1:, ::2]
    back = from_wire(to_wire(sent))
    assert torch.equal(back, sent)


def test_a_dense_cpu_tensor_is_not_copied() -> None:
    sent = torch.zeros(8)
    wire = to_wire(sent)
    sent[0] = 1.0
    assert from_wire(wire)[0] == 1.0


def test_a_received_tensor_has_memory_of_its_own() -> None:
    frame = bytearray(4)
    received = from_wire(WireTensor(dtype="F32", shape=(1,), data=memoryview(frame)))
    frame[:] = b"\xff" * 4
    assert received[0] == 0.0
    received[0] = 2.0  # writable without a warning


def test_a_gradient_does_not_stop_a_tensor() -> None:
    assert from_wire(to_wire(torch.ones(2, requires_grad=True))).tolist() == [1.0, 1.0]


def test_a_dtype_that_the_wire_has_no_name_for_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="complex64"):
        to_wire(torch.zeros(1, dtype=torch.complex64))


def test_bytes_that_do_not_fill_the_shape_are_the_peers_mistake() -> None:
    with pytest.raises(RemoteProtocolError):
        from_wire(WireTensor(dtype="F32", shape=(2,), data=bytes(4)))


def test_only_what_a_model_computes_in_is_a_compute_dtype() -> None:
    assert [compute_dtype(d) for d in (torch.float32, torch.bfloat16, torch.float16)] == ["F32", "BF16", "F16"]
    with pytest.raises(LocalProtocolError):
        compute_dtype(torch.int8)
