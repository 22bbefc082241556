"""The hash of bases: equal bits equal, and whatever an accident does to them seen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tutti.kernels.base_hash import checksum_of, hash_of, reference

SIZES = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    31,
    64,
    8 * 384 - 1,
    8 * 384,
    8 * 384 + 11,
    8 * 384 * 3 + 8 * 5 + 6,
    8 * 384 * 515 + 9,
)
"""In bytes: no whole word, none behind, a rectangle of one row, of some, and of more than are taken at once, with words and bytes behind."""


def bytes_of(size: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def value(*tensors: Tensor) -> int:
    return int(hash_of(tensors))


def flipped(data: Tensor, *bits: int) -> Tensor:
    data = data.clone()
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    return data


def words_of(data: Tensor) -> list[int]:
    """As the specification numbers them."""
    content, whole = bytes(data.tolist()), data.numel() // 8 * 8
    pairs = [(content[at : at + 4], content[at + 4 : at + 8]) for at in range(0, whole, 8)]
    halves = [(int.from_bytes(lo, "little"), int.from_bytes(hi, "little", signed=True)) for lo, hi in pairs]
    return [*itertools.chain(*halves), *content[whole:]]


def weighted(words: Sequence[int], first: int = 0) -> int:
    """The specification, of Python's numbers, signed as torch has it."""
    total = sum(word * (2 * number + 1) for number, word in enumerate(words, first))
    return (total + 2**63) % 2**64 - 2**63


def added(data: Tensor, first: int = 0) -> int:
    total = torch.zeros((), dtype=torch.int64)
    reference.add_words(data, first, total)
    return int(total)


# --- what it is -------------------------------------------------------------------------------------------------------


def test_a_hash_by_hand() -> None:
    data = torch.tensor([5, 0, 0, 0, 255, 255, 255, 255, 7], dtype=torch.uint8)
    assert words_of(data) == [5, -1, 7]
    assert added(data) == 37
    assert added(data, first=10) == 37 + 20 * (5 - 1 + 7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [0, 3, 2**31])
def test_the_sum_is_that_of_its_formula(size: int, first: int) -> None:
    """Sums over rows and columns are how it is computed, not what it is."""
    data = bytes_of(size)
    words = words_of(data)
    assert len(words) == reference.count_words(size)
    assert added(data, first) == weighted(words, first)
    if size:
        assert added(data, first) != weighted(words, first + 1), "negative control: the numbers of the words count"


@pytest.mark.parametrize("start", range(1, 9))
def test_a_tensor_may_begin_at_any_byte(start: int) -> None:
    data = bytes_of(8 * 384 + 40)
    assert added(data[start:]) == weighted(words_of(data[start:]))


def test_equal_bits_have_equal_hashes() -> None:
    """Whatever the shape and the dtype; zeros of either sign are other bits."""
    x = torch.randn(6, 8)
    assert value(x) == value(x.clone()) == value(x.view(2, 24)) == value(x.view(torch.int32))
    assert value(torch.zeros(4)) != value(-torch.zeros(4))
    assert value(torch.full((3,), torch.nan)) == value(torch.full((3,), torch.nan))
    assert value() == 0


# --- what it sees -----------------------------------------------------------------------------------------------------

CONTENTS = {"zeros": torch.zeros_like, "ones": lambda x: torch.full_like(x, 255), "any": torch.clone}
"""A bit adds where it was 0 and takes away where it was 1."""
PLACES = [0, 1, 2, 3, 4, 769, 770, 2303, 2304, 2305, 2999]
"""Of words of 32 bits: both halves, and across the rows and the end of a rectangle."""


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 31, 64])
def test_any_single_flipped_bit_is_seen_whatever_the_number_of_bytes(size: int) -> None:
    data = bytes_of(size)
    hashes = {value(flipped(data, bit)) for bit in range(8 * size)}
    assert len(hashes) == 8 * size
    assert value(data) not in hashes


@pytest.mark.parametrize("content", CONTENTS)
def test_any_two_flipped_bits_are_seen(content: str) -> None:
    """Two words, four halves and three bytes behind them: all pairs."""
    data = CONTENTS[content](bytes_of(19))
    whole = added(data)
    unseen = [pair for pair in itertools.combinations(range(8 * 19), 2) if added(flipped(data, *pair)) == whole]
    assert not unseen


def in_words_of_64_bits(data: Tensor) -> int:
    """The same sum without the halves."""
    words = data.view(torch.int64)
    return int((words * (2 * torch.arange(words.numel()) + 1)).sum())


@pytest.mark.parametrize("content", CONTENTS)
def test_with_words_of_64_bits_pairs_of_highest_bits_would_not_be_seen(content: str) -> None:
    """The negative control of the test above: it finds just these. ``2**63 (1 + 3)`` is a multiple of 2**64, and here ``2**62 (1 + 3)`` too."""
    data = CONTENTS[content](bytes_of(16))
    whole = in_words_of_64_bits(data)
    pairs = itertools.combinations(range(8 * 16), 2)
    unseen = [pair for pair in pairs if in_words_of_64_bits(flipped(data, *pair)) == whole]
    assert unseen == [(62, 126), (63, 127)]


@given(st.integers(0, 20490), st.integers(0, 20490), st.integers(0, 7), st.integers(0, 7))
def test_two_flipped_bits_are_seen_wherever_they_are_in_a_long_tensor(a: int, b: int, i: int, j: int) -> None:
    first, second = 8 * a + i, 8 * b + j
    assert (value(flipped(LONG, first, second)) == LONG_VALUE) == (first == second)


LONG = bytes_of(20491)
LONG_VALUE = value(LONG)


