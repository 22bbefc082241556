"""The seam to diffusers: installed on one network, taken out again, and honest about attentions that it did not reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor, nn
from tutti.backend.errors import InternalError
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.parallel.hooks import Gather
from tutti.backend.parallel.seam import bind, diffusers_backend

from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error

CPU = torch.device("cpu")
CALL = FluxCall(height=6, width=4, tokens=3)


@pytest.fixture
def model(tmp_path: Path) -> ResidentModel:
    write_tiny_flux(tmp_path / "tiny.safetensors", depth=1, depth_single=2)
    return load_model(tmp_path / "tiny.safetensors", dtype=torch.float32, device=CPU, progress=lambda _: None)


def velocity(model: ResidentModel) -> Tensor:
    x, timestep, conditioning = CALL.tensors()
    return model.adapter.velocity(x, timestep, conditioning, {})


def network_of(model: ResidentModel) -> nn.Module:
    network: nn.Module = model.adapter.network  # type: ignore[attr-defined]
    return network


class LocalProcessor:
    """Never asks for a backend: what a family without a seam does, and what would attend to its own shard only."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *_: object) -> Tensor:
        return hidden_states


class DeafProcessor(LocalProcessor):
    """Has the seam's slots and does not use them."""

    _attention_backend = None
    _parallel_config = None


class SeamProcessor:
    """Asks for a backend, and for nothing else."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, tokens_BSHD: Tensor) -> Tensor:
        out: Tensor = dispatch_attention_fn(
            *(tokens_BSHD,) * 3, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return out


class Attention(nn.Module):
    """Of tokens to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.processor = SeamProcessor()

    def forward(self, tokens_BSHD: Tensor) -> Tensor:
        out: Tensor = self.processor(tokens_BSHD)
        return out


def test_binding_touches_no_process_wide_state_of_diffusers(model: ResidentModel) -> None:
    active, names = _AttentionBackendRegistry._active_backend, list(AttentionBackendName)
    model.bind(single_rank_mesh())
    velocity(model)
    assert _AttentionBackendRegistry._active_backend is active
    assert list(AttentionBackendName) == names


def test_registering_twice_registers_once() -> None:
    before = diffusers_backend()
    registered = len(_AttentionBackendRegistry._backends)
    assert diffusers_backend() is before
    assert len(_AttentionBackendRegistry._backends) == registered


def test_a_model_has_to_be_bound_before_it_runs(model: ResidentModel) -> None:
    with pytest.raises(InternalError, match="bound"):
        velocity(model)


def test_binding_again_to_the_same_mesh_changes_nothing(model: ResidentModel) -> None:
    mesh = single_rank_mesh()
    model.bind(mesh)
    first = velocity(model)
    model.bind(mesh)
    assert torch.equal(velocity(model), first)
    model.bind(single_rank_mesh())
    assert torch.equal(velocity(model), first)


def test_removing_the_binding_gives_the_network_back(model: ResidentModel) -> None:
    network = network_of(model)
    processors = [module.processor for module in network.modules() if hasattr(module, "processor")]
    binding = bind(
        network, single_rank_mesh(), splits=(), gather=Gather("proj_out", "image"), is_joint_attention=lambda _: True
    )
    assert all(processor._attention_backend is diffusers_backend() for processor in processors)
    binding.remove()
    assert all(processor._attention_backend is None and processor._parallel_config is None for processor in processors)


def test_an_attention_may_see_some_of_the_streams_only() -> None:
    network = nn.ModuleDict({"attn": Attention(), "attn2": Attention()})
    binding = bind(
        network,
        single_rank_mesh(),
        splits=(),
        gather=Gather("attn", "image"),
        is_joint_attention=lambda _: True,
        streams_of=lambda name: ("image",) if name == "attn2" else (),
    )
    both = torch.randn(1, 9, 2, 8, generator=torch.Generator().manual_seed(1))
    image = both[:, 3:]
    with binding.call({"text": 3, "image": 6}):
        outputs = network["attn"](both), network["attn2"](image)
    for output, tokens in zip(outputs, (both, image), strict=True):
        heads_first = tokens.transpose(1, 2)
        expected = nn.functional.scaled_dot_product_attention(heads_first, heads_first, heads_first)
        assert relative_error(output, expected.transpose(1, 2)) <= FP32_TOLERANCE
    with pytest.raises(InternalError, match="9 tokens, but this rank holds 6"), binding.call({"text": 3, "image": 6}):
        network["attn2"](both)


def test_an_attention_without_a_seam_is_refused_when_the_model_is_bound(model: ResidentModel) -> None:
    network_of(model).single_transformer_blocks[0].attn.processor = LocalProcessor()  # type: ignore[index, union-attr]
    with pytest.raises(InternalError, match=r"single_transformer_blocks\.0\.attn has a LocalProcessor"):
        model.bind(single_rank_mesh())
    assert network_of(model).transformer_blocks[0].attn.processor._attention_backend is None  # type: ignore[index, union-attr]


def test_an_attention_that_was_not_reached_is_noticed_in_the_first_call(model: ResidentModel) -> None:
    network_of(model).single_transformer_blocks[1].attn.processor = DeafProcessor()  # type: ignore[index, union-attr]
    model.bind(single_rank_mesh())
    with pytest.raises(InternalError, match=r"2 of 3 attentions .*single_transformer_blocks\.1\.attn never"):
        velocity(model)


def test_a_network_without_selected_attentions_is_refused(model: ResidentModel) -> None:
    with pytest.raises(InternalError, match="No attention"):
        bind(
            network_of(model),
            single_rank_mesh(),
            splits=(),
            gather=Gather("proj_out", "image"),
            is_joint_attention=lambda _: False,
        )


@pytest.mark.parametrize("argument", ["attn_mask", "is_causal", "dropout_p", "enable_gqa"])
def test_an_attention_that_is_not_plain_is_refused(argument: str, model: ResidentModel) -> None:
    model.bind(single_rank_mesh())
    processor = network_of(model).transformer_blocks[0].attn.processor  # type: ignore[index, union-attr]
    backend = _AttentionBackendRegistry._backends[diffusers_backend()]
    q = torch.zeros(1, 2, 2, 8)
    with pytest.raises(InternalError, match="not plain"):
        backend(
            q,
            q,
            q,
            **{argument: torch.ones(2, 2) if argument == "attn_mask" else 1},
            _parallel_config=processor._parallel_config,
        )


@pytest.mark.slow
def test_blocks_compile_to_full_graphs_around_the_operator(model: ResidentModel) -> None:
    model.bind(single_rank_mesh())
    eager = velocity(model)
    network_of(model).compile_repeated_blocks(fullgraph=True, backend="aot_eager")  # type: ignore[operator]
    compiled = velocity(model)
    assert relative_error(compiled, eager) <= FP32_TOLERANCE
    assert torch.equal(velocity(model), compiled)
