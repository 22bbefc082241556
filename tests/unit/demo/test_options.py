"""What the demo refuses before anything is started, each with one sentence that says what to do; and where its picture goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tutti.backend.assets.advice import read_prompt, warnings
from tutti.backend.demo.options import HEADS, PROMPTS, DemoOptions
from tutti.backend.errors import BadPlan, BadRequest
from tutti.backend.parallel.plan import Plan
from tutti.benchmarks.demo_model.flow import GEOMETRY


def test_the_default_prompts_are_a_dozen_and_the_model_knows_every_word() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 12
    assert [warning for text in PROMPTS for warning in warnings(read_prompt(text))] == []
    assert DemoOptions().warnings() == []


def test_the_heads_are_those_of_the_model() -> None:
    assert GEOMETRY.num_heads == HEADS


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"codec": "zip"}, "Set --codec to off or fp8 or int8 or fp8-all or int8-all: there is no codec 'zip'"),
        ({"codec": "fp8", "plan": "ulysses=2,codec=int8"}, "Name one codec: --plan has int8, --codec fp8"),
        (
            {"compression": "zip"},
            "Set --compression to off or auto or fast or balanced or small: there is no compression 'zip'",
        ),
        (
            {"compression": "fast", "plan": "ulysses=2,compression=small"},
            "Name one compression: --plan has small, --compression fast",
        ),
        ({"size": "100"}, "Set --size to WIDTHxHEIGHT in multiples of 16 from 64 to 512"),
        ({"size": "128x0"}, "Set --size"),
        ({"size": "-128"}, "Set --size"),
        ({"size": "4096"}, "Set --size"),
        ({"size": "big"}, "got 'big'"),
        ({"size": "١٢٨"}, "Set --size"),
        ({"steps": 0}, "Set --steps to 1 to 1000: got 0"),
        ({"steps": 1001}, "Set --steps"),
        ({"ranks": 0}, "Set --ranks to 1 to 64: got 0"),
        ({"guidance": 0.5}, "Set --guidance to 1 to 5"),
        ({"guidance": float("nan")}, "Set --guidance"),
        ({"seed": -1}, "Set --seed"),
        ({"prompts": ()}, "Give 1 to 96 prompts: got 0"),
        ({"prompts": ("red",) * 97}, "Give 1 to 96 prompts: got 97"),
        ({"out": Path("picture.jpg")}, "Give --out a folder or a file that ends in .png"),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_do(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        DemoOptions(**wrong)
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("plan", "ranks", "says"),
    [
        ("fast", None, 'Write a plan as "ulysses=2,ring=1"'),
        ("ulysses=4", None, "divides the model's 2 heads"),
        ("ring=2", 3, "Choose a plan for 3 rank(s)"),
        ("cfg=4", None, "guidance has two branches"),
        ("ring=9999", None, "Choose a plan of at most 64 ranks"),
        ("ring=2,codec=fp8", None, "Give ulysses at least 2"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_naming_the_legal_ones(plan: str, ranks: int | None, says: str) -> None:
    with pytest.raises(BadPlan) as refused:
        DemoOptions(plan=plan, ranks=ranks)
    assert says in refused.value.message


def test_a_codec_is_part_of_the_plan_that_the_daemon_is_asked_for() -> None:
    assert DemoOptions().plan_on(2) is None, "the daemon chooses, and only what is exact"
    assert DemoOptions(codec="fp8").plan_on(2) == Plan(ulysses=2, codec="fp8")
    assert DemoOptions(codec="int8-all").plan_on(4) == Plan(ring=2, ulysses=2, codec="int8-all")
    assert DemoOptions(plan="ulysses=2,codec=fp8").plan_on(2) == Plan(ulysses=2, codec="fp8")
    for refused in ({"ranks": 1}, {"plan": "ring=2"}):
        with pytest.raises(BadPlan, match="no all-to-all"):
            DemoOptions(codec="fp8", **refused)  # type: ignore[arg-type]


def test_a_compression_is_part_of_the_plan_that_the_daemon_is_asked_for() -> None:
    balanced = Plan(ulysses=2, compression="balanced")
    assert DemoOptions(compression="balanced").plan_on(2) == balanced
    assert DemoOptions(plan="auto,compression=balanced").plan_on(2) == balanced
    assert DemoOptions(plan="ulysses=2,compression=balanced").plan_on(2) == balanced
    assert DemoOptions(plan="ring=2", compression="small").plan_on(2) == Plan(ring=2, compression="small")
    assert DemoOptions(plan="ulysses=2,compression=off").plan_on(2) == Plan(ulysses=2)
    with pytest.raises(BadPlan, match="no exchange to compress"):
        DemoOptions(compression="fast", ranks=1)
    with pytest.raises(BadPlan, match="each is an exchange of its own"):
        DemoOptions(compression="fast", codec="fp8", plan="ulysses=2")


def test_a_size_is_a_square_or_two_sides() -> None:
    assert DemoOptions(size="192").width_and_height == (192, 192)
    assert DemoOptions(size=" 256X128 ").width_and_height == (256, 128)


def test_a_size_that_was_never_taught_is_drawn_with_a_warning() -> None:
    (warning,) = DemoOptions(size="64x128").warnings()
    assert "128 to 256 pixels" in warning


def test_the_picture_goes_into_a_folder_or_where_a_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert DemoOptions().prepared_file() == tmp_path / "demo.png"
    assert DemoOptions(out=Path("new/folder")).prepared_file() == tmp_path / "new" / "folder" / "demo.png"
    assert (tmp_path / "new" / "folder").is_dir()
    assert DemoOptions(out=Path("other/sheet.PNG")).prepared_file() == tmp_path / "other" / "sheet.PNG"
    (tmp_path / "odd.png").mkdir()
    assert DemoOptions(out=Path("odd.png")).prepared_file() == tmp_path / "odd.png" / "demo.png"
    (tmp_path / "v1.2").mkdir()
    assert DemoOptions(out=Path("v1.2")).prepared_file() == tmp_path / "v1.2" / "demo.png"


def test_a_place_where_nothing_can_be_written_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadRequest, match=r"Choose another --out: the folder .* cannot be made"):
        DemoOptions(out=tmp_path / "file" / "below").prepared_file()
    (tmp_path / "demo.png").mkdir()
    with pytest.raises(BadRequest, match=r"demo\.png cannot be written"):
        DemoOptions(out=tmp_path).prepared_file()
    with pytest.raises(BadRequest, match=r"Choose another --out: the folder .* cannot be made \(File name too long\)"):
        DemoOptions(out=tmp_path / ("x" * 300)).prepared_file()
    with pytest.raises(BadRequest, match="Choose another --out: nobody's home is ~nobody-of-that-name"):
        DemoOptions(out=Path("~nobody-of-that-name/x")).prepared_file()
