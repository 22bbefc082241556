"""A job's model calls from the descriptions of its tensors; what the wire's own rules refuse is tested there."""

from __future__ import annotations

from typing import Any

import pytest
from tutti.backend.errors import BadRequest
from tutti.backend.wire.messages import Branch, Call, Evaluate, ModelRef, Sample
from tutti.backend.wire.tensors import TensorSpec
from tutti.backend.worker.inputs import evaluate_calls, guidance_pair, sample_calls, uploads

ON = ModelRef(model="diffusion_models/m.safetensors", family="flux", dtype="F32")
DIGEST = "0123456789abcdef" * 2


def sample(cfg: float = 1.0, kinds: tuple[str, ...] = ("positive",), **options: Any) -> Sample:
    branches = tuple(Branch(kind=kind, options=options) for kind in kinds)  # type: ignore[arg-type]
    return Sample(
        job_id="0" * 32,
        node_id="3",
        on=ON,
        sampler="euler",
        cfg=cfg,
        timestep_multiplier=1.0,
        branches=branches,
        previews=False,
    )


def specs(dtype: str = "F32", **shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in named.items()}  # type: ignore[arg-type]


GOOD = specs(noise=(3, 16, 8, 6), sigmas=(5,), latent=(3, 16, 8, 6), mask=(1, 1, 8, 6), branch__0__context=(1, 9, 64))


def test_a_sample_gives_one_call_for_each_branch_that_counts() -> None:
    both = GOOD | specs(branch__1__context=(2, 5, 64), branch__1__ref_latents__0=(1, 16, 4, 4))
    positive, negative = sample_calls(sample(4.0, ("positive", "negative"), method="index"), both)
    assert positive.x_shape == negative.x_shape == (3, 16, 8, 6)
    assert positive.conditioning == {"context": (3, 9, 64)}
    assert negative.conditioning == {"context": (3, 5, 64), "ref_latents.0": (3, 16, 4, 4)}
    assert positive.options == {"method": "index"}


def test_positive_comes_first_in_whatever_order_the_branches_are_sent() -> None:
    assert guidance_pair(sample(4.0, ("negative", "positive"))).indices == [1, 0]


def test_concatenated_channels_become_channels_of_x() -> None:
    (call,) = sample_calls(sample(), GOOD | specs(branch__0__concat=(1, 80, 8, 6)))
    assert call.x_shape == (3, 96, 8, 6)
    assert "concat" not in call.conditioning


@pytest.mark.parametrize(
    ("request_", "changed", "text"),
    [
        (sample(), specs(branch__0__pooled=()), "batch dimension"),
        (sample(), specs(branch__0__concat=(1, 80, 8, 7)), "concatenated"),
        (sample(), specs(branch__0__concat=(1, 80)), "concatenated"),
        (sample(kinds=("positive", "positive")), {}, "one positive"),
        (sample(4.0, ("positive", "negative", "negative")), {}, "one positive"),
    ],
)
def test_what_cannot_be_sampled_is_refused(request_: Sample, changed: dict[str, TensorSpec], text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        sample_calls(request_, GOOD | changed)


def evaluate(count: int = 1) -> Evaluate:
    call = Call(branch="p", conditioning=DIGEST, options={"k": 1})
    return Evaluate(job_id="0" * 32, node_id="3", turn=0, on=ON, calls=(call,) * count)


TURN = specs("BF16", call__0__x=(2, 16, 8, 6)) | specs(call__0__timestep=(2,))
UPLOAD = specs("BF16", **{f"upload__{DIGEST}__context": (2, 9, 64), f"upload__{DIGEST}__ref_latents.0": (1, 16, 4, 4)})


def test_an_evaluate_finds_its_conditioning_among_the_uploads() -> None:
    (call,) = evaluate_calls(evaluate(), TURN | UPLOAD, uploads(TURN | UPLOAD))
    assert call.x_shape == (2, 16, 8, 6)
    assert call.conditioning == {"context": (2, 9, 64), "ref_latents.0": (2, 16, 4, 4)}
    assert call.options == {"k": 1}


def test_conditioning_that_was_never_uploaded_is_named() -> None:
    with pytest.raises(BadRequest, match=DIGEST):
        evaluate_calls(evaluate(), TURN, {})


def test_concatenated_channels_are_no_conditioning_of_an_evaluate() -> None:
    concat = specs(**{f"upload__{DIGEST}__concat": (2, 4, 8, 6)})
    with pytest.raises(BadRequest, match="concatenated"):
        evaluate_calls(evaluate(), TURN, uploads(UPLOAD | concat))
