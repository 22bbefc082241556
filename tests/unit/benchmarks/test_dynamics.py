"""The recorder sees exactly what went through the seam and changes nothing; a curve is what its numbers say."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tutti.backend.assets.files import TRANSFORMER
from tutti.backend.errors import InternalError
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.partition import Partition
from tutti.backend.parallel.usp import CallContext, running_call, usp_operator
from tutti.benchmarks.demo_model.autoencoder import new_autoencoder
from tutti.benchmarks.demo_model.export import write_assets
from tutti.benchmarks.demo_model.flow import new_transformer
from tutti.benchmarks.dynamics import trajectory
from tutti.benchmarks.dynamics.__main__ import main
from tutti.benchmarks.dynamics.profile import FLUX, FLUX_END, FLUX_MIDDLE, FLUX_START, Curve
from tutti.benchmarks.dynamics.recorder import KINDS, Recorder, over_layers
from tutti.benchmarks.dynamics.trajectory import mesh_of_one, record
from tutti.benchmarks.quality.prompts import prompt_set


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with random weights in every layer: an untrained one gives a velocity of zero."""
    folder, network = tmp_path_factory.mktemp("random"), new_transformer()
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        if parameter.ndim == 2 and not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.03
    write_assets(network, new_autoencoder(), folder)
    return folder / "models"


def attend(*qkv: torch.Tensor) -> torch.Tensor:
    """Our operator on one rank."""
    mesh, tokens = mesh_of_one(), qkv[0].shape[1]
    context = CallContext(Partition.equal({"all": tokens}, ring=1, ulysses=1), Exchange(mesh, RawCodec()))
    with running_call(context):
        return usp_operator()(*qkv, torch.zeros(1), 0.1)


def test_what_goes_through_the_seam_is_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, 3, 8, generator=generator) for _ in range(3))
    turned = torch.stack((-k[0], k[1]))  # one prompt's keys point the other way
    with torch.no_grad(), Recorder(["a", "b"]) as recorder:
        first = attend(q, k, v)
        attend(q, 2 * k, v)
        second = attend(q, turned, 2 * v)
        attend(q, 2 * k, v)
    assert recorder.steps == 2
    rows = {(row.layer, row.kind, row.step): row for row in recorder.rows}
    assert len(rows) == 2 * 4 * 2
    assert rows["a", "key", 0].norm == pytest.approx(k.flatten(1).norm(dim=1).mean().item())
    assert rows["a", "key", 0].change is rows["a", "key", 0].cosine is None
    assert (rows["a", "query", 1].change, rows["b", "value", 1].change) == (0, 0)
    assert rows["a", "key", 1].change == pytest.approx(1), "2 for the prompt that turned, 0 for the other"
    assert rows["a", "key", 1].cosine == pytest.approx(0, abs=1e-12)
    assert rows["a", "value", 1].change == pytest.approx(0.5)
    assert rows["a", "value", 1].cosine == pytest.approx(1)
    expected = (second - first).flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1)
    assert rows["a", "output", 1].change == pytest.approx(expected.mean().item(), rel=1e-5)
    assert over_layers(recorder.rows, "value", lambda row: row.change) == pytest.approx([0.25])


def test_layers_that_do_not_fit_the_attentions_are_noticed() -> None:
    """Negative control: counted wrongly, every layer would be compared with another one."""
    x = torch.ones(1, 2, 1, 8)
    with torch.no_grad(), Recorder(["a", "b"]) as recorder:
        for _ in range(3):
            attend(x, x, x)
    with pytest.raises(InternalError, match="no multiple"):
        _ = recorder.steps


def test_recording_changes_no_bit(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, latents = record(models / TRANSFORMER, prompt_set(2), steps=2)
    assert len(rows) == (2 + 8) * len(KINDS) * 2
    assert all(math.isfinite(row.norm) and row.norm > 0 for row in rows)
    assert all(row.change and row.change > 0 for row in rows if row.step == 1 and row.layer == "single 7")

    class Deaf(Recorder):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return func(*args, **(kwargs or {}))

        steps = 2  # type: ignore[assignment]

    monkeypatch.setattr(trajectory, "Recorder", Deaf)
    silent, again = record(models / TRANSFORMER, prompt_set(2), steps=2)
    assert silent == []
    assert torch.equal(again, latents)


BATHTUB = [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4]


def test_a_bathtub_is_high_at_both_ends() -> None:
    curve = Curve.of(BATHTUB)
    assert (curve.start, curve.middle, curve.end) == pytest.approx((0.4, 0.1, 0.3))
    assert curve.is_bathtub
    published = Curve.of([*FLUX_START, *[FLUX_MIDDLE] * 10, *FLUX_END])
    assert published == FLUX
    assert published.is_bathtub


@pytest.mark.parametrize(
    "changes", [sorted(BATHTUB), sorted(BATHTUB, reverse=True), [0.2] * 12, [0.6 - x for x in BATHTUB]]
)
def test_slopes_plains_and_hills_are_no_bathtubs(changes: list[float]) -> None:
    assert not Curve.of(changes).is_bathtub


def test_a_curve_too_short_to_have_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 9"):
        Curve.of([0.1] * 8)


def test_differences_from_a_curve_are_named() -> None:
    assert FLUX.differences_from(FLUX) == []
    near = Curve(start=FLUX.start * 1.4, middle=FLUX.middle / 1.4, end=FLUX.end)
    assert near.differences_from(FLUX) == []
    far = Curve(start=FLUX.start, middle=FLUX.middle, end=FLUX.middle)
    assert [text.split()[0] for text in far.differences_from(FLUX)] == ["end", "no"]


@pytest.mark.slow
def test_the_benchmark_writes_every_layer_and_step_and_a_plot(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, plot = tmp_path / "d.csv", tmp_path / "d.png"
    assert main(["--models", str(models), "--prompts", "2", "--csv", str(table), "--plot", str(plot)]) == 0
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * len(KINDS) * 28
    assert {row["layer"] for row in rows} == {"double 0", "double 1", *(f"single {n}" for n in range(8))}
    assert all((row["step_difference_over_norm"] == "") == (row["step"] == "0") for row in rows)
    with Image.open(plot) as picture:
        assert picture.convert("RGB").getcolors(2**16) is not None
        assert len(picture.convert("RGB").getcolors(2**16) or []) > 5
    assert "differs from it" in capsys.readouterr().out
