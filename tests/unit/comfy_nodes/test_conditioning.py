"""Conditioning keeps every key or names the one it cannot take; stacked branches come apart; a change between steps is seen."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.errors import UnsupportedFamily, UnsupportedInput
from tutti.comfy_nodes.conditioning import Conditioning, from_values, split
from tutti.comfy_nodes.families import FLUX, LTX_VIDEO, family_of


def test_every_key_that_flux_takes_has_a_name_on_the_wire() -> None:
    values = {
        "c_crossattn": torch.zeros(1, 3, 8),
        "y": torch.zeros(1, 4),
        "guidance": torch.tensor([3.5]),
        "c_concat": torch.zeros(1, 80, 4, 4),
        "ref_latents": [torch.zeros(1, 16, 2, 2), torch.ones(1, 16, 3, 3)],
        "ref_latents_method": "index",
    }
    told = from_values(FLUX, values, torch.float32)
    assert set(told.tensors) == {"context", "pooled", "guidance", "concat", "ref_latents.0", "ref_latents.1"}
    assert told.options == {"ref_latents_method": "index"}


def test_an_unknown_key_is_named_in_the_error() -> None:
    with pytest.raises(UnsupportedInput, match="clip_fea"):
        from_values(FLUX, {"c_crossattn": torch.zeros(1, 3, 8), "clip_fea": torch.zeros(1)}, torch.float32)


def test_a_key_that_says_nothing_is_not_an_input() -> None:
    told = from_values(FLUX, {"c_crossattn": torch.zeros(1, 3, 8), "y": None, "clip_fea": None}, torch.float32)
    assert set(told.tensors) == {"context"}


def test_guides_at_full_strength_say_nothing_and_weaker_ones_are_refused() -> None:
    values = {"c_crossattn": torch.zeros(1, 3, 8), "frame_rate": 25}
    guide = {"pre_filter_count": 12, "strength": 1.0, "pixel_mask": None, "latent_shape": [1, 3, 4]}
    told = from_values(LTX_VIDEO, {**values, "guide_attention_entries": [guide, guide]}, torch.float32)
    assert (set(told.tensors), told.options) == ({"context"}, {"frame_rate": 25})
    for changed in ({"strength": 0.5}, {"pixel_mask": torch.ones(1, 1, 1, 2, 2)}):
        with pytest.raises(UnsupportedInput, match="Remove what adds guide_attention_entries"):
            from_values(LTX_VIDEO, {**values, "guide_attention_entries": [guide, guide | changed]}, torch.float32)


def test_floats_are_cast_to_the_compute_dtype_and_integers_are_not() -> None:
    told = from_values(FLUX, {"guidance": torch.tensor([2.3]), "y": torch.tensor([[1]])}, torch.bfloat16)
    assert told.tensors["guidance"].dtype == torch.bfloat16
    assert told.tensors["pooled"].dtype == torch.int64


def test_stacked_branches_come_apart_in_their_order() -> None:
    stacked = Conditioning(
        tensors={"context": torch.arange(6.0).reshape(6, 1, 1)}, options={"ref_latents_method": "uxo"}
    )
    parts = split(stacked, 3)
    assert [part.tensors["context"].flatten().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(part.options == stacked.options for part in parts)


@pytest.mark.parametrize(
    "other",
    [
        Conditioning(tensors={"context": torch.ones(1, 2, 3)}),
        Conditioning(tensors={"context": torch.zeros(1, 2, 3, dtype=torch.bfloat16)}),
        Conditioning(tensors={"context": torch.zeros(1, 3, 2)}),
        Conditioning(tensors={"context": torch.zeros(1, 2, 3), "pooled": torch.zeros(1, 1)}),
        Conditioning(tensors={"context": torch.zeros(1, 2, 3)}, options={"ref_latents_method": "index"}),
    ],
    ids=["value", "dtype", "shape", "key", "option"],
)
def test_conditioning_that_differs_in_anything_is_another(other: Conditioning) -> None:
    given = Conditioning(tensors={"context": torch.zeros(1, 2, 3)})
    assert not given.same_as(other)
    assert given.same_as(given.copy())


def test_a_copy_does_not_follow_a_change_in_place() -> None:
    given = Conditioning(tensors={"context": torch.zeros(1, 2, 3)})
    kept = given.copy()
    given.tensors["context"][0, 0, 0] = 1.0
    assert not given.same_as(kept)


def test_a_file_of_a_family_that_we_do_not_run_is_refused_with_what_to_do() -> None:
    chroma = type("Chroma", (), {"__module__": "comfy.supported_models"})
    with pytest.raises(UnsupportedFamily, match="Load this file with ComfyUI's own loader: its family is Chroma"):
        family_of(chroma)


def test_a_class_of_that_name_from_elsewhere_is_not_taken_for_it() -> None:
    with pytest.raises(UnsupportedFamily):
        family_of(type("Flux", (), {"__module__": "somebody.else"}))
    assert family_of(type("FluxSchnell", (), {"__module__": "comfy.supported_models"})) is FLUX
