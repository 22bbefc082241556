"""What a rank tells clients about its attention kernels: what runs, what is off and why, and nothing that may name a path."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.errors import InternalError
from tutti.backend.parallel.providers.cache import TimesCache
from tutti.backend.parallel.providers.choice import Choices
from tutti.backend.parallel.providers.kernels import CpuFlash
from tutti.backend.parallel.providers.notes import AttentionNotes
from tutti.backend.parallel.providers.reason import Reason, reason_of

from tests.support.meshes import single_rank_mesh
from tests.support.providers import case, wrong_output

WRONG = Reason("its output is off by 3.1e-02")


def test_before_the_first_attention_there_is_nothing_to_say() -> None:
    notes = AttentionNotes()
    notes.begin_turn()
    assert notes.parts() == []


def test_the_kernels_of_the_last_turn_that_had_attentions_are_named_in_the_order_of_their_use() -> None:
    notes = AttentionNotes()
    notes.begin_turn()
    for kernel in ("flash", "efficient", "flash"):
        notes.runs(kernel)
    assert notes.parts() == ["flash, efficient"]
    notes.begin_turn()
    assert notes.parts() == ["flash, efficient"], "a turn that fails before its first attention hides nothing"
    notes.runs("cudnn")
    assert notes.parts() == ["cudnn"]


def test_a_kernel_that_is_off_is_named_once_with_its_latest_reason_in_every_later_turn() -> None:
    notes = AttentionNotes()
    notes.trouble("flash is off", "a", Reason("its output is off by 9.9e-01"))
    notes.trouble("flash is off", "b", WRONG)
    notes.trouble("flash is off", "b", WRONG)
    notes.trouble("cudnn is off", "a", Reason("RuntimeError", "no plan"))
    notes.begin_turn()
    notes.runs("efficient")
    assert notes.parts() == [
        "efficient",
        "flash is off for 2 shapes: its output is off by 3.1e-02",
        "cudnn is off for 1 shape: RuntimeError, see the rank's log",
    ]


def test_a_provider_that_disagrees_with_the_reference_shows_up(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    for kernel in (wrong_output(), CpuFlash()):
        notes = AttentionNotes()
        for module in ("choice", "trials"):
            monkeypatch.setattr(f"tutti.backend.parallel.providers.{module}.NOTES", notes)
        cpu = torch.device("cpu")
        Choices((kernel, CpuFlash()), cpu, TimesCache(None, {})).get(case(), single_rank_mesh())
        told[kernel.name] = notes.parts()
    assert told["wrong-output"] == [
        "wrong-output is off for 1 shape: its output is off by 1.7e-01 of the largest value (1e-05 allowed)"
    ]
    assert told[CpuFlash.name] == [], "negative control: a right one does not"


def test_the_message_of_an_exception_is_for_the_log_only() -> None:
    foreign = reason_of(ImportError("cannot load /home/someone/flash.so: undefined symbol\nand more lines"))
    assert str(foreign) == "ImportError: cannot load /home/someone/flash.so: undefined symbol"
    assert foreign.shown == "ImportError, see the rank's log"
    # Ours hold no path, and say what to do.
    ours = reason_of(InternalError("Use another attention: this xfuser has no FLASH_4."))
    assert ours.shown == str(ours) == "InternalError: Use another attention: this xfuser has no FLASH_4."
