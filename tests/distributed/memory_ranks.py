"""What each rank runs for the memory test: load one checkpoint, touch its weights, and say what that took of this host."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tutti.backend.models.lora.variants import Lora
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.parallel.group import CONTROL_WORDS

from tests.support.ranks import Rank, this_rank


def proportional_bytes() -> int:
    """Memory of this process, pages that several processes map divided among them."""
    return 1024 * int(re.findall(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)[0])


def touch(model: ResidentModel) -> None:
    """One byte of every page: all of them are resident then, and nothing else is allocated."""
    for tensor in model.adapter.network.state_dict().values():  # type: ignore[attr-defined]
        tensor.flatten().view(torch.uint8)[::4096].max()


def warm_up(checkpoint: str) -> None:
    """What the libraries take once, before anything is counted."""
    touch(load_model(Path(checkpoint), dtype=torch.bfloat16, device=torch.device("cpu"), progress=lambda _: None))


def meet(rank: Rank) -> None:
    """Nobody goes on before all are here."""
    rank.group.exchange_control(torch.zeros(CONTROL_WORDS, dtype=torch.int64))()


def main() -> None:
    rank = this_rank()
    model, arguments = None, rank.arguments
    warm_up(arguments["warm_up"])
    for stage in ("before", "loaded", "with LoRA"):
        if stage == "loaded":
            model = load_model(
                Path(arguments["checkpoint"]),
                dtype=getattr(torch, arguments["dtype"]),
                device=rank.group.device,
                progress=lambda _: None,
                make_room=lambda weight_bytes: rank.facts.update(
                    estimate=weight_bytes(getattr(torch, arguments["dtype"]))
                ),
                shared_file=Path(arguments["shared_file"]) if arguments["shared_file"] else None,
            )
        if stage == "with LoRA":
            assert model is not None
            assert model.variants is not None
            lora = Lora(path=arguments["lora"], fingerprint="0", strength=0.5)
            key = model.variants.prepare([lora], identity="x", folder=rank.folder / "variants")
            model.variants.switch(key)
        if model is not None:
            touch(model)
        meet(rank)
        rank.facts[stage] = proportional_bytes()
        meet(rank)
    rank.finish()


if __name__ == "__main__":
    main()
