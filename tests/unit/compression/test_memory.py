"""The memory that is predicted is the memory that channels take, and the published figures are those of the formula."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.compression.channel import bytes_of
from tutti.backend.compression.memory import Geometry, state_bytes
from tutti.backend.compression.state import MatrixShape, StateForm

GIB = 2**30
PLAIN, SMALL, TREND = StateForm(), StateForm(int8_base=True), StateForm(order=2)
FLUX = Geometry(tokens=4352, heads=24, head_dim=128, layers=57)
HUNYUAN = Geometry(tokens=118_800, heads=24, head_dim=128, layers=60)
WAN = Geometry(tokens=75_600, heads=40, head_dim=128, layers=40, branches=2)


@pytest.mark.parametrize(("geometry", "published_gib"), [(FLUX, 2.84), (HUNYUAN, 81.8), (WAN, 115)])
def test_a_ring_takes_what_was_published_of_it(geometry: Geometry, published_gib: float) -> None:
    """CompactFusion's state in fp16, without a ulysses axis; two figures of the three were published in three digits."""
    found = state_bytes(geometry, ring=4, ulysses=1, form=PLAIN, dtype=torch.float16) / GIB
    assert found == pytest.approx(published_gib, rel=0.01)
    half = state_bytes(geometry, ring=4, ulysses=1, form=SMALL, dtype=torch.float16) / GIB
    assert found / 2 < half < 1.04 * found / 2, "a scale for each token and head beside the bytes"


@pytest.mark.parametrize("form", [PLAIN, SMALL, TREND])
@pytest.mark.parametrize(("ring", "ulysses"), [(4, 1), (1, 4), (2, 2), (1, 1)])
def test_it_is_the_sum_over_the_channels_of_a_rank(ring: int, ulysses: int, form: StateForm) -> None:
    geometry = Geometry(tokens=64, heads=8, head_dim=16, layers=3, branches=2, batch=2)
    share, heads = 64 // (ring * ulysses), 8 // ulysses

    def channel(tensors: int, tokens: int) -> int:
        shape = MatrixShape(rows=2 * tokens, heads=heads, head_dim=16)
        return bytes_of([shape] * tensors, torch.bfloat16, form)

    owners = ring if ring > 1 else 0
    peers = ulysses - 1
    one_layer = owners * channel(2, share * ulysses) + 2 * peers * (channel(3, share) + channel(1, share))
    found = state_bytes(geometry, ring=ring, ulysses=ulysses, form=form, dtype=torch.bfloat16)
    assert found == 3 * 2 * one_layer


def test_state_of_the_all_to_all_falls_with_the_ranks_and_that_of_a_ring_does_not() -> None:
    def of(ring: int, ulysses: int) -> int:
        return state_bytes(HUNYUAN, ring=ring, ulysses=ulysses, form=PLAIN, dtype=torch.bfloat16)

    assert of(8, 1) == pytest.approx(of(2, 1), rel=0.001)
    assert of(1, 8) == pytest.approx(of(1, 2) * (7 / 64) / (1 / 4), rel=0.001)
    assert of(2, 4) < of(8, 1)
