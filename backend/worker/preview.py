"""Previews: the denoised latent of a step in bfloat16, at most eight a second, without making the computation wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

INTERVAL_S: Final = 1 / 8
VIDEO_DIMS: Final = 5


class Previews:
    """Thins out and sends the previews of one job. Used on rank 0 only.

    ``send(step, x0)`` gets bfloat16 on the CPU, in memory that nobody writes to afterwards.
    """

    def __init__(self, send: Callable[[int, Tensor], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._next_s = clock()
        self._on_its_way: tuple[int, Tensor, torch.cuda.Event] | None = None

    def offer(self, step: int, denoised: Tensor) -> None:
        """Send ``denoised``, or begin to bring it to the host, unless the last preview is too fresh. Does not wait for the device.

        Of a video ``[batch, channels, frames, height, width]`` only the first frame: it is what ComfyUI's previewers show.
        """
        now = self._clock()
        if now < self._next_s:
            return
        denoised = denoised[:, :, :1] if denoised.ndim == VIDEO_DIMS else denoised
        self._next_s = now + INTERVAL_S
        if denoised.device.type != "cuda":
            self._send(step, denoised.to(torch.bfloat16).contiguous())
            return
        host = torch.empty(denoised.shape, dtype=torch.bfloat16, pin_memory=True)
        host.copy_(denoised.to(torch.bfloat16), non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._on_its_way = (step, host, arrived)

    def flush(self) -> None:
        """Send the preview that has arrived from the device, if there is one. Called when the device is busy with the next call."""
        if self._on_its_way is None:
            return
        step, host, arrived = self._on_its_way
        if arrived.query():  # type: ignore[no-untyped-call]
            self._on_its_way = None
            self._send(step, host)
