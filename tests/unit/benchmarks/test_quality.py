"""The comparison of settings: what is read from the command line, what every setting is asked, and what is said of the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tutti.backend.assets.files import AUTOENCODER
from tutti.backend.errors import BadCheckpoint
from tutti.backend.parallel.plan import Plan
from tutti.benchmarks.demo_model.autoencoder import new_autoencoder, to_input
from tutti.benchmarks.demo_model.export import write_assets
from tutti.benchmarks.demo_model.flow import encode_prompts, new_transformer
from tutti.benchmarks.demo_model.scenes import is_held_out
from tutti.benchmarks.quality.__main__ import OF_EXCHANGES, main
from tutti.benchmarks.quality.grid import write_grid
from tutti.benchmarks.quality.judgement import (
    ACCURACY,
    DRAWN,
    FRECHET,
    LOST,
    RECONSTRUCTION,
    Shown,
    accuracy_figures,
    distance_figures,
    drawn_scenes,
    gain_figure,
    gain_over,
    look_at,
    loss_figure,
    reconstruction_figure,
)
from tutti.benchmarks.quality.pictures import Autoencoder
from tutti.benchmarks.quality.prompts import prompt_set
from tutti.benchmarks.quality.sampling import sample_of
from tutti.benchmarks.quality.settings import EXCHANGES, PAIRS, REFERENCE, Setting, settings_of
from tutti.benchmarks.report import read_targets
from zmq.utils.garbage import gc as garbage


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the demo model's two files, untrained."""
    folder = tmp_path_factory.mktemp("untrained")
    write_assets(new_transformer(), new_autoencoder(), folder)
    return folder / "models"


