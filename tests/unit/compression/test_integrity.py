"""The hash of bases: equal bits equal, and whatever an accident does to them seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from tutti.backend.compression.integrity import hash_of


def bytes_of(size: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def value(*tensors: Tensor) -> int:
    return int(hash_of(tensors))


def flipped(data: Tensor, *bits: int) -> Tensor:
    data = data.clone()
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    return data


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 31, 64])
def test_any_single_flipped_bit_is_seen_whatever_the_number_of_bytes(size: int) -> None:
    data = bytes_of(size)
    hashes = {value(flipped(data, bit)) for bit in range(8 * size)}
    assert len(hashes) == 8 * size
    assert value(data) not in hashes


def test_any_two_flipped_bits_are_seen() -> None:
    """The highest bits of words too, whose weights add up to nothing where words are as wide as the sum."""
    data = bytes_of(24)
    hashes = {value(flipped(data, *pair)) for pair in itertools.combinations(range(24 * 8), 2)}
    assert value(data) not in hashes
    words = data.view(torch.int64) * torch.tensor([1, 3, 5])
    flipped_words = flipped(data, 63, 127).view(torch.int64) * torch.tensor([1, 3, 5])
    assert words.sum() == flipped_words.sum(), "the control: such a sum of 64-bit words does not see these two"


@given(st.integers(0, 4 * 1024 * 5 - 1), st.integers(0, 4 * 1024 * 5 - 1), st.integers(0, 7), st.integers(0, 7))
def test_two_flipped_bits_are_seen_wherever_they_are_in_a_long_tensor(a: int, b: int, i: int, j: int) -> None:
    first, second = 8 * a + i, 8 * b + j
    assert (value(flipped(LONG, first, second)) == LONG_VALUE) == (first == second)


LONG = bytes_of(4 * 1024 * 5 + 3)
LONG_VALUE = value(LONG)


def test_the_sum_is_that_of_its_formula() -> None:
    """Sums over rows and columns are how it is computed, not what it is."""
    words = [*LONG[: 4 * 1024 * 5].view(torch.int32).tolist(), *LONG[4 * 1024 * 5 :].tolist()]
    expected = sum(word * (2 * place + 1) for place, word in enumerate(words)) % 2**64
    assert expected == LONG_VALUE % 2**64


def test_words_in_each_others_place_are_seen() -> None:
    words = bytes_of(4 * 3000).view(torch.int32)
    whole = value(words)
    for i, j in [(0, 1), (0, 1024), (5, 2999), (1023, 1024), (2047, 2998)]:
        swapped = words.clone()
        swapped[[i, j]] = words[[j, i]]
        assert value(swapped) != whole


@pytest.mark.parametrize("other", [3, 16, 17])
def test_tensors_in_each_others_place_are_seen_and_so_is_where_one_ends(other: int) -> None:
    a, b = bytes_of(16, 1), bytes_of(other, 2)
    assert value(a, b) != value(b, a)
    assert value(a, b) not in (value(a), value(b), value(torch.cat((a, b))))
    assert value(a[:8], a[8:]) != value(a)
    assert value(a, a[:0]) != value(a)


def test_a_bit_of_any_tensor_counts() -> None:
    tensors = [bytes_of(16, 1).view(torch.int8), torch.randn(3, 5), torch.randn(7).half()]
    whole = value(*tensors)
    for number, tensor in enumerate(tensors):
        data = tensor.reshape(-1).view(torch.uint8)
        for bit in (0, 8 * data.numel() - 1):
            changed = list(tensors)
            changed[number] = flipped(data, bit).view(tensor.dtype).view(tensor.shape)
            assert value(*changed) != whole


def test_equal_bits_have_equal_hashes() -> None:
    """Whatever the shape and the dtype; zeros of either sign are other bits."""
    x = torch.randn(6, 8)
    assert value(x) == value(x.clone()) == value(x.view(2, 24)) == value(x.view(torch.int32))
    assert value(torch.zeros(4)) != value(-torch.zeros(4))
    assert value(torch.full((3,), torch.nan)) == value(torch.full((3,), torch.nan))
    assert value() == 0
