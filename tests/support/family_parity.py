"""One family against stock ComfyUI's own network: every call under every plan, with a dropped exchange as control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tutti.backend.models.family import Family
from tutti.backend.models.tiny import write_tiny
from tutti.backend.parallel.plan import Plan

from tests.support.calls import DrawnCall, write_calls
from tests.support.parity import relative_error
from tests.support.ranks import run_ranks
from tests.support.stock import StockFile, stock_runs

PLANS: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("ulysses=1,ring=1",),
    2: ("ulysses=2,ring=1", "ulysses=1,ring=2", "cfg=2"),
    4: ("ulysses=2,ring=2", "cfg=2,ulysses=2"),
}
"""World size -> the plans that every family is compared under."""


COMPILED: Final = Plan(ring=2)
"""The plan under which the first call of a family's first checkpoint also runs compiled ..."""
COMPILED_BY: Final[Mapping[str, Plan]] = {"qwen_image": Plan(ring=2, ulysses=2)}
"""... but for Qwen-Image, which others could not compile under ring and Ulysses at once."""

LARGEST_PATCH: Final = 4
"""Cells of a latent in the largest patch of any family, 2 x 2: so small a latent is one token."""


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """One small checkpoint of a family, and the calls that parity is promised for."""

    name: str
    """What this checkpoint is: ``text to video``."""
    geometry: Any
    calls: Mapping[str, DrawnCall]
    unet_config: Mapping[str, Any] = field(default_factory=dict)
    """What ComfyUI's detection hard-codes for this family and a small checkpoint does not have: changed in the test's ComfyUI."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the file, where ComfyUI reads sizes from there."""


@dataclass(kw_only=True)
class Comparison:
    """What came out."""

    errors: dict[tuple[str, str], float] = field(default_factory=dict)
    """By plan and call."""
    controls: dict[tuple[str, str], float] = field(default_factory=dict)
    """The same, the worst of all ranks, with what the last rank receives thrown away."""
    compiled: dict[str, float] = field(default_factory=dict)
    """The error of a call whose blocks ran compiled."""
    not_compiled: dict[str, str] = field(default_factory=dict)
    """Kinds of blocks that could not be, and why."""
    graphs: int = 0
    """That were compiled."""
    identical: bool = True
    """Whether all ranks held the same bits."""


def has_exchange(plan: Plan, call: DrawnCall) -> bool:
    """Whether ranks need anything of one another: not without a sequence group, and not where one rank has all that there is of the latent."""
    return plan.ring * plan.ulysses > 1 and math.prod(call.x.shape[2:]) > LARGEST_PATCH


def compare(family: Family[Any], rows: Sequence[FamilyRow], folder: Path) -> Comparison:
    """Write every row's checkpoint, and run every call through stock ComfyUI and through real ranks."""
    paths = {row.name: folder / f"{number}.safetensors" for number, row in enumerate(rows)}
    for number, row in enumerate(rows):
        write_tiny(paths[row.name], family, row.geometry, seed=number, metadata=row.metadata)
    files = [
        StockFile(
            path=paths[row.name],
            calls={f"{row.name}: {name}": call for name, call in row.calls.items()},
            unet_config=row.unet_config,
        )
        for row in rows
    ]
    expected = stock_runs(files, folder / "stock", family=family.name)
    checkpoint_of = {name: str(file.path) for file in files for name in file.calls}
    calls = {name: call for file in files for name, call in file.calls.items()}
    write_calls(calls, folder)
    found = Comparison()
    for world_size, plans in PLANS.items():
        cases = [
            {
                "name": f"{plan}/{name}/{dropped}",
                "plan": plan,
                "call": name,
                "checkpoint": path,
                "dropped": dropped,
                "mode": "off",
            }
            for plan in plans
            for name, path in checkpoint_of.items()
            for dropped in ((False, True) if has_exchange(Plan.parse(plan), calls[name]) else (False,))
        ]
        compiled = COMPILED_BY.get(family.name, COMPILED)
        if compiled.world_size == world_size:
            name, path = next(iter(checkpoint_of.items()))
            cases.append(
                {
                    "name": f"compiled/{name}",
                    "plan": str(compiled),
                    "call": name,
                    "checkpoint": path,
                    "dropped": False,
                    "mode": "blocks",
                }
            )
        arguments = {
            "checkpoints": [str(path) for path in paths.values()],
            "calls": str(folder),
            "dtype": "float32",
            "cases": cases,
        }
        results = run_ranks(
            "tests.distributed.family_ranks", world_size, folder / str(world_size), arguments, timeout_s=250
        )
        assert results[0].facts["families"] == [family.name]
        found.graphs += results[0].facts["graphs"]
        for result in results:
            found.not_compiled |= result.facts.get("not compiled", {})
        for case in cases:
            outputs = [result.tensors[str(case["name"])] for result in results]
            key = str(case["plan"]), str(case["call"])
            errors = [relative_error(output, expected[key[1]]) for output in outputs]
            if case["mode"] != "off":
                found.compiled[key[1]] = max(errors)
            else:
                (found.controls if case["dropped"] else found.errors)[key] = max(errors)
            found.identical &= bool(case["dropped"]) or all(bool((output == outputs[0]).all()) for output in outputs)
    return found