class PerfectAutoencoder:
    """Fake: pictures lie in its latents unharmed, so that what is judged is known."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.round().to(torch.uint8)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.permute(0, 3, 1, 2).float()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", Setting(name="a")),
        ("a:plan=ulysses=2,dtype=BF16", Setting(name="a", plan=Plan(ulysses=2), dtype="BF16")),
        ("two x two:plan=ring=2,ulysses=2", Setting(name="two x two", plan=Plan(ring=2, ulysses=2))),
        ("a:plan=ulysses=2,codec=fp8-all", Setting(name="a", plan=Plan(ulysses=2, codec="fp8-all"))),
        ("a: dtype=f16 , plan=ring=2", Setting(name="a", plan=Plan(ring=2), dtype="F16")),
    ],
)
def test_a_setting_is_read_from_its_text(text: str, expected: Setting) -> None:
    assert Setting.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (":dtype=BF16", "name"),
        ("a:dtype=F8", "F32, BF16, F16"),
        ("a:plan=ulysses=two", "whole number"),
        ("a:plan=ring=2,ring=2", "appears twice"),
        ("a:kodec=raw", "kodec=raw"),
        ("a:plan=ulysses=2,codec=zip", "codec of raw"),
    ],
)
def test_a_setting_that_cannot_be_read_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Setting.parse(text)


def test_the_reference_comes_first_and_every_name_is_its_own() -> None:
    assert [setting.name for setting in settings_of(["b:dtype=BF16"])] == [REFERENCE.name, "b"]
    assert (REFERENCE.plan.world_size, REFERENCE.dtype) == (1, "F32")
    with pytest.raises(ValueError, match="name of its own"):
        settings_of(["b", "b:dtype=BF16"])


def test_the_command_line_refuses_what_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--setting", "a:dtype=F8"], ["--prompts", "1"], ["--setting", "a", "--setting", "a"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    assert "F8" in capsys.readouterr().err


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_the_prompts_are_held_out_half_of_each_kind_and_always_the_same() -> None:
    prompts = prompt_set(200)
    assert [prompt.objects for prompt in prompts].count(2) == 100
    assert all(is_held_out(prompt.text) for prompt in prompts)
    assert prompts[:20] == prompt_set(20)
    assert len({prompt.text for prompt in prompts}) > 190


def test_places_count_where_two_objects_were_asked_for() -> None:
    for prompt in prompt_set(20):
        assert all((asked.place is None) == (prompt.objects == 1) for asked in prompt.asked)
        assert all(asked.colour in prompt.text and asked.shape in prompt.text for asked in prompt.asked)


def test_a_prompt_starts_from_the_same_noise_in_any_batch() -> None:
    prompts = prompt_set(4)
    _, whole = sample_of(REFERENCE, prompts)
    _, alone = sample_of(REFERENCE, prompts[2:3])
    noise = torch.frombuffer(whole["noise"].data, dtype=torch.float32).view(4, -1)
    assert torch.equal(noise[2], torch.frombuffer(alone["noise"].data, dtype=torch.float32))
    assert not torch.equal(noise[1], noise[2])


def test_a_message_carries_one_row_of_conditioning_for_each_prompt() -> None:
    prompts = prompt_set(3)
    sample, tensors = sample_of(Setting(name="s", plan=Plan(ulysses=2), dtype="BF16"), prompts)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == {
        "noise": (3, 16, 16, 16), "sigmas": (29,), "branch.0.context": (3, 20, 64), "branch.0.pooled": (3, 64), "branch.0.guidance": (3,),
    }  # fmt: skip
    assert (sample.on.plan, sample.on.dtype, sample.cfg) == ("cfg=1,ring=1,ulysses=2", "BF16", 1.0)
    context = torch.frombuffer(tensors["branch.0.context"].data, dtype=torch.float32).view(3, 20, 64)
    assert torch.equal(context[1:2], encode_prompts([prompts[1].text])[0])


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_shipped_layout_is_read_back_as_it_was_trained(models: Path) -> None:
    """Tolerance: the file holds float16, 2^-11 a weight, through ten layers or so."""
    trained, loaded = new_autoencoder().requires_grad_(False), Autoencoder(models / AUTOENCODER)
    pictures = drawn_scenes(prompt_set(2))
    expected = trained.encoder(to_input(pictures))
    latents = loaded.encode(pictures)
    assert (latents - expected).abs().max() < 5e-3 * expected.abs().max()
    decoded = trained.decoder(latents).clamp(-1, 1).permute(0, 2, 3, 1)
    assert (loaded.decode(latents).float() / 127.5 - 1 - decoded).abs().max() < 0.02


@pytest.mark.parametrize("damage", ["missing", "unknown", "misplaced"])
def test_another_file_is_refused(models: Path, tmp_path: Path, damage: str) -> None:
    tensors = load_file(models / AUTOENCODER)
    name = "taesd_decoder.1.weight"
    weight = tensors.pop(name)
    if damage == "unknown":
        tensors |= {name: weight, "first_stage_model.decoder.conv_in.weight": weight.clone()}
    elif damage == "misplaced":  # as if the clamp were not counted
        tensors["taesd_decoder.0.weight"] = weight
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(BadCheckpoint, match=r"vae\.safetensors"):
        Autoencoder(tmp_path / "vae.safetensors")


# --- what is said of them ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perfect() -> Shown:
    """Every prompt drawn as it was asked for."""
    prompts = prompt_set(12)
    return look_at("perfect", drawn_scenes(prompts).float(), prompts, PerfectAutoencoder())  # type: ignore[arg-type]


def value_of(figures: list, metric: str) -> float:
    return next(figure.value for figure in figures if figure.metric == metric)


def test_drawn_scenes_keep_every_prompt_and_the_scenes_of_other_prompts_keep_none(perfect: Shown) -> None:
    prompts = prompt_set(12)
    assert [figure.value for figure in accuracy_figures(perfect, prompts)] == [1.0, 1.0]
    # Negative control: moved on by two, so that the kinds still fit. By chance two prompts ask for a red square.
    others = look_at("others", drawn_scenes(prompts).roll(2, 0).float(), prompts, PerfectAutoencoder())  # type: ignore[arg-type]
    assert [figure.value for figure in accuracy_figures(others, prompts)] == [pytest.approx(1 / 6), 0.0]


def test_a_setting_is_no_distance_from_itself_and_some_from_another(perfect: Shown) -> None:
    figures = distance_figures(perfect, perfect)
    assert value_of(figures, "relative latent error") == 0
    assert value_of(figures, "PSNR") == 120
    assert value_of(figures, "SSIM") == pytest.approx(1)
    assert value_of(figures, FRECHET) == pytest.approx(0, abs=1e-6)
    assert {figure.baseline for figure in figures} == {"perfect"}
    prompts = prompt_set(12)
    darker = look_at("darker", drawn_scenes(prompts).float() * 0.9, prompts, PerfectAutoencoder())  # type: ignore[arg-type]
    figures = distance_figures(darker, perfect)
    assert value_of(figures, "relative latent error") == pytest.approx(0.1)
    assert value_of(figures, "PSNR") < 40
    assert value_of(figures, FRECHET) > 1


def test_the_promises_name_figures_that_are_measured(perfect: Shown) -> None:
    promised = {(target.case, target.metric) for target in read_targets("quality")}
    assert promised == {(REFERENCE.name, metric) for metric in ACCURACY.values()} | {(DRAWN, RECONSTRUCTION)}
    compared = {(one, gain_over(other)) for one, other in PAIRS} | {(one.name, LOST) for one in EXCHANGES}
    assert {(target.case, target.metric) for target in read_targets(OF_EXCHANGES)} <= compared


def test_exchanges_are_compared_on_the_same_ranks_in_float32_each_under_its_name() -> None:
    settings = settings_of([], EXCHANGES)
    assert settings[0] == REFERENCE
    assert {(setting.plan.ring, setting.plan.ulysses, setting.dtype) for setting in EXCHANGES} == {(2, 1, "F32")}
    assert {name for pair in PAIRS for name in pair} <= {setting.name for setting in EXCHANGES}
    for setting in EXCHANGES:
        ours = setting.plan.compression if not setting.exchange else None
        assert setting.name in (ours, setting.exchange) or setting.exchange == "residual=binary,order=2"


def test_what_a_setting_loses_and_gains_is_told_against_the_reference_and_another(perfect: Shown) -> None:
    prompts = prompt_set(12)
    drawn = drawn_scenes(prompts).float()
    near, far = (
        look_at(name, drawn * share, prompts, PerfectAutoencoder())  # type: ignore[arg-type]
        for name, share in (("near", 0.99), ("far", 0.5))
    )
    assert gain_figure(near, far, perfect).value > 10
    assert gain_figure(far, near, perfect).value == -gain_figure(near, far, perfect).value
    assert gain_figure(near, far, perfect).metric == gain_over("far")
    assert loss_figure(perfect, perfect).value == 0
    nothing_kept = replace(perfect, kept=(False,) * 12)
    assert loss_figure(nothing_kept, perfect).value == 100 * sum(perfect.kept) / 12 > 0
    assert loss_figure(perfect, nothing_kept).value < 0


def test_the_autoencoders_figure_is_the_distance_from_what_was_drawn(perfect: Shown) -> None:
    drawn = drawn_scenes(prompt_set(12))
    assert reconstruction_figure(perfect, drawn).spread.p50 == 120, "nothing lost"
    flipped = reconstruction_figure(perfect, drawn.flip(2))
    assert flipped.spread.p50 < 28, "the control: other pictures"


def test_the_grid_has_a_row_for_each_prompt_and_a_column_for_each_setting(perfect: Shown, tmp_path: Path) -> None:
    prompts = prompt_set(12)
    write_grid(tmp_path / "one.png", prompts, drawn_scenes(prompts), [perfect], rows=3)
    write_grid(tmp_path / "two.png", prompts, drawn_scenes(prompts), [perfect, perfect], rows=5)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert (two.width - one.width, two.height - one.height) == (144, 2 * 144)
        assert one.convert("RGB").getpixel((one.width - 8 - 64, 24 + 8 + 64)) == tuple(
            perfect.pictures[0, 64, 64].tolist()
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_settings_are_compared_through_real_daemons(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained model keeps no prompt, so `--check` fails; two ranks give the picture of one."""
    lines, grid = tmp_path / "figures.jsonl", tmp_path / "grid.png"
    arguments = ["--models", str(models), "--prompts", "4", "--json", str(lines), "--grid", str(grid), "--check"]
    assert main([*arguments, "--setting", "two ranks:plan=ulysses=2"]) == 1
    garbage.stop()  # pyzmq's own thread for buffers that are sent without a copy
    assert capsys.readouterr().out.count("NOT REACHED") == 3, "the given files are measured, not the ones that ship"
    figures = [json.loads(line) for line in lines.read_text().splitlines()]
    error = next(figure for figure in figures if figure["metric"] == "relative latent error")
    assert (error["case"], error["baseline"]) == ("two ranks", REFERENCE.name)
    assert error["p80"] < 1e-5
    assert grid.stat().st_size > 0
