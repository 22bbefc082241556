"""Opening parcels ahead: what a hop brings is decoded beside the attention to the chunk before, and not after it.

On a CPU one thread of the process waits for hops and decodes what they bring, in the order in which they began; on a GPU a stream of its own does. What is
handed over waits and decodes. It touches its own channel's state and number, and the two counts of a :class:`..compression.channel.Watch` that have a lock, and nothing
else: channels are made and chosen, and room for them is counted, by the thread that hands it over, as they are on every other rank.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

IDLE_S = 0.5
"""A thread that had nothing to do for so long ends; the next hop starts another one."""

T = TypeVar("T")
Values = TypeVar("Values", bound="Tensor | tuple[Tensor, ...]")


def begin(work: Callable[[], Values], device: torch.device) -> Callable[[], Values]:
    """Begin ``work``, which waits for a transfer and decodes what it brings, and go on.

    What is returned waits for its value, which this thread and its current stream may read then, and raises what the work raised. It has to be
    called before the next transfer of the same channel.
    """
    return _on_side_stream(work, device) if device.type == "cuda" else _thread.begin(work)


class DecodingThread:
    """Does what it is given, one piece after the other. How many there are is the caller's to bound: a ring has as many as hops ahead, times its lanes.

    It starts with the first piece. A daemon: a rank that has failed elsewhere must not stay for a hop that never comes.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_running = False

    def begin(self, work: Callable[[], T]) -> Callable[[], T]:
        """See :func:`begin`. Work that waits for its turn when it is asked for is done at once, by whoever asks: a hop that never comes holds up nobody else."""
        promise: Future[T] = Future()
        modes = torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        taken = threading.Lock()

        def do_once() -> None:
            if taken.acquire(blocking=False):  # for good: work that failed half-way is not begun again
                _fulfil(promise, work, *modes)

        def value() -> T:
            do_once()
            return promise.result()

        with self._lock:
            self._queue.put(do_once)
            if not self._is_running:
                threading.Thread(target=self._run, name="tutti-opens-ahead", daemon=True).start()
                self._is_running = True
        return value

    def _run(self) -> None:
        while self._does_more():
            pass

    def _does_more(self) -> bool:
        """Whether to go on, after one piece more. A function, so that nothing of it stays while the thread waits for the next."""
        try:
            piece = self._queue.get(timeout=self._idle_s)
        except Empty:
            with self._lock:
                self._is_running = not self._queue.empty()
                return self._is_running
        piece()
        return True


def _fulfil(promise: Future[T], work: Callable[[], T], threads: int, is_inference: bool, has_grad: bool) -> None:
    """Do the work as torch would in the thread that it comes from, which all three settings belong to."""
    try:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode(is_inference), torch.set_grad_enabled(has_grad):
            promise.set_result(work())
    except BaseException as error:  # whoever asks raises it
        promise.set_exception(error)


_thread = DecodingThread()


def _on_side_stream(work: Callable[[], Values], device: torch.device) -> Callable[[], Values]:
    """The side stream follows what the current one was given *so far*, so that attentions launched from now on run beside it, and this one reads
    the bases that the work will change.

    Nothing is launched before the value is asked for, when the host has long launched those attentions: until then a hop counts as under way (on
    NCCL a wait is over before the transfer is), and a call that fails leaves nothing behind on a stream that nobody looks at.
    """
    begun = torch.cuda.current_stream(device).record_event()

    def value() -> Values:
        current, side = torch.cuda.current_stream(device), _side_stream(device)
        side.wait_event(begun)
        try:
            with torch.cuda.stream(side):
                found = work()
        finally:  # buffers of the current stream that the transfer or the work reads may be freed from here on
            current.wait_stream(side)
        # Their memory is the side stream's, which must not use it again before it was read here.
        for tensor in (found,) if isinstance(found, Tensor) else found:
            tensor.record_stream(current)
        return found

    return value


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Of high priority: what is decoded is short, and the next attention waits for it."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
