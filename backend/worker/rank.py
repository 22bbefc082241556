"""One rank from its start to its end: join the group, greet the broker, serve."""

from __future__ import annotations

import logging
import os
import sys

import setproctitle
import torch

from ..models.registry import load_model
from ..parallel.compile import Compiler
from ..parallel.group import WorkerGroup
from ..wire.messages import RankHello
from .control import OutOfStep
from .failure import EXIT_NOT_STARTED, end_process, ends_process_after, exit_status
from .link import BrokerLink
from .loop import RankLoop
from .memory import Memory
from .residency import Loader, ResidentModels
from .residuals import open_store
from .settings import RankSettings
from .stopping import StopSignal

GOODBYE_S = 5.0
"""How long a rank that was told to stop waits for the others before it leaves the group without them."""

log = logging.getLogger(__name__)


def run_rank(load: Loader = load_model) -> None:
    """Join the group, say hello to the broker, and serve until told to stop. Any failure ends the process.

    ``load`` reads checkpoints; benchmarks and tests bring others.
    """
    settings = RankSettings.take()
    _name_process(settings)
    stop = StopSignal()
    stop.install()
    try:
        group = _join(settings)
        memory = Memory(group.device, settings.ranks_on_device)
        models = ResidentModels(load, memory, budget_bytes=memory.budget_bytes, shared_folder=settings.shared_folder)
        residuals = open_store(group, settings.ranks_on_device)
        link = BrokerLink(settings.endpoint, f"rank-{settings.rank}-{settings.incarnation}".encode(), stop)
        link.send(_hello(settings, group))
    except Exception as error:
        log.exception("cannot start")
        end_process(f"{type(error).__name__}: {error}", EXIT_NOT_STARTED)
    try:
        compiler = Compiler(settings.compile, group.device)
        RankLoop(group, link, models, stop, compiler, residuals, settings.shared_folder).run()
    except OutOfStep as error:
        log.exception("cannot go on")
        end_process(f"{type(error).__name__}: {error}", exit_status(error.error))
    except Exception as error:
        log.exception("cannot go on")
        end_process(f"{type(error).__name__}: {error}")
    log.info("told to stop")
    with ends_process_after(GOODBYE_S, "leaving the group"):
        link.close()
        group.close()


def _name_process(settings: RankSettings) -> None:
    setproctitle.setproctitle(f"tutti: rank {settings.rank} of {settings.world_size}")
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s rank {settings.rank} %(levelname)s %(name)s: %(message)s",
    )


def _join(settings: RankSettings) -> WorkerGroup:
    device = settings.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return WorkerGroup.start(
        rank=settings.rank,
        world_size=settings.world_size,
        init_method=settings.init_method,
        device=device,
        transport=settings.transport,
    )


def _hello(settings: RankSettings, group: WorkerGroup) -> RankHello:
    device = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "cpu"
    return RankHello(
        token=settings.token,
        group_id=settings.group_id,
        incarnation=settings.incarnation,
        rank=settings.rank,
        world_size=settings.world_size,
        pid=os.getpid(),
        device=device,
        transport=group.transport.name,
    )
