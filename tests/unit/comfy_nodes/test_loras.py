"""Sets of LoRAs over one network: those that take turns in a loop are kept apart, and only the last few of them."""

from __future__ import annotations

from tutti.comfy_nodes.loras import SETS_KEPT, LastSets, Lora, NamedLora


def a_set(strength: float = 1.0) -> tuple[Lora, ...]:
    """A tuple of its own, equal to any other of this strength."""
    return (NamedLora(name="loras/x.safetensors", strength=strength),)


def test_sets_that_take_turns_are_all_there() -> None:
    last: LastSets[int] = LastSets()
    sets = [a_set(float(number)) for number in range(SETS_KEPT)]
    for number, loras in enumerate(sets):
        last.put(loras, number)
    assert [last.get(loras) for loras in sets] == list(range(SETS_KEPT))


def test_an_equal_set_is_another_one() -> None:
    last: LastSets[int] = LastSets()
    one, other = a_set(), a_set()
    last.put(one, 1)
    assert one == other
    assert last.get(other) is None


def test_the_set_that_was_used_longest_ago_goes() -> None:
    last: LastSets[int] = LastSets()
    sets = [a_set(float(number)) for number in range(SETS_KEPT + 1)]
    for number, loras in enumerate(sets):
        last.get(sets[0])  # in use all the time
        last.put(loras, number)
    assert last.get(sets[1]) is None
    assert [last.get(loras) for loras in (sets[0], *sets[2:])] == [0, *range(2, SETS_KEPT + 1)]