@pytest.mark.parametrize("bit", [0, 30, 31])
def test_the_same_bit_of_two_words_is_seen_wherever_they_are(bit: int) -> None:
    words = bytes_of(4 * 3000).view(torch.int32)
    whole = value(words)
    for i, k in itertools.combinations(PLACES, 2):
        assert value(flipped(words.view(torch.uint8), 32 * i + bit, 32 * k + bit).view(torch.int32)) != whole


def test_any_two_words_in_each_others_place_are_seen() -> None:
    """All pairs of places, of words with and without their highest bits, which count otherwise in a lower half than in an upper one."""
    for u, v in itertools.permutations((0, 1, 2**30, 2**31 - 1, -(2**31), 1 - 2**31, -(2**30), -1), 2):
        for i, k in itertools.combinations(range(8), 2):
            words = torch.arange(8, dtype=torch.int32)
            words[[i, k]] = torch.tensor([u, v], dtype=torch.int32)
            swapped = words.clone()
            swapped[[i, k]] = words[[k, i]]
            assert value(swapped) != value(words)
            assert swapped.sum() == words.sum(), "negative control: without weights"


def test_words_far_apart_in_each_others_place_are_seen() -> None:
    words = bytes_of(4 * 3000).view(torch.int32)
    whole = value(words)
    for i, k in itertools.combinations(PLACES, 2):
        swapped = words.clone()
        swapped[[i, k]] = words[[k, i]]
        assert value(swapped) != whole


# --- several tensors --------------------------------------------------------------------------------------------------


def test_words_are_numbered_through_from_tensor_to_tensor() -> None:
    tensors = [bytes_of(size, size) for size in (19, 0, 8 * 384 * 2, 5)]
    words = list(itertools.chain(*map(words_of, tensors)))
    sizes = value(*[torch.zeros_like(x) for x in tensors])
    assert value(*tensors) == (weighted(words) + sizes + 2**63) % 2**64 - 2**63


def test_any_two_flipped_bits_in_two_tensors_are_seen() -> None:
    a, b = bytes_of(8, 1), bytes_of(9, 2)
    whole = value(a, b)
    assert not [(i, k) for i in range(8 * 8) for k in range(8 * 9) if value(flipped(a, i), flipped(b, k)) == whole]


def test_with_a_hash_of_each_tensor_times_a_constant_some_pairs_of_bits_would_not_be_seen() -> None:
    """Why words are numbered through. The highest bit of word i in a tensor, and of word k in the next: their weights are M (2 i + 1) and 2 k + 1."""
    multiplier, count = 0x9E3779B97F4A7C15, 2**18
    numbers = ((multiplier % 2**33) * (2 * torch.arange(count) + 1) % 2**33 - 1) // 2
    i = int((numbers < count).nonzero()[0])
    a, b = torch.zeros(count, dtype=torch.int32), torch.zeros(count, dtype=torch.int32)
    b[numbers[i]] = -(2**31)
    flipped_a, flipped_b = a.clone(), torch.zeros_like(b)
    flipped_a[i] = -(2**31)
    as_one = [
        (added(x.view(torch.uint8)) * multiplier + added(y.view(torch.uint8))) % 2**64
        for x, y in ((a, b), (flipped_a, flipped_b))
    ]
    assert as_one[0] == as_one[1]
    assert value(a, b) != value(flipped_a, flipped_b)


@pytest.mark.parametrize("other", [3, 16, 17])
def test_tensors_in_each_others_place_are_seen_and_so_is_where_one_ends(other: int) -> None:
    a, b = bytes_of(16, 1), bytes_of(other, 2)
    assert value(a, b) != value(b, a)
    assert value(a, b) not in (value(a), value(b), value(torch.cat((a, b))))
    assert value(a[:8], a[8:]) != value(a)
    assert value(a, a[:0]) != value(a)
    assert value(a[:0], a) != value(a, a[:0])


def test_a_bit_of_any_tensor_counts() -> None:
    tensors = [bytes_of(16, 1).view(torch.int8), torch.randn(3, 5), torch.randn(7).half()]
    whole = value(*tensors)
    for number, tensor in enumerate(tensors):
        data = tensor.reshape(-1).view(torch.uint8)
        for bit in (0, 8 * data.numel() - 1):
            changed = list(tensors)
            changed[number] = flipped(data, bit).view(tensor.dtype).view(tensor.shape)
            assert value(*changed) != whole


def test_tensors_of_several_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="of one device, not of cpu, meta"):
        hash_of([torch.zeros(3), torch.zeros(3, device="meta")])


def test_tensors_that_are_not_there_pass_through() -> None:
    with FakeTensorMode():
        for device in ("cpu", "meta"):
            found = hash_of([torch.empty(577, 24, dtype=torch.bfloat16, device=device), torch.empty(3, device=device)])
            assert (found.dtype, found.shape, found.device.type) == (torch.int64, (), device)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 19, 64])
def test_a_checksum_sees_any_one_wrong_bit_and_not_always_two(size: int) -> None:
    data = torch.arange(size, dtype=torch.uint8)
    right = int(checksum_of(data))
    for bit in range(8 * size):
        wrong = data.clone()
        wrong[bit // 8] ^= 1 << bit % 8
        assert int(checksum_of(wrong)) != right
    if size >= 16:
        wrong = data.clone()
        wrong[[7, 15]] ^= 128
        assert int(checksum_of(wrong)) == right, "what hash_of is for"
        assert int(hash_of([wrong])) != int(hash_of([data]))
    assert int(checksum_of(torch.cat((data.new_zeros(3), data))[3:])) == right, "wherever it begins"
