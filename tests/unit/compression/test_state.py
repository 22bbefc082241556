"""A residual state: what it predicts, what it keeps, and what it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.state import DAMPING, ResidualState, StateForm

from tests.support.bits import same_bits_or_nan
from tests.unit.compression.ends import CPU, FORMS, Ends, error, shape_of
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.walks import walk


def state(form: StateForm | None = None, *, keeps: bool = True, dtype: torch.dtype = torch.float32) -> ResidualState:
    return ResidualState(shape_of(2, 1, 4), dtype, CPU, form or StateForm(), keeps=keeps)


def put(states: ResidualState, x: Tensor, *, by_key_frame: bool = False) -> Tensor:
    """Make x the value; what was predicted."""
    with states.updated(by_key_frame=by_key_frame) as value:
        predicted = value.clone()
        value.copy_(x)
    return predicted


def test_the_prediction_of_order_1_is_the_value_before() -> None:
    known, first, second = state(), torch.randn(2, 4), torch.randn(2, 4)
    put(known, first, by_key_frame=True)
    assert torch.equal(put(known, second), first)
    assert torch.equal(put(known, second), second)


def test_the_prediction_of_order_2_goes_on_as_the_value_moved_damped() -> None:
    known, x, step = state(StateForm(order=2)), torch.randn(2, 4), torch.randn(2, 4)
    put(known, x, by_key_frame=True)
    assert torch.equal(put(known, x + step), x), "a key frame tells of no motion"
    torch.testing.assert_close(put(known, x + 2 * step), x + step + DAMPING * step)
    torch.testing.assert_close(put(known, x), x + 2 * step + DAMPING * step)
    put(known, x, by_key_frame=True)
    assert torch.equal(put(known, x), x), "nor does a later one"


def test_an_8_bit_base_is_its_quantised_value_and_nothing_else_is_kept() -> None:
    known, x = state(StateForm(int8_base=True)), torch.randn(2, 4)
    put(known, x, by_key_frame=True)
    predicted = put(known, x)
    assert 0 < error(predicted, x) < 0.01
    assert sum(tensor.nbytes for tensor in known.kept) == known.form.bytes_of(known.shape, x.dtype)


@pytest.mark.parametrize("order", [0, 3, -1])
def test_other_orders_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match="order 1 or 2"):
        StateForm(order=order)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_state_takes_what_its_form_says(form: StateForm, dtype: torch.dtype) -> None:
    shape = shape_of(33, 3, 16)
    ends = Ends(shape, dtype, form)
    for step, x in enumerate(walk(33, 48, steps=3, dtype=dtype)):
        ends.send("quaternary" if step else "key-int8", x)
    for channel in (ends.sender, ends.receiver):
        taken = sum(tensor.nbytes for tensor in channel.states[0].kept)
        scales = 2 * (33 + 48) if form.delayed_scales else 0
        assert taken == form.bytes_of(shape, dtype) + scales
        assert channel.bytes == form.bytes_of(shape, dtype)


def test_a_state_without_room_gives_the_value_and_stays_empty() -> None:
    for form in FORMS.values():
        ends, control = (Ends(shape_of(7, 3, 5), form=form, keeps=keeps) for keeps in (False, True))
        for x in walk(7, 15, steps=3):
            assert ends.sender.is_empty
            (sent,), (got,) = ends.send("key-int4", x)
            _, (expected,) = control.send("key-int4", x)
            assert same_bits_or_nan(sent, got)
            assert same_bits_or_nan(got, expected)
        assert ends.receiver.states[0].kept == []
        assert not control.receiver.is_empty
        with pytest.raises(ValueError, match="key frame first"):
            ends.sender.encode([x], CODECS["binary"])


def test_a_value_stays_as_it_is_until_the_next_transfer_of_its_channel() -> None:
    """It is the base itself: an attention that still runs must not see another one."""
    mine, others = Ends(shape_of(7, 3, 5)), Ends(shape_of(7, 3, 5))
    x, y = walk(7, 15, steps=2)
    payload, (value,) = mine.sender.encode([x], CODECS["raw"])
    others.send("raw", y)
    payload.zero_()
    assert torch.equal(value, x)
    mine.sender.encode([y], CODECS["raw"])
    assert torch.equal(value, y), "the control: that one overwrites it"
