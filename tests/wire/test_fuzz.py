"""Any bytes are a message or raise RemoteProtocolError, and nothing else; and the fuzzer would have noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire import codec, manifest, rules, scalars, schema, tensors
from tutti.backend.wire.codec import Received

from tests.wire.fuzz import Finding, fuzz
from tests.wire.mutations import Frames

REPOSITORY = Path(__file__).resolve().parents[2]
MUTANTS = 100_000
CONTROL_MUTANTS = 20_000
CONTROL_SEED = 1


def test_a_hundred_thousand_broken_messages_are_accepted_or_refused() -> None:
    seed = time.time_ns()
    print(f"to see it again: python -m tests.wire.fuzz --count {MUTANTS} --seed {seed}")
    tally = fuzz(MUTANTS, seed)
    assert tally.refused > MUTANTS // 2
    assert (
        tally.accepted > MUTANTS // 100
    )  # mutants that are not all hopeless: the checks after the first are reached too


def _run(*arguments: str, **environment: str) -> str:
    """What a fresh Python prints."""
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_checks_survive_optimised_bytecode() -> None:
    assert "refused" in _run("-O", "-m", "tests.wire.fuzz", "--count", "20000")


def test_the_checks_hold_where_msgpack_has_no_compiled_module() -> None:
    assert "refused" in _run("-m", "tests.wire.fuzz", "--count", "10000", MSGPACK_PUREPYTHON="1")


# --- The negative controls: one planted bug each, which the same loop must find -------------------------------------------


def test_the_fuzzer_notices_a_tensor_length_that_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(header: codec._Header, rest: Frames) -> dict[str, tensors.WireTensor]:
        return {
            spec.name: tensors.WireTensor(dtype=spec.dtype, shape=spec.shape, data=frame)
            for spec, frame in zip(header.specs, rest[header.has_manifest :], strict=False)
        }

    monkeypatch.setattr(codec, "_tensors", careless)
    with pytest.raises(Finding, match="accepted what cannot be sent"):
        fuzz(CONTROL_MUTANTS, CONTROL_SEED)


@pytest.mark.parametrize("module", [codec, schema, tensors, manifest])
def test_the_fuzzer_notices_an_error_of_msgpack_that_gets_out(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for guarded in (codec, module):  # codec catches what the modules below it let through
        monkeypatch.setattr(guarded, "UNREADABLE", ())
    with pytest.raises(Finding, match=r"raised (ValueError|OutOfData|FormatError|StackError|UnicodeDecodeError)"):
        fuzz(CONTROL_MUTANTS, CONTROL_SEED)


def test_the_fuzzer_notices_rules_that_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(frames: Frames) -> Received:
        with monkeypatch.context() as patch:
            patch.setattr(rules, "check", lambda *_, **__: None)
            return codec.decode(frames)

    with pytest.raises(Finding, match="accepted what cannot be sent"):
        fuzz(CONTROL_MUTANTS, CONTROL_SEED, careless)


def test_the_fuzzer_notices_a_line_break_that_gets_into_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "_shown", str)
    with pytest.raises(Finding, match="may not stand in a log"):
        fuzz(CONTROL_MUTANTS, CONTROL_SEED)


def test_the_fuzzer_notices_a_value_that_changes_when_it_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(frames: Frames) -> Received:
        received = codec.decode(frames)
        return Received(message=received.message, tensors=dict(list(received.tensors.items())[1:]) or received.tensors)

    with pytest.raises(Finding, match="accepted what"):
        fuzz(CONTROL_MUTANTS, CONTROL_SEED, careless)


def test_the_fuzzer_notices_a_slow_message() -> None:
    def slow(frames: Frames) -> Received:
        until_s = time.thread_time() + 0.11
        while time.thread_time() < until_s:
            pass
        return codec.decode(frames)

    with pytest.raises(Finding, match=r"took 0\.1"):
        fuzz(10, CONTROL_SEED, slow)


def test_the_fuzzer_notices_another_exception() -> None:
    def surprised(frames: Frames) -> Received:
        try:
            return codec.decode(frames)
        except RemoteProtocolError as error:
            raise KeyError("type") from error

    with pytest.raises(Finding, match="raised KeyError"):
        fuzz(10, CONTROL_SEED, surprised)


def test_a_seed_repeats_a_run() -> None:
    assert fuzz(2_000, 7) == fuzz(2_000, 7)
