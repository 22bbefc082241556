"""The rank's loop: wait on the socket, make ready, go, report. A rank that waits for work is never inside a collective."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from ..compression.store import ResidualStore
from ..errors import Draining, JobCancelled, RemoteProtocolError, TuttiError
from ..parallel.compile import Compiler
from ..parallel.group import WorkerGroup
from ..parallel.mesh import SequenceMesh
from ..parallel.providers import NOTES
from ..parallel.transport import count_open_hops
from ..wire.codec import Received
from ..wire.messages import Abort, Cancel, Evaluate, Go, Prepare, Repeat, Sample
from ..wire.plans import shown_plan
from ..wire.tensors import WireTensor
from .control import Action, CallGate, OutOfStep, ResidualNews
from .evaluate import Trajectories, keep_uploads, run_evaluate
from .failure import as_tutti_error, ends_process_after, exit_status
from .link import BrokerLink
from .network import GatedNetwork
from .preparation import PreparedJob, job_of, make_ready
from .preview import Previews
from .report import JobReport, RankReport, StepClock
from .residency import ResidentModels
from .residuals import Residuals, TrajectoryResiduals
from .stopping import StopSignal
from .tensors import share
from .trajectory import run_sample

AGREEMENT_S: Final = 10.0
"""How long a rank whose call failed waits to hear that the others' calls failed too."""

log = logging.getLogger(__name__)


