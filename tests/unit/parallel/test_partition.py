"""Partitions: any lengths, any mesh, every token exactly once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tutti.backend.errors import InternalError
from tutti.backend.parallel.partition import Partition, StreamSplit

CPU = torch.device("cpu")
lengths = st.dictionaries(st.sampled_from(["text", "image", "audio"]), st.integers(0, 50), min_size=1)
degrees = st.integers(1, 5)


@given(lengths=lengths, ring=degrees, ulysses=degrees)
def test_every_real_token_is_held_once_and_in_order(lengths: dict[str, int], ring: int, ulysses: int) -> None:
    partition = Partition.equal(lengths, ring=ring, ulysses=ulysses)
    for name, length in lengths.items():
        split = partition.streams[name]
        tokens = torch.arange(1, length + 1)
        shards = [split.shard(tokens, 0, rank) for rank in range(ring * ulysses)]
        assert [len(shard) for shard in shards] == list(split.held)
        assert torch.cat([shard[:valid] for shard, valid in zip(shards, split.valid, strict=True)]).equal(tokens)
        assert all(bool((shard[valid:] == 0).all()) for shard, valid in zip(shards, split.valid, strict=True))


@given(lengths=lengths, ring=degrees, ulysses=degrees)
def test_the_valid_keys_of_all_chunks_are_all_real_tokens(lengths: dict[str, int], ring: int, ulysses: int) -> None:
    partition = Partition.equal(lengths, ring=ring, ulysses=ulysses)
    marks = {name: torch.arange(1, length + 1) + 1000 * index for index, (name, length) in enumerate(lengths.items())}
    seen = []
    for chunk in range(ring):
        ranks = range(chunk * ulysses, (chunk + 1) * ulysses)
        held = torch.cat([partition.streams[name].shard(marks[name], 0, rank) for rank in ranks for name in lengths])
        assert len(held) == sum(partition.peers_held(chunk))
        valid = partition.valid_keys(chunk, CPU)
        kept = held if valid is None else held[valid]
        assert len(kept) == partition.chunk_lengths[chunk]
        seen.append(kept)
    assert torch.cat(seen).sort().values.equal(torch.cat(list(marks.values())).sort().values)


@given(lengths=lengths, ring=degrees, ulysses=degrees, data=st.data())
def test_an_attention_to_some_streams_works_as_if_there_were_no_others(
    lengths: dict[str, int], ring: int, ulysses: int, data: st.DataObject
) -> None:
    names = data.draw(st.permutations(sorted(lengths)))[: data.draw(st.integers(1, len(lengths)))]
    seen = Partition.equal(lengths, ring=ring, ulysses=ulysses).seen_by(",".join(names))
    alone = {name: length for name, length in lengths.items() if name in names}
    assert seen == Partition.equal(alone, ring=ring, ulysses=ulysses)
    assert list(seen.streams) == list(alone)


def test_the_part_that_an_attention_sees_is_made_once() -> None:
    partition = Partition.equal({"text": 3, "image": 5}, ring=1, ulysses=2)
    assert partition.seen_by("") is partition
    assert partition.seen_by("image") is partition.seen_by("image")
    assert partition.seen_by("image").chunk_lengths == (5,)


def test_a_stream_that_the_call_does_not_have_is_refused() -> None:
    with pytest.raises(InternalError, match="sees audio, the call has text, image"):
        Partition.equal({"text": 3, "image": 5}, ring=1, ulysses=2).seen_by("image,audio")


def test_lengths_that_divide_need_no_index_and_no_copy() -> None:
    partition = Partition.equal({"text": 8, "image": 16}, ring=2, ulysses=2)
    assert partition.held == (6, 6, 6, 6)
    assert partition.valid_keys(0, CPU) is None
    tokens = torch.arange(16)
    assert partition.streams["image"].shard(tokens, 0, 1).data_ptr() == tokens[4:].data_ptr()


def test_an_index_is_made_once_per_device() -> None:
    partition = Partition.equal({"image": 5}, ring=1, ulysses=2)
    first = partition.valid_keys(0, CPU)
    assert first is not None
    assert partition.valid_keys(0, CPU) is first
    assert first.tolist() == [0, 1, 2, 3, 4]


def test_explicit_shares_are_kept_as_they_are() -> None:
    split = StreamSplit.explicit((5, 0, 2))
    partition = Partition(ring=3, ulysses=1, streams={"image": split})
    assert split.length == 7
    assert partition.held == partition.chunk_lengths == (5, 0, 2)
    assert [split.shard(torch.arange(7), 0, rank).tolist() for rank in range(3)] == [[0, 1, 2, 3, 4], [], [5, 6]]


def test_lengths_that_contradict_each_other_are_a_bug_and_said_so() -> None:
    with pytest.raises(InternalError, match="valid"):
        StreamSplit(held=(2, 2), valid=(3, 1))
    with pytest.raises(InternalError, match="3 ranks"):
        Partition(ring=2, ulysses=2, streams={"image": StreamSplit.explicit((1, 1, 1))})
    with pytest.raises(InternalError, match="announced"):
        StreamSplit.equal(8, 2).shard(torch.arange(9), 0, 0)
