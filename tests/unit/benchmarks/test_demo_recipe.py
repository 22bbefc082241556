"""The recipe of the demo model: a short run of everything, stopped and gone on with, and files that other loaders read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tutti.backend.assets.files import AUTOENCODER, TRANSFORMER, shipped_file
from tutti.benchmarks.demo_model import autoencoder, flow
from tutti.benchmarks.demo_model.export import taesd_names
from tutti.benchmarks.demo_model.state import TrainingState
from tutti.benchmarks.demo_model.train import SHORT, main, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(work, out) of a short training."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    run(SHORT, work, out)
    return work, out


@pytest.mark.slow
def test_a_short_training_writes_whole_files_and_its_record(trained: tuple[Path, Path]) -> None:
    _, out = trained
    transformer, vae = load_file(shipped_file(TRANSFORMER, out)), load_file(shipped_file(AUTOENCODER, out))
    assert {tensor.dtype for tensor in transformer.values()} == {torch.bfloat16}
    assert transformer["double_blocks.1.img_attn.qkv.weight"].shape == (768, 256)
    assert transformer["single_blocks.7.linear1.weight"].shape == (1792, 256)
    assert vae["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert vae["taesd_encoder.14.weight"].shape == (16, 64, 3, 3)
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= 48e6
    with (out / "curve.csv").open(encoding="utf-8") as file:
        assert {row["phase"] for row in csv.DictReader(file)} == {
            "autoencoder",
            "flow, 128",
            "flow, sizes",
            "guidance",
            "guidance 2",
        }
    assert json.loads((out / "training.json").read_text())["recipe"]["small_steps"] == SHORT.small_steps


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    once, _ = autoencoder.train_autoencoder(whole, steps=6, batch=2)
    with pytest.raises(KeyboardInterrupt):
        _stop_after(stopped, 3)
    again, curve = autoencoder.train_autoencoder(stopped, steps=6, batch=2)
    assert curve[-1][0] == 6
    for name, tensor in once.state_dict().items():
        # The same sums in the same order: only the convolutions' own threads may round differently from run to run.
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match="another --work folder"):
        autoencoder.train_autoencoder(stopped, steps=7, batch=2)


def _stop_after(folder: Path, steps: int) -> None:
    """Train for some steps, save, and be interrupted."""
    crops, save = autoencoder.crops, TrainingState.save
    states: list[TrainingState] = []

    def counted(step: int, batch: int) -> torch.Tensor:
        if step == steps:
            save(states[0], step, 6, [])
            raise KeyboardInterrupt
        return crops(step, batch)

    class Remembered(TrainingState):
        def load(self, steps: int) -> tuple[int, list[tuple[int, float]]]:
            states.append(self)
            return super().load(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "crops", counted)
        patch.setattr(autoencoder, "TrainingState", Remembered)
        autoencoder.train_autoencoder(folder, steps=6, batch=2)


def test_a_short_run_does_not_replace_what_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--short", "--work", str(tmp_path)])
    assert "--out" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_patches_are_taken_apart_and_put_together_again() -> None:
    x = torch.randn(2, 16, 6, 10)
    tokens = flow.patchify(x)
    assert tokens.shape == (2, 15, 64)
    assert torch.equal(flow.unpatchify(tokens, 3, 5), x)
    assert torch.equal(tokens[0, 0].reshape(16, 2, 2), x[0, :, :2, :2])


def test_an_untrained_network_gives_zero_velocity() -> None:
    """Every block starts as the identity, and the last layer at zero."""
    network = flow.new_transformer()
    context, pooled = flow.encode_prompts(["a red circle"])
    x = torch.randn(1, 16, 8, 8)
    out = flow.velocity(network, x, torch.tensor([0.5]), context, pooled, torch.tensor([2.0]))
    assert out.shape == x.shape
    assert not out.any()


def test_the_autoencoders_names_are_taesds() -> None:
    named = taesd_names(autoencoder.new_autoencoder().state_dict())
    assert {name for name in named if name.count(".") == 0} == {"vae_scale", "vae_shift"}
    assert "taesd_decoder.0.weight" not in named, "its clamp has none"
    assert named["taesd_decoder.3.conv.4.weight"].shape == (64, 64, 3, 3)


@pytest.mark.slow
def test_the_flow_learns(tmp_path: Path) -> None:
    """A few steps on four latents lower the loss: the gradient reaches the network through the whole path."""
    latents = flow.Latents(
        torch.randn(4, 16, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16(), ("a red circle",) * 4
    )

    def loss(name: str, *, steps: int, rate: float) -> float:
        network = flow.new_transformer()
        _, curve = flow.train_flow(
            name, network, [latents], tmp_path, steps=steps, tokens=32, rate=rate, compiled=False
        )
        return curve[-1][1]

    untouched = loss("control", steps=6, rate=0.0)
    assert untouched == pytest.approx(2.0, rel=0.1), (
        "it gives zero: what is left is the variance of noise - x0, and both have 1"
    )
    assert loss("tiny", steps=60, rate=1.0) < 0.85 * untouched
