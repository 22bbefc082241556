"""The step benchmark: who takes part, ratios, and one rank's share of a small network with stand-in peers. On one CPU core, uncompiled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tutti.backend.parallel.plan import Plan
from tutti.benchmarks.report import Figure, read_targets
from tutti.benchmarks.step import __main__ as command
from tutti.benchmarks.step import contestants, shard
from tutti.benchmarks.step.agreement import ALLOWED, disagreement
from tutti.benchmarks.step.compiling import compile_blocks
from tutti.benchmarks.step.entries import Entry, entries_of, short
from tutti.benchmarks.step.links import LINKS
from tutti.benchmarks.step.networks import MODELS, draw_call, draw_network, twin_of
from tutti.benchmarks.step.peers import fake_mesh
from tutti.benchmarks.step.race import Race, figures_of

from tests.support.meshes import single_rank_mesh
from tests.support.step_models import odd_flux

CPU = torch.device("cpu")


def race(sizes: Sequence[int]) -> Race:
    return Race(model=MODELS["flux-512"], device="cpu", sizes=sizes, modes=("off", "blocks"), rounds=2)


def named(figures: Sequence[Figure]) -> dict[tuple[str, str], float]:
    return {(figure.case, figure.metric): figure.value for figure in figures}


def test_one_rank_races_diffusers_and_a_group_its_context_parallelism() -> None:
    model = MODELS["flux-512"]
    assert [entry.name for entry in entries_of(1, model, ("off", "blocks"))] == [
        "diffusers eager",
        "diffusers compiled",
        "ulysses=1 eager",
        "ulysses=1 compiled",
    ]
    assert [entry.name for entry in entries_of(4, model, ("off",))] == [
        "diffusers ulysses=4 eager",
        "diffusers ulysses=4 compiled",
        "ulysses=4 eager",
        "ring=2,ulysses=2 eager",
        "ring=4 eager",
    ]
    # 4 heads are not divided by 3: diffusers cannot, our ring can.
    assert [entry.name for entry in entries_of(3, model, ("off",))] == ["ring=3 eager"]


def test_every_contestants_name_is_its_own() -> None:
    names = [entry.name for entries in race((1, 2, 4, 8)).entries().values() for entry in entries]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "plan", ["ulysses=1", "ring=2", "ulysses=8", "ring=4,ulysses=2", "ring=2,schedule=allgather", "ulysses=2,codec=fp8"]
)
def test_a_short_plan_is_read_back_as_the_same(plan: str) -> None:
    assert short(Plan.parse(plan)) == plan


def test_ratios_are_taken_within_a_round() -> None:
    times = {
        "diffusers eager": [4.0, 8.0],
        "diffusers ulysses=2 eager": [2.0, 4.0],
        "ulysses=2 eager": [1.0, 2.0],
        "ulysses=2 compiled": [0.5, 1.0],
        "ring=2 eager": [4.0, 8.0],
    }
    figures = named(figures_of(race((1, 2)), times))
    assert figures["ulysses=2 compiled", "step time / eager"] == 0.5
    assert figures["ulysses=2 compiled", "step time / diffusers context parallel"] == 0.25
    assert figures["ulysses=2 eager", "diffusers on one device / step time"] == 4.0
    assert figures["ring=2 eager", "step time"] == 6000.0
    assert ("ring=2 eager", "step time / diffusers context parallel") not in figures  # another plan than theirs
    assert ("ring=2 compiled", "step time / eager") not in figures  # it did not run


def test_every_promised_figure_is_one_that_the_benchmark_gives() -> None:
    times = {entry.name: [1.0] for entries in race((1, 2)).entries().values() for entry in entries}
    given = figures_of(race((1, 2)), times)
    rows = read_targets(command.benchmark_name("flux-512", "cpu", "ranks"))
    assert len(rows) == 2
    assert all((row.case, row.metric) in named(given) for row in rows)
    for ranks in (2, 8):
        rows = read_targets(command.benchmark_name("flux-dev", "cuda", f"shard {ranks}"))
        assert len(rows) == 1
        asked = a_shard(Plan(ulysses=ranks), modes=("off", "graphs"))
        measured = shard.Measured(
            times={entry.name: [1.0] for entry in asked.entries()},
            transfers=[],
            chunk_attention_ms=0,
            timelines={},
            notes=[],
        )
        assert all((row.case, row.metric) in named(shard.figures_of(asked, measured)) for row in rows)


def a_shard(plan: Plan, *, modes: Sequence[str] = ("off",)) -> shard.Shard:
    return shard.Shard(model=odd_flux(), device=CPU, plan=plan, modes=modes, rounds=2, link=LINKS["10gbe"], gaps=False)


@pytest.mark.parametrize("plan", ["ulysses=2", "ring=2", "ring=2,ulysses=2", "ring=3"])
def test_one_ranks_share_runs_on_one_device(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "DIFFUSERS_MODES", ("off",))
    asked = a_shard(Plan.parse(plan))
    measured = shard.run(asked)
    assert set(measured.times) == {"diffusers eager", f"{plan} eager"}, measured.notes
    figures = named(shard.figures_of(asked, measured))
    case = f"{plan} eager"
    compute = figures[case, "compute of one rank, measured"]
    serial, exposed = (figures[plan, f"{kind}communication, model (10gbe)"] for kind in ("", "exposed "))
    assert figures[case, "step without overlap, measured + model (10gbe)"] == pytest.approx(compute + serial)
    assert figures[case, "step with overlap, measured + model (10gbe)"] == pytest.approx(compute + exposed)
    kinds = {transfer.kind for transfer in measured.transfers}
    assert ("hop" in kinds, "all-to-all" in kinds) == ("ring" in plan, "ulysses" in plan)
    assert (exposed < serial) == ("hop" in kinds and measured.chunk_attention_ms > 0)


def test_a_contestant_that_fails_is_named_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(shard, "diffusers_step", broken)
    measured = shard.run(a_shard(Plan(ulysses=2)))
    assert set(measured.times) == {"ulysses=2 eager"}
    assert "diffusers eager did not run: RuntimeError: no compiler here" in measured.notes


def test_stand_in_peers_do_not_give_the_picture() -> None:
    model = odd_flux()
    network, call = draw_network(model, CPU), draw_call(model, CPU)
    right = contestants.diffusers_step(model, twin_of(network, model), call, "off")()
    alone = contestants.our_step(model, twin_of(network, model), call, single_rank_mesh(), "off")()
    mesh, _ = fake_mesh(Plan(ulysses=2), CPU)
    share = contestants.our_step(model, twin_of(network, model), call, mesh, "off")()
    assert disagreement(alone, right, torch.float32) is None
    assert share.isfinite().all()
    assert "off by" in (disagreement(share, right, torch.float32) or "")


def test_contestants_share_their_weights_and_nothing_else() -> None:
    model = odd_flux()
    network = draw_network(model, CPU)
    twin = twin_of(network, model)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert not set(network.modules()) & set(twin.modules())


def test_the_same_network_and_call_are_drawn_every_time() -> None:
    model = odd_flux(hidden=256)
    first, second = (draw_network(model, CPU).state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)
    assert draw_call(model, CPU).x.equal(draw_call(model, CPU).x)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_call_fits_its_family(name: str) -> None:
    """On the meta device: nothing is allocated."""
    model = MODELS[name]
    network = model.family.empty_network(model.geometry)
    assert model.heads * 128 == model.geometry.hidden
    assert any(type(module).__name__ in network._repeated_blocks for module in network.modules())
    inputs = model.family.inputs(model.geometry)
    assert (model.x[1], len(model.x)) == (inputs.channels, inputs.dims)
    assert {tensor.name for tensor in inputs.tensors if tensor.required} <= set(model.conditioning)


def test_disagreement_has_a_reason() -> None:
    velocity = torch.ones(3)
    assert disagreement(velocity, None, torch.float32) is None
    assert disagreement(velocity * (1 + 0.5 * ALLOWED[torch.float32]), velocity, torch.float32) is None
    assert "off by" in (disagreement(velocity * (1 + 2 * ALLOWED[torch.float32]), velocity, torch.float32) or "")
    assert "not finite" in (disagreement(velocity * float("nan"), None, torch.float32) or "")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="Choose a mode"):
        compile_blocks(None, "fast")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "fast"], "choose modes of"),
        (["--device", "cpu", "--modes", "off,graphs"], "CUDA graphs need a GPU"),
        (["--device", "cpu", "--shard", "2", "--gaps"], "needs --shard and a GPU"),
        (["--model", "sdxl"], "invalid choice"),
        (["--ranks", "1,two"], "invalid group_sizes value"),
        (["--ranks", "0"], "invalid group_sizes value"),
        (["--model", "flux-512", "--shard", "8", "--plan", "ulysses=8"], "divides the model's 4 heads"),
        (["--model", "flux-512", "--shard", "2", "--plan", "rings=2"], "Write a plan as"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_a_ranks_name_says_what_it_is() -> None:
    assert Entry(kind="context parallel", plan="ulysses=2", mode="blocks").name == "diffusers ulysses=2 compiled"
