"""What a rank says before it takes memory."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.errors import OutOfMemory
from tutti.backend.worker.memory import Memory


def test_loras_need_room_for_what_they_add_to_those_that_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "free_bytes", property(lambda _: 6 * 10**9))
    on_gpu = Memory(torch.device("cuda"), sharing=1)
    on_gpu.check_loras_fit(0)
    on_gpu.check_loras_fit(6 * 10**9)
    with pytest.raises(OutOfMemory, match=r"^Use fewer or smaller LoRAs: .* take 16\.0 GB more, and 6\.0 GB are free"):
        on_gpu.check_loras_fit(16 * 10**9)
    Memory(torch.device("cpu"), sharing=1).check_loras_fit(16 * 10**9)
