"""The one table of element types: whole, of the right sizes, and the same at both ends."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from tutti.backend.wire.dtypes import COMPUTE_DTYPES, ITEM_BYTES, TORCH_NAMES, ComputeDtype, WireDtype
from tutti.backend.worker.tensors import DTYPES
from tutti.comfy_nodes.tensors import compute_dtype, torch_dtype


def test_every_element_type_has_a_size_and_a_name_in_torch() -> None:
    assert set(ITEM_BYTES) == set(TORCH_NAMES) == set(get_args(WireDtype))
    assert get_args(ComputeDtype) == COMPUTE_DTYPES
    assert set(COMPUTE_DTYPES) < set(ITEM_BYTES)


@pytest.mark.parametrize("name", ITEM_BYTES)
def test_both_ends_read_a_name_as_the_same_torch_type_of_its_size(name: WireDtype) -> None:
    found = getattr(torch, TORCH_NAMES[name])
    assert isinstance(found, torch.dtype)
    assert found.itemsize == ITEM_BYTES[name]
    assert DTYPES[name] is torch_dtype(name) is found


def test_no_two_names_are_the_same_torch_type() -> None:
    assert len(set(TORCH_NAMES.values())) == len(TORCH_NAMES)


def test_what_a_model_computes_in_is_named_alike() -> None:
    assert [compute_dtype(DTYPES[name]) for name in COMPUTE_DTYPES] == list(COMPUTE_DTYPES)
