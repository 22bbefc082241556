"""Which model names are names. Two hundred hostile ones, against a real catalog, are in tests/security."""

from __future__ import annotations

import pytest
from tutti.backend.broker.names import relative_path, unknown
from tutti.backend.errors import UnknownModel


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("diffusion_models/flux1-dev.safetensors", ("flux1-dev.safetensors",)),
        ("diffusion_models/flux/kontext/x.safetensors", ("flux", "kontext", "x.safetensors")),
        (
            "diffusion_models/\u7d75\u753b \u30e2\u30c7\u30eb (v2).safetensors",
            ("\u7d75\u753b \u30e2\u30c7\u30eb (v2).safetensors",),
        ),
        ("diffusion_models/X.SafeTensors", ("X.SafeTensors",)),
        ("diffusion_models/a..b.safetensors", ("a..b.safetensors",)),
    ],
)
def test_names_below_a_category_are_paths_below_its_folder(name: str, parts: tuple[str, ...]) -> None:
    assert relative_path(name) == parts


@pytest.mark.parametrize(
    "name", ["x.safetensors", "loras/x.safetensors", "diffusion_models/x.ckpt", "diffusion_models/", ""]
)
def test_other_categories_and_other_formats_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModel):
        relative_path(name)


def test_the_refusal_shows_the_name_harmlessly_and_no_path() -> None:
    text = unknown("diffusion_models/\x1b[31m\u202e" + "x" * 500).message
    assert text.isprintable()
    assert len(text) < 300


def test_a_lora_that_was_dropped_is_sent_again_and_not_looked_for_in_a_folder() -> None:
    text = unknown(f"stored/{'ab' * 16}.safetensors").message
    assert text.startswith("Queue the workflow again: the daemon has dropped the LoRA that it was sent")
    assert "folder" not in text