class RankLoop:
    """One rank at work."""

    def __init__(
        self,
        group: WorkerGroup,
        link: BrokerLink,
        models: ResidentModels,
        stop: StopSignal,
        compiler: Compiler,
        residuals: ResidualStore,
        shared_folder: Path,
    ) -> None:
        """``shared_folder``: where ranks of this host keep weights that LoRAs have changed, once for all of them."""
        self._residuals = Residuals(residuals)
        self._shared_folder = shared_folder
        self._compiler = compiler
        self._group = group
        self._link = link
        self._models = models
        self._stop = stop
        self._report = RankReport(link.send)
        self._trajectories = Trajectories()
        self._sequence = 0
        self._waiting: PreparedJob | None = None
        self._ran: PreparedJob | None = None
        """The Evaluate that this rank ran last and answered, if no Prepare has come since."""
        self._cancelled = False

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            LinkLost, OutOfStep, TuttiError, RuntimeError: the group cannot go on; the process must end.
        """
        while not self._stop.requested:
            received = self._link.receive()
            if received is None:
                self._stop.clear()
            else:
                self._handle(received)

    def _handle(self, received: Received) -> None:
        message = received.message
        if isinstance(message, Prepare):
            self._prepare(message, received.tensors)
        elif isinstance(message, Go):
            self._go(self._take_waiting(message.sequence))
        elif isinstance(message, Repeat):
            self._repeat(message, received.tensors)
        elif isinstance(message, Abort):
            self._waiting = None
        elif isinstance(message, Cancel):
            # Before Go it holds for the job that waits; after the end of its job it came too late.
            self._cancelled |= self._waiting is not None and self._waiting.job.job_id == message.job_id
        else:
            raise RemoteProtocolError(f"a rank is never sent {type(message).__name__}")

    def _take_waiting(self, sequence: int) -> PreparedJob:
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.sequence != sequence:
            raise RemoteProtocolError(f"Go({sequence}) without a job that was prepared under this number")
        return waiting

    def _begin(self, message: Prepare | Repeat) -> None:
        """Count a turn."""
        if message.sequence != self._sequence + 1 or self._waiting is not None:
            what = f"{type(message).__name__}({message.sequence})"
            raise RemoteProtocolError(f"{what} out of turn: the last one was {self._sequence}")
        self._sequence, self._cancelled = message.sequence, False

    def _repeat(self, repeat: Repeat, frames: dict[str, WireTensor]) -> None:
        self._begin(repeat)
        if self._ran is None:
            raise RemoteProtocolError(f"Repeat({repeat.sequence}) without an Evaluate that ran last")
        self._go(self._ran.next_turn(repeat, frames), ready_since_last_turn=True)

    def _prepare(self, prepare: Prepare, frames: dict[str, WireTensor]) -> None:
        self._begin(prepare)
        self._ran = None
        self._trajectories.forget(prepare.forget)
        self._residuals.forget(prepare.forget)
        report = self._job_report(job_of(prepare).job_id)
        refusal: TuttiError | None = None
        try:
            self._waiting = make_ready(
                prepare,
                frames,
                world_size=self._group.world_size,
                models=self._models,
                trajectories=self._trajectories,
                shared_folder=self._shared_folder,
                progress=report.loading,
            )
        except Exception as error:
            refusal = self._name(error, f"refused job {prepare.sequence}")
        # Out of the except block, whose traceback keeps what was allocated alive.
        if refusal is None:
            self._report.prepared(prepare.sequence, self._checksum(self._waiting))
        else:
            self._models.memory.free()
            self._report.refused(prepare.sequence, refusal)

    @staticmethod
    def _checksum(prepared: PreparedJob | None) -> str | None:
        """Of the weights that the job's LoRAs changed."""
        if prepared is None or prepared.model.variants is None:
            return None
        return prepared.model.variants.checksum(prepared.variant)

    def _go(self, prepared: PreparedJob, *, ready_since_last_turn: bool = False) -> None:
        """Run a job together with the other ranks, and leave it together with them."""
        report, gate = self._job_report(prepared.job.job_id), self._gate(prepared)
        self._ran = None
        left: TuttiError | None = None
        failure: TuttiError | None = None
        try:
            self._execute(prepared, gate, report, early=ready_since_last_turn)
        except (JobCancelled, Draining) as decided:
            left = as_tutti_error(decided, self._group.device)
        except OutOfStep:
            raise
        except Exception as error:
            failure = self._name(error, f"job {prepared.sequence} failed")
        if failure:
            with ends_process_after(AGREEMENT_S, "agreeing on a failure", exit_status(failure.code)):
                gate.agree_on(failure)
            if hops := count_open_hops(self._group.transport):
                # They would meet the next job's. To wait for them is no way out: another rank may have failed before it sent its part.
                raise OutOfStep(f"the job failed while {hops} of its hops were under way", error=failure.code)
            self._models.memory.free()
        if ended_by := left or failure:
            report.failed(ended_by)
        elif isinstance(prepared.job, Evaluate):
            self._ran = replace(prepared, frames={})  # the frames' memory goes back to the socket
        self._wait_for_device()
        compression = self._compression(prepared)
        if left or failure or isinstance(prepared.job, Sample):
            self._residuals.forget([prepared.job.job_id])
        self._report.done(
            prepared.sequence,
            memory_bytes=self._models.memory.used_bytes,
            resident=self._models.names,
            compile=self._compiler.state,
            attention=NOTES.parts(),
            compression=compression,
        )

    def _name(self, error: Exception, what: str) -> TuttiError:
        """``error`` for the broker, and a line in the log; with the traceback unless somebody raised it on purpose."""
        named = as_tutti_error(error, self._group.device)
        log.warning("%s (%s): %s", what, named.code, error, exc_info=None if isinstance(error, TuttiError) else error)
        return named

    @torch.no_grad()
    def _execute(self, prepared: PreparedJob, gate: CallGate, report: JobReport, *, early: bool) -> None:
        if early:  # the first exchange travels while the tensors do
            gate.call = self._trajectories.open(prepared.job.job_id).calls
            gate.start()
        tensors = share(self._group, prepared.specs, prepared.frames)
        mesh = self._group.mesh(prepared.plan)
        self._compiler.begin_job(prepared.job.job_id, on_graph=report.compiling)
        NOTES.begin_turn()
        prepared.model.bind(mesh, self._compiler)
        if prepared.model.variants is not None:
            prepared.model.variants.switch(prepared.variant)
        if isinstance(prepared.job, Sample):
            self._sample(prepared, prepared.job, tensors, gate, report, mesh)
            return
        trajectory = self._trajectories.open(prepared.job.job_id)
        keep_uploads(trajectory, {spec.name: spec for spec in prepared.specs}, tensors)
        gate.call = trajectory.calls
        try:
            outputs = run_evaluate(
                prepared.job,
                tensors,
                trajectory,
                GatedNetwork(prepared.model, gate, mesh, residuals=self._residuals_of(prepared)),
            )
        finally:
            trajectory.calls = gate.call
        if (
            prepared.left_out or not prepared.plan.exact
        ):  # the client's own loop shows nothing of the plan unless it is told
            report.sampling(prepared.job.turn, 0, self._what_runs(prepared))
        report.evaluated(prepared.job.turn, outputs)

    def _sample(
        self,
        prepared: PreparedJob,
        sample: Sample,
        tensors: dict[str, torch.Tensor],
        gate: CallGate,
        report: JobReport,
        mesh: SequenceMesh,
    ) -> None:
        steps = tensors["sigmas"].shape[0] - 1
        previews, clock = Previews(report.preview), StepClock(self._clock_without_compilations)
        shows_previews = sample.previews and self._group.rank == 0

        def on_step(step: int, denoised: torch.Tensor) -> None:
            clock.mark()
            if shows_previews:
                previews.offer(step, denoised)
            report.sampling(step + 1, steps, self._what_runs(prepared))

        report.sampling(0, steps, self._what_runs(prepared))
        network = GatedNetwork(
            prepared.model, gate, mesh, when_launched=previews.flush, residuals=self._residuals_of(prepared)
        )
        before_bytes = self._group.transport.sent_bytes
        outcome = run_sample(sample, tensors, network, on_step)
        step_ms = clock.median_ms()
        exchanged_bytes = gate.add_up(self._group.transport.sent_bytes - before_bytes)
        report.result(
            outcome,
            step_ms=step_ms,
            plan=str(prepared.plan),
            exchanged_bytes=exchanged_bytes,
            compression=self._compression(prepared),
        )

    def _what_runs(self, prepared: PreparedJob) -> str:
        """A line for the node."""
        ranks = self._group.world_size
        residuals = self._residuals_of(prepared)
        parts = [
            f"{shown_plan(str(prepared.plan))} on {ranks} rank{'s' if ranks > 1 else ''}",
            prepared.left_out,
            *(residuals.lines if residuals else ()),
            self._compiler.note,
        ]
        return ", ".join(filter(None, parts))

    def _compression(self, prepared: PreparedJob) -> list[str]:
        """What compression did for a job so far, or why it does not compress. Waits for the device."""
        residuals = self._residuals_of(prepared)
        if residuals is None:
            return [prepared.left_out] if prepared.left_out else []
        residuals.look()
        return residuals.summary

    def _clock_without_compilations(self) -> float:
        """Steps are timed as they will be from the next job on."""
        return time.perf_counter() - self._compiler.seconds

    def _residuals_of(self, prepared: PreparedJob) -> TrajectoryResiduals | None:
        return self._residuals.of(prepared.plan, prepared.job.job_id)

    def _gate(self, prepared: PreparedJob) -> CallGate:
        residuals = self._residuals_of(prepared)
        return CallGate(
            exchange=self._group.exchange_control,
            asks=lambda: self._asks(prepared.job.job_id),
            wait_for_device=self._wait_for_device,
            sequence=prepared.sequence,
            tells=ResidualNews if residuals is None else residuals.news,
        )

    def _asks(self, job_id: str) -> Action:
        """What this rank wants before the next call. Only rank 0 is sent Cancel; nobody else is sent anything now."""
        while (received := self._link.receive_now()) is not None:
            if not isinstance(received.message, Cancel):
                raise RemoteProtocolError(f"{type(received.message).__name__} came while a job runs")
            self._cancelled = self._cancelled or received.message.job_id == job_id
        if self._cancelled:
            return Action.CANCEL
        return Action.DRAIN if self._stop.requested else Action.CONTINUE

    def _wait_for_device(self) -> None:
        if self._group.device.type == "cuda":
            torch.cuda.current_stream(self._group.device).synchronize()

    def _job_report(self, job_id: str) -> JobReport:
        return JobReport(self._link.send, job_id, speaks=self._group.rank == 0)
