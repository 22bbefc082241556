"""The store: what is shared and what is not, a bound that holds, and the same decisions wherever the same numbers are."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tutti.backend.compression.channel import Channel
from tutti.backend.compression.codecs import Codec
from tutti.backend.compression.policy import PRESETS, Preset
from tutti.backend.compression.state import StateForm
from tutti.backend.compression.store import RESTART_CALLS, RESTARTS, ResidualCall, ResidualStore

from tests.unit.compression.ends import CPU, shape_of

PRESET = PRESETS["fast"]
OTHER_FORM = Preset(name="other", key="key-int8", residual="int4", form=StateForm(order=2))
UNIT = 5 * 8 * 4
"""Bytes of one channel of these tests."""
SMALL_UNIT = 5 * (8 + 4)
"""With its base in 8 bits."""
TOO_MANY = 17
"""Channels that do not fit into 4 units whatever is kept of them: their numbers alone take 4.25 in 8 bits."""


def a_store(units: float = 100) -> ResidualStore:
    return ResidualStore(CPU, int(units * UNIT))


def begin(store: ResidualStore, name: str, branch: Hashable = 0, preset: Preset = PRESET) -> ResidualCall | None:
    """A call of a group of one."""
    seen = store.look(name)
    return store.begin_call(
        name,
        branch,
        preset,
        largest_bytes=store.last_bytes,
        is_key=bool(seen.mismatches or seen.broken),
        is_broken=bool(seen.broken),
    )


def channel(call: ResidualCall | None, key: Hashable, dtype: torch.dtype = torch.float32) -> tuple[Channel, Codec]:
    assert call is not None
    return call.channel((1, str(key), 0, 0), [shape_of(5, 1, 8)], dtype)


def send(call: ResidualCall | None, *keys: Hashable, x: float = 1.0) -> list[bool]:
    """One transfer of each key; which of them were key frames."""
    found = []
    for key in keys:
        known, codec = channel(call, key)
        known.encode([torch.full((5, 8), x)], codec)
        found.append(codec.is_key)
    return found


def test_a_channel_begins_with_a_key_frame_and_goes_on_with_residuals() -> None:
    store = a_store()
    assert send(begin(store, "t"), "k") == [True]
    assert send(begin(store, "t"), "k", "new") == [False, True]
    assert send(begin(store, "t"), "k", "new") == [False, False]
    assert store.bytes_of("t") == 2 * UNIT


def test_nothing_is_shared_between_trajectories_branches_and_parts() -> None:
    store = a_store()
    send(begin(store, "t"), "k")
    assert send(begin(store, "u"), "k") == [True]
    assert send(begin(store, "t", branch=1), "k") == [True]
    call = begin(store, "t")
    assert call is not None
    assert send(call.part(1), "k") == [True]
    assert send(call.part(0), "k") == [False], "part 0 is that of an undivided call"
    states = [
        id(channel.states[0].kept[0])
        for kept in store._kept.values()
        for channels in kept.branches.values()
        for channel in channels.values()
    ]
    assert len(states) == len(set(states)) == 4


def test_another_shape_or_dtype_gives_a_key_frame() -> None:
    store = a_store()
    send(begin(store, "t"), "k")
    call = begin(store, "t")
    assert call is not None
    assert channel(call, "k")[1].is_key is False, "the control"
    assert channel(call, "k", torch.bfloat16)[1].is_key
    assert call.channel((1, "k", 0, 0), [shape_of(5, 2, 4)], torch.float32)[1].is_key, "as many numbers, other heads"
    assert call.channel((1, "k", 0, 0), [shape_of(5, 1, 8)] * 2, torch.float32)[1].is_key


def test_another_form_gives_key_frames_and_another_codec_of_that_form_does_not() -> None:
    store = a_store()
    send(begin(store, "t"), "k")
    assert send(begin(store, "t", preset=PRESETS["small"]), "k") == [False]
    assert send(begin(store, "t", preset=OTHER_FORM), "k") == [True]
    assert store.bytes_of("t") == 2 * UNIT, "a trend too, and nothing of before"


def test_what_is_forgotten_begins_anew_and_unknown_names_are_passed_over() -> None:
    store = a_store()
    for name in "tu":
        send(begin(store, name), "k")
    store.forget(["t", "never"])
    assert store.bytes_of("t") == 0
    assert send(begin(store, "u"), "k") == [False]
    assert send(begin(store, "t"), "k") == [True]
    assert store.evictions == 0


def test_a_key_frame_that_was_asked_for_is_one_for_every_branch() -> None:
    store = a_store()
    for branch in (0, 1):
        send(begin(store, "t", branch), "k")
    send(begin(store, "u"), "k")
    call = store.begin_call("t", 0, PRESET, largest_bytes=store.last_bytes, is_key=True)
    assert send(call, "k") == [True]
    assert send(begin(store, "t", 1), "k") == [True]
    assert send(begin(store, "u"), "k") == [False], "the control: another trajectory goes on"


def test_the_trajectory_longest_unused_makes_room() -> None:
    store = a_store(4)
    for name in ("a", "b", "a"):
        send(begin(store, name), "k", "l")
    send(begin(store, "c"), "k", "l")
    assert store.evictions == 0, "nobody knows yet what c needs"
    assert send(begin(store, "c"), "k", "l") == [True, True], "it may have had no room elsewhere"
    assert store.evictions == 1
    assert store.bytes_of("b") == 0
    assert send(begin(store, "a"), "k", "l") == [False, False]
    assert send(begin(store, "c"), "k", "l") == [False, False]


def test_the_ledger_learns_of_trajectories_that_made_a_single_call() -> None:
    store = a_store(4)
    for number in range(50):
        send(begin(store, f"{number}"), "k", "l")
        taken = [kept_bytes(store, f"{other}") for other in range(50)]
        assert sum(taken) <= store.limit_bytes


def kept_bytes(store: ResidualStore, name: str) -> int:
    """What the states of a trajectory really take."""
    kept = store._kept.get(name)
    channels = [channel for branch in (kept.branches.values() if kept else ()) for channel in branch.values()]
    return sum(tensor.nbytes for channel in channels for state in channel.states for tensor in state.kept)


def test_the_bound_holds_within_the_first_call_too() -> None:
    store, call = a_store(2.5), None
    call = begin(store, "t")
    assert send(call, *range(10)) == [True] * 10
    assert kept_bytes(store, "t") == 2 * UNIT
    assert store.bytes_of("t") == 10 * UNIT, "what it would need, which the others must hear"


def test_a_trajectory_that_does_not_fit_alone_is_given_up_drops_nobody_else_and_says_so() -> None:
    store = a_store(4)
    send(begin(store, "small"), "k")
    assert send(begin(store, "large"), *range(TOO_MANY)) == [True] * TOO_MANY
    assert store.note_of("large") == ""
    for _ in range(3):
        assert begin(store, "large") is None
        assert store.note_of("large") == "not compressed: 2.7 kB of residual state do not fit into 640 bytes"
        assert send(begin(store, "small"), "k") == [False]
    assert store.bytes_of("large") == 0
    assert (store.note_of("small"), store.note_of("never")) == ("", "")
    store.forget(["large"])
    assert store.note_of("large") == ""


def test_a_trajectory_that_does_not_fit_alone_keeps_its_bases_in_8_bits_and_begins_with_key_frames() -> None:
    store = a_store(4)
    assert send(begin(store, "t"), *range(5)) == [True] * 5
    assert (store.evictions, store.note_of("t")) == (0, "")
    assert send(begin(store, "t"), *range(5)) == [True] * 5, "the small form knows nothing of the other"
    assert store.note_of("t") == "bases kept in 8 bits instead of 800 bytes or more, which do not fit into 640 bytes"
    for _ in range(3):
        assert send(begin(store, "t"), *range(5)) == [False] * 5
        assert (store.evictions, store.bytes_of("t"), kept_bytes(store, "t")) == (1, 5 * SMALL_UNIT, 5 * SMALL_UNIT)
        assert store.note_of("t") == (
            "bases kept in 8 bits: 300 bytes instead of 800 bytes or more, which do not fit into 640 bytes"
        )
    assert not store.gave_up("t")


def test_one_that_fits_keeps_what_its_preset_asks_for() -> None:
    """The control of the test above."""
    store = a_store(4)
    for is_first in (True, False, False):
        assert send(begin(store, "t"), *range(4)) == [is_first] * 4
    assert (store.evictions, store.bytes_of("t"), store.note_of("t")) == (0, 4 * UNIT, "")


def test_where_bases_in_8_bits_do_not_fit_either_it_is_given_up_then() -> None:
    store, calls = a_store(4), []
    for _ in range(4):
        call = begin(store, "t")
        calls.append(call is not None)
        if call is not None:
            assert send(call, *range(11)) == [True] * 11
            assert kept_bytes(store, "t") <= store.limit_bytes
    assert calls == [True, True, False, False], "one call of each form"
    note = "not compressed: 660 bytes of residual state do not fit into 640 bytes even with bases in 8 bits"
    assert (store.evictions, store.note_of("t"), store.gave_up("t")) == (2, note, True)
    assert kept_bytes(store, "t") == 0


def test_a_trend_goes_with_the_base() -> None:
    store = a_store(4)
    for is_first in (True, True, False):
        assert send(begin(store, "t", preset=OTHER_FORM), *range(3)) == [is_first] * 3
    assert kept_bytes(store, "t") == 3 * SMALL_UNIT
    assert "180 bytes instead of 960 bytes or more" in store.note_of("t")


def test_the_smaller_form_lasts_as_long_as_the_preset_asks_for_the_same() -> None:
    store = a_store(4)
    for _ in range(2):
        send(begin(store, "t"), *range(5))
    other_codec = replace(PRESET, residual="binary")  # as auto changes its
    assert send(begin(store, "t", preset=other_codec), *range(5)) == [False] * 5
    assert store.bytes_of("t") == 5 * SMALL_UNIT
    assert send(begin(store, "t", preset=OTHER_FORM), "k") == [True]
    assert (store.bytes_of("t"), store.note_of("t")) == (2 * UNIT, ""), "another form is tried as it is asked for"
    assert send(begin(store, "t"), "k") == [True]
    assert (store.bytes_of("t"), store.note_of("t")) == (UNIT, "")


def test_what_was_asked_for_is_shown_to_the_end_and_forgotten_with_the_trajectory() -> None:
    store = a_store(4)
    for _ in range(3):
        send(begin(store, "t"), *range(5))
    store.begin_call("t", 0, PRESET, largest_bytes=store.last_bytes, is_key=True)
    assert store.note_of("t").startswith("bases kept in 8 bits: 300 bytes"), "a key frame changes nothing of it"
    store.forget(["t"])
    send(begin(store, "t"), "k")
    assert (store.bytes_of("t"), store.note_of("t")) == (UNIT, "")


def test_of_two_trajectories_only_the_one_that_does_not_fit_alone_keeps_less() -> None:
    store = a_store(4)
    assert send(begin(store, "small"), "k") == [True]
    send(begin(store, "large"), *range(5))
    assert send(begin(store, "small"), "k") == [False], "what the other has made is known by now"
    for is_first in (True, False, False):
        assert send(begin(store, "large"), *range(5)) == [is_first] * 5
        assert send(begin(store, "small"), "k") == [False]
    assert (store.bytes_of("large"), store.bytes_of("small")) == (5 * SMALL_UNIT, UNIT)
    assert [store.note_of(name)[:10] for name in ("large", "small")] == ["bases kept", ""]


def test_one_that_makes_room_for_another_begins_again_in_the_form_it_had_come_to() -> None:
    store = a_store(4)
    for _ in range(3):
        send(begin(store, "large"), *range(5))
    for _ in range(2):
        send(begin(store, "other"), *range(4))
    assert (store.evictions, store.bytes_of("large")) == (2, 0)
    send(begin(store, "large"), *range(5))
    assert store.bytes_of("large") == 5 * SMALL_UNIT, "not as large as was found not to fit"


def test_ranks_that_go_by_the_ledger_shrink_in_the_same_call_and_ranks_that_go_by_their_own_need_do_not() -> None:
    """The largest needs 5 units of 4, the other 3. The second way is the control: it is what the ledger is for."""
    for is_shared in (True, False):
        large, little = a_store(4), a_store(4)
        forms = []
        for _ in range(3):
            told = [store.last_bytes for store in (large, little)]
            for store, own, channels in zip((large, little), told, (5, 3), strict=True):
                call = store.begin_call("t", 0, PRESET, largest_bytes=max(told) if is_shared else own)
                send(call, *range(channels))
            forms.append([store._kept["t"].form.int8_base for store in (large, little)])
        assert forms == (
            [[False, False], [True, True], [True, True]] if is_shared else [[False, False], *[[True, False]] * 2]
        )
        assert (large.evictions == little.evictions) == is_shared
        assert (large.note_of("t") == little.note_of("t")) == is_shared


def test_a_trajectory_given_up_is_not_dropped_to_be_tried_again() -> None:
    store = a_store(2)
    send(begin(store, "large"), *range(TOO_MANY))
    assert begin(store, "large") is None
    for name in "abcd":
        for _ in range(2):
            send(begin(store, name), "k", "l")
    assert store.evictions >= 3, "the control: others made room"
    assert begin(store, "large") is None


def test_what_a_call_over_the_limit_made_is_dropped_whoever_runs_next() -> None:
    """Another rank may have had no room for part of it: its end would be empty, ours not."""
    store = a_store(3)
    send(begin(store, "a"), "k")
    send(begin(store, "b"), "k")
    call = store.begin_call("c", 0, PRESET, largest_bytes=store.last_bytes)
    send(call, "k")
    assert kept_bytes(store, "c") == UNIT, "it fits here"
    again = store.begin_call("b", 0, PRESET, largest_bytes=2 * UNIT)
    assert send(again, "k") == [False]
    assert kept_bytes(store, "c") == 0, "and not on the rank that needs two for it"


def test_it_is_dropped_too_where_room_came_free_before_it_was_known() -> None:
    store = a_store(2)
    for _ in range(2):
        send(begin(store, "a"), "k", "l")
    assert send(begin(store, "b"), "k", "l") == [True, True]
    assert kept_bytes(store, "b") == 0
    store.forget(["a"])
    assert send(begin(store, "b"), "k", "l") == [True, True]
    assert send(begin(store, "b"), "k", "l") == [False, False]


def test_a_call_that_is_passed_over_keeps_nothing_of_its_branch_and_what_was_told_before_it_holds() -> None:
    store = a_store(4)

    def pass_over(name: str, branch: int, *, is_key: bool = False) -> None:
        store.pass_over(name, branch, largest_bytes=store.last_bytes, is_key=is_key)

    for branch in (0, 1):
        send(begin(store, "u", branch), "k")
    send(begin(store, "t"), "k")
    pass_over("u", 1)
    assert send(begin(store, "u", 0), "k") == [False], "the control: another branch goes on"
    assert send(begin(store, "u", 1), "k") == [True]
    pass_over("u", 1, is_key=True)
    assert send(begin(store, "u", 0), "k") == [True], "all of the trajectory was to begin anew"
    assert send(begin(store, "u", 0), "k", "l", "m", "n") == [False, True, True, True]
    pass_over("t", 1)
    assert send(begin(store, "t"), "k") == [False]
    assert store.bytes_of("u") == 0, "its call went over the limit, which was told before the call that was passed over"


def test_a_trajectory_whose_numbers_are_never_finite_is_compressed_no_more_and_says_so() -> None:
    store = a_store()
    compressed = []
    for _ in range(6):
        call = begin(store, "t")
        compressed.append(call is not None)
        if call is not None:
            assert send(call, "k", x=float("nan")) == [True]
    assert compressed == [True, True, True, False, False, False], "three calls of key frames, and no more"
    assert store.note_of("t") == "compression paused: numbers that are not finite"
    assert send(begin(store, "u"), "k") == [True], "the control: another trajectory is"


def test_one_branch_that_never_comes_right_is_enough() -> None:
    """Calls of the others lie between, in which nothing is wrong."""
    store, step = a_store(), 0
    while begin(store, "t", 0) is not None and step < 20:
        call = begin(store, "t", "bad")
        if call is not None:
            send(call, "k", x=float("nan"))
        step += 1
    assert step <= RESTARTS
    assert "not finite" in store.note_of("t")


def test_a_trajectory_that_begins_anew_now_and_then_goes_on() -> None:
    store = a_store()
    for call in range(10 * RESTART_CALLS):
        is_bad = call % RESTART_CALLS in (1, 2)
        assert send(begin(store, "t"), "k", x=float("inf") if is_bad else 1.0)
    assert store.note_of("t") == ""


def test_other_reasons_have_another_note() -> None:
    store = a_store()
    for _ in range(RESTARTS):
        store.begin_call("t", 0, PRESET, largest_bytes=0, is_key=True)
    assert store.note_of("t") == "compression paused: ranks' copies of earlier calls differ"


def test_a_trajectory_answers_for_its_own_transfers_only() -> None:
    store = a_store()
    for name in "tu":
        send(begin(store, name), "k", x=float("nan") if name == "t" else 1.0)
    assert (store.look("u").broken, store.look("t").broken) == (0, 1)
    assert store.look("t").broken == 0, "told once"
    assert store.look("never") == store.look("t")


@dataclass
class Rank:
    """One end of everything, on a rank with so many channels a call."""

    store: ResidualStore
    channels: int
    decisions: list[object] = field(default_factory=list)


CALLS = st.lists(
    st.one_of(
        *[st.tuples(st.just("call"), st.sampled_from("abc"), st.just(0), st.integers(1, 3), st.just(False))] * 4,
        st.tuples(st.just("call"), st.sampled_from("abc"), st.integers(0, 1), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("forget"), st.sampled_from("abc")),
    ),
    min_size=10,
    max_size=40,
)


@given(CALLS, st.floats(0, 9), st.integers(0, 2), st.sampled_from([PRESET, OTHER_FORM]))
@settings(max_examples=100, deadline=None)
def test_ranks_that_are_told_the_same_decide_alike_and_agree_on_what_every_transfer_carries(
    calls: list[tuple[str, ...]], units: float, more: int, preset: Preset
) -> None:
    """Two ranks: one has ``more`` channels than the other in every call, and nothing else differs."""
    ranks = [Rank(a_store(units), 0), Rank(a_store(units), more)]
    for kind, name, *rest in calls:
        if kind == "forget":
            for rank in ranks:
                rank.store.forget([name])
            continue
        branch, keys, is_bad = rest
        news = [rank.store.look(name) for rank in ranks]
        largest = max(rank.store.last_bytes for rank in ranks)
        is_key = any(seen.mismatches or seen.broken for seen in news)
        for rank in ranks:
            call = rank.store.begin_call(
                name, branch, preset, largest_bytes=largest, is_key=is_key, is_broken=any(s.broken for s in news)
            )
            extra = [f"own {number}" for number in range(rank.channels)]
            if call is None:
                rank.decisions.append(None)
                continue
            # In another order on each rank, as origins are along a ring.
            order = sorted(range(int(keys)), reverse=rank.channels > 0)
            send(call, *extra[:1])
            sent = {key: send(call, key, x=float("nan") if is_bad else 1.0)[0] for key in order}
            send(call, *extra[1:])
            rank.decisions.append(sorted(sent.items()))
            assert sum(kept_bytes(rank.store, other) for other in "abc") <= rank.store.limit_bytes
    first, second = ranks
    assert first.decisions == second.decisions
    assert first.store.evictions == second.store.evictions
    assert [kept.form for kept in first.store._kept.values()] == [kept.form for kept in second.store._kept.values()]
    assert [first.store.note_of(name) for name in "abc"] == [second.store.note_of(name) for name in "abc"]
