"""Branches of unequal lengths in one message, so that the daemon can compute them side by side.

ComfyUI stacks branches of one length into one call of the network and makes one call after the other for the rest. Here its own function runs
twice: first only to see which calls it makes, then with the answers to all of them. Nothing of what it does with them is done by us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import refusals

if TYPE_CHECKING:
    from .evaluate import ModelCall, Trajectories
    from .remote_model import Remote

WRAPPER_KEY = "tutti"
_AROUND_CALLS = ("calc_cond_batch", "apply_model", "diffusion_model")


class Recorder:
    """Takes the place of the daemon while ComfyUI's function is only watched; then hands out the answers in the order of the questions."""

    def __init__(self, out_channels: int) -> None:
        self._out_channels = out_channels
        self._asked: list[tuple[Remote, list[ModelCall]]] = []
        self._answers: list[torch.Tensor] | None = None

    def take(self, remote: Remote, x: torch.Tensor, calls: list[ModelCall]) -> torch.Tensor:
        """What the network gives to `x`: zeros while it is watched."""
        if self._answers is None:
            self._asked.append((remote, calls))
            return x.new_zeros(x.shape[0], self._out_channels, *x.shape[2:])
        return self._answers.pop(0)

    def ask(self, running: Trajectories) -> None:
        """Send all questions, those of one model in one message."""
        remotes = {remote.on: remote for remote, _ in self._asked}
        answers = {
            on: iter(running.of(remote).run([call for asked, calls in self._asked if asked.on == on for call in calls]))
            for on, remote in remotes.items()
        }
        self._answers = [torch.cat([next(answers[remote.on]) for _ in calls]) for remote, calls in self._asked]


def calc_cond_batch(
    executor: Callable[..., list[torch.Tensor]],
    model: Any,
    conds: Sequence[list[dict[str, Any]] | None],
    x_in: torch.Tensor,
    timestep: torch.Tensor,
    model_options: dict[str, Any],
) -> list[torch.Tensor]:
    """CALC_COND_BATCH wrapper of every Tutti MODEL. `x_in`: [batch, channels, ...]."""
    options = model_options.get("transformer_options", {})
    running: Trajectories | None = options.get(refusals.TRAJECTORY_KEY)
    if running is None or not _makes_several_calls(conds) or _is_watched_by_others(conds, model_options):
        return executor(model, conds, x_in, timestep, model_options)
    recorder = Recorder(x_in.shape[1])
    watched = {**model_options, "transformer_options": {**options, refusals.RECORDER_KEY: recorder}}
    executor(model, conds, x_in, timestep, watched)
    recorder.ask(running)
    return executor(model, conds, x_in, timestep, watched)


def _makes_several_calls(conds: Sequence[list[dict[str, Any]] | None]) -> bool:
    """Whether texts are of different lengths: others share a call."""
    shapes = set()
    for entry in (entry for side in conds if side for entry in side):
        text = entry.get("model_conds", {}).get("c_crossattn")
        shapes.add(None if text is None else tuple(text.cond.shape))
    return len(shapes) > 1


def _is_watched_by_others(conds: Sequence[list[dict[str, Any]] | None], model_options: Mapping[str, Any]) -> bool:
    """Whether somebody else would see calls that are not made, or every call twice."""
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    around = any(found for kind in _AROUND_CALLS for key, found in wrappers.get(kind, {}).items() if key != WRAPPER_KEY)
    callbacks = any(any(keyed.values()) for keyed in options.get("callbacks", {}).values())
    special = {"model_function_wrapper", "multigpu_clones", "context_handler"} & set(model_options)
    entries = [entry for side in conds if side for entry in side]
    inside = any(entry.get("control") is not None or entry.get("hooks") is not None for entry in entries)
    return around or callbacks or bool(special) or inside or refusals.RECORDER_KEY in options
