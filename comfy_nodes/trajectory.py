"""The hook around ComfyUI's samplers: one job for the whole loop where that gives the same result, else step by step, and it says which.

At SAMPLER_SAMPLE the latent is already in model space and the conditioning is already what the network takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..backend.assets.advice import PIXELS_PER_CELL, size_warning
from ..backend.assets.files import TRANSFORMER
from ..backend.client import job_id_for
from ..backend.wire.codec import Received
from ..backend.wire.messages import Accepted, Branch, Preview, Progress, Result, Sample
from ..backend.wire.tensors import WireTensor
from . import conditioning, evaluate, gate, host, refusals, report
from .tensors import from_wire, to_wire

if TYPE_CHECKING:
    from .remote_model import Remote

Callback = Callable[[int, torch.Tensor, torch.Tensor, int], None]
_NO_ID = "0" * 32


def sampler_sample(
    executor: Any, guider: Any, sigmas: torch.Tensor, extra_args: dict[str, Any], callback: Callback | None, noise: torch.Tensor,
    latent_image: torch.Tensor | None = None, denoise_mask: torch.Tensor | None = None, disable_pbar: bool = False,
) -> torch.Tensor:  # fmt: skip
    """SAMPLER_SAMPLE wrapper of every Tutti MODEL. `noise`, `latent_image` and `denoise_mask`: [batch, channels, (frames,) height, width].

    Raises:
        UnsupportedInput: something attached to the run changes the picture from inside the network.
        WrongFamily: the latent belongs to another family.
    """
    remote: Remote = guider.model_patcher.model.diffusion_model.remote.of(guider.model_patcher)
    model_options = extra_args["model_options"]
    notes = refusals.skip_speed_only((model_options, guider.model_options), guider.model_patcher)
    refusals.check_patcher(guider.model_patcher)
    refusals.check_transformer_options(model_options["transformer_options"])
    for entries in guider.conds.values():
        refusals.check_conditioning(entries)
    refusals.check_latent(remote.family, guider.inner_model.latent_format, noise)
    notes += _demo_notes(remote, noise)
    reason = gate.why_not_whole(
        executor=executor,
        guider=guider,
        model_options=model_options,
        sigmas=sigmas,
        callback=callback,
        masked=denoise_mask is not None,
        family=remote.family,
    )
    if reason is None:
        run = WholeLoop(remote, guider, sigmas, callback, notes)
        return run.sample(gate.sampler_name(executor.class_obj) or "", noise, latent_image, denoise_mask)
    with evaluate.trajectories(remote, report.step_by_step(reason, notes)) as running:
        model_options["transformer_options"][refusals.TRAJECTORY_KEY] = running
        answer: torch.Tensor = executor(
            guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )
        return answer


def _demo_notes(remote: Remote, noise: torch.Tensor) -> list[str]:
    """The model that ships draws noise at sizes that other models like: whoever asks for one is told."""
    if remote.on.model != TRANSFORMER:
        return []
    height, width = (side * PIXELS_PER_CELL for side in noise.shape[-2:])
    warning = size_warning(width, height)
    return [warning] if warning else []


class WholeLoop:
    """One Sample: built, sent, shown while it runs, and its result."""

    def __init__(
        self, remote: Remote, guider: Any, sigmas: torch.Tensor, callback: Callback | None, notes: list[str]
    ) -> None:
        self._remote = remote
        self._guider = guider
        self._sigmas = sigmas
        self._callback = callback
        self._notes = notes
        self._steps = len(sigmas) - 1
        self._told = ""

    def sample(
        self, sampler: str, noise: torch.Tensor, latent: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the loop in the daemon and return the latent, like `noise`."""
        self._device = noise.device
        self._progress = host.Progress(self._steps)
        with self._remote.session.guarded():
            client = self._remote.session.ready_client()
            message, tensors = self._build(sampler, noise, latent, mask)
            message = replace(message, job_id=job_id_for(message, tensors, client.client_id))
            received = client.sample(message, tensors, self._listen, host.raise_if_interrupted)
        return self._finish(received, noise)

    def _build(
        self, sampler: str, noise: torch.Tensor, latent: torch.Tensor | None, mask: torch.Tensor | None
    ) -> tuple[Sample, dict[str, WireTensor]]:
        guider, remote = self._guider, self._remote
        tensors = {"noise": to_wire(noise.float()), "sigmas": to_wire(self._sigmas.float())}
        if latent is not None and bool(torch.count_nonzero(latent)):
            tensors["latent"] = to_wire(latent.float())
        if mask is not None:
            tensors["mask"] = to_wire(mask.float())
        branches: list[Branch] = []
        for side in gate.sides(guider):
            told = conditioning.from_model_conds(remote.family, guider.conds[side][0]["model_conds"], remote.dtype)
            tensors |= {f"branch.{len(branches)}.{name}": tensor for name, tensor in told.to_wire().items()}
            branches.append(Branch(kind=side, options=told.options))
        message = Sample(
            job_id=_NO_ID,
            node_id=host.node_id(),
            on=remote.on,
            sampler=sampler,  # type: ignore[arg-type]  # one of gate.SAMPLERS, which the message's schema checks
            cfg=float(guider.cfg),
            timestep_multiplier=float(getattr(guider.inner_model.model_sampling, "multiplier", 1.0)),
            branches=tuple(branches),
            previews=self._wants_previews(),
        )
        return message, tensors

    def _wants_previews(self) -> bool:
        if self._callback is None:
            return False
        patcher = self._guider.model_patcher
        return host.wants_previews(patcher.load_device, patcher.model.latent_format)

    def _listen(self, received: Received) -> None:
        message = received.message
        if isinstance(message, Accepted) and message.ahead:
            self._say(report.queued(message.ahead))
        elif isinstance(message, Progress) and message.phase in ("loading", "compiling"):
            self._say(report.preparing(message))
        elif isinstance(message, Progress) and message.phase == "sampling":
            self._say(report.whole_loop(message.text, self._notes))
            self._progress.show(message.step)
        elif isinstance(message, Preview) and self._callback is not None:
            x0 = from_wire(received.tensors["x0"], self._device).float()
            self._callback(min(message.step, self._steps - 1), x0, x0, self._steps)

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            host.say(text)

    def _finish(self, received: Received, noise: torch.Tensor) -> torch.Tensor:
        message = received.message
        if self._callback is not None:
            # The denoised output of SamplerCustomAdvanced is the last x0: it comes whole, however few previews came before it.
            x0 = from_wire(received.tensors["x0"], self._device)
            self._callback(self._steps - 1, x0, x0, self._steps)
        if isinstance(message, Result):
            host.say(report.finished(message, self._steps, self._notes))
        return from_wire(received.tensors["latent"], self._device).to(noise.dtype)
