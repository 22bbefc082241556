"""FLUX.1 written down once more, plainly and in float64, straight from the published tensor names: the reference for our own ranks.

Shares no code with the product or with diffusers. (Stock ComfyUI is the reference for the picture; see test_flux_against_comfyui.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

from tests.support.flux_calls import FluxCall

HEAD_DIM = 128
AXES = (16, 56, 56)
THETA = 10000.0


def reference_velocities(checkpoint: Path, calls: Mapping[str, FluxCall]) -> dict[str, Tensor]:
    """The velocity of each call, by name."""
    network = ReferenceFlux(load_file(checkpoint))
    velocities = {}
    for name, call in calls.items():
        x, timestep, conditioning = call.tensors()
        velocities[name] = network.velocity(x, timestep, **conditioning)
    return velocities


class ReferenceFlux:
    """A network from BFL-named tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.weights = {
            name.replace("_norm.scale", "_norm.weight"): tensor.double() for name, tensor in tensors.items()
        }

    def velocity(
        self, x: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """``x`` [B, C, H, W] of even size, ``timestep`` [B], ``context`` [B, T, D] -> velocity [B, 16, H, W], float64."""
        B, C, H, W = x.shape
        h, w = H // 2, W // 2
        tokens = torch.einsum("bchpwq->bhwcpq", x.double().view(B, C, h, 2, w, 2)).reshape(B, h * w, C * 4)
        image, text = self.linear("img_in", tokens), self.linear("txt_in", context.double())
        vector = self.mlp_embedder("time_in", sinusoid(timestep))
        if guidance is not None:
            vector = vector + self.mlp_embedder("guidance_in", sinusoid(guidance))
        width = self.weights["vector_in.in_layer.weight"].shape[1]
        pooled = torch.zeros(B, width) if pooled is None else pooled
        vector = silu(vector + self.mlp_embedder("vector_in", pooled.double()))
        rotation = rotations(text.shape[1], h, w)
        for index in range(self.count("double_blocks")):
            image, text = self.double_block(f"double_blocks.{index}", image, text, vector, rotation)
        joint = torch.cat((text, image), 1)
        for index in range(self.count("single_blocks")):
            joint = self.single_block(f"single_blocks.{index}", joint, vector, rotation)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", vector).unsqueeze(1).chunk(2, -1)
        out = self.linear("final_layer.linear", modulate(joint[:, text.shape[1] :], shift, scale))
        return torch.einsum("bhwcpq->bchpwq", out.view(B, h, w, -1, 2, 2)).reshape(B, -1, H, W)

    def count(self, prefix: str) -> int:
        return len({name.split(".")[1] for name in self.weights if name.startswith(prefix)})

    def linear(self, name: str, value: Tensor) -> Tensor:
        return value @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def mlp_embedder(self, name: str, value: Tensor) -> Tensor:
        return self.linear(f"{name}.out_layer", silu(self.linear(f"{name}.in_layer", value)))

    def query_key_value(self, name: str, fused: Tensor) -> list[Tensor]:
        """Fused [B, n, 3 H D] -> normed q and k, and v, each [B, H, n, D]."""
        q, k, v = fused.unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        return [self.rms_norm(f"{name}.query_norm", q), self.rms_norm(f"{name}.key_norm", k), v]

    def rms_norm(self, name: str, value: Tensor) -> Tensor:
        return value * (value.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weights[f"{name}.weight"]

    def double_block(
        self, name: str, image: Tensor, text: Tensor, vector: Tensor, rotation: Tensor
    ) -> tuple[Tensor, Tensor]:
        streams = {"img": image, "txt": text}
        mods = {s: self.linear(f"{name}.{s}_mod.lin", vector).unsqueeze(1).chunk(6, -1) for s in streams}
        qkv = {}
        for s, value in streams.items():
            fused = self.linear(f"{name}.{s}_attn.qkv", modulate(value, *mods[s][:2]))
            qkv[s] = self.query_key_value(f"{name}.{s}_attn.norm", fused)
        q, k, v = (torch.cat((qkv["txt"][i], qkv["img"][i]), 2) for i in range(3))
        attended = attention(q, k, v, rotation)
        length = text.shape[1]
        for s, part in (("txt", attended[:, :length]), ("img", attended[:, length:])):
            _, _, gate, shift, scale, mlp_gate = mods[s]
            value = streams[s] + gate * self.linear(f"{name}.{s}_attn.proj", part)
            hidden = gelu(self.linear(f"{name}.{s}_mlp.0", modulate(value, shift, scale)), approximate="tanh")
            streams[s] = value + mlp_gate * self.linear(f"{name}.{s}_mlp.2", hidden)
        return streams["img"], streams["txt"]

    def single_block(self, name: str, joint: Tensor, vector: Tensor, rotation: Tensor) -> Tensor:
        shift, scale, gate = self.linear(f"{name}.modulation.lin", vector).unsqueeze(1).chunk(3, -1)
        width = joint.shape[-1]
        fused, hidden = self.linear(f"{name}.linear1", modulate(joint, shift, scale)).split((3 * width, 4 * width), -1)
        attended = attention(*self.query_key_value(f"{name}.norm", fused), rotation)
        merged = torch.cat((attended, gelu(hidden, approximate="tanh")), -1)
        return joint + gate * self.linear(f"{name}.linear2", merged)


def modulate(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(value, value.shape[-1:], eps=1e-6) * (1 + scale) + shift


def sinusoid(value: Tensor) -> Tensor:
    """In float32, as every implementation does it: angles reach 1000 radians, so that rounding them is part of the definition."""
    angles = 1000 * value[:, None] * torch.exp(-math.log(10000) / 128 * torch.arange(128, dtype=torch.float32))
    return torch.cat((angles.cos(), angles.sin()), -1).double()


def rotations(text: int, rows: int, columns: int) -> Tensor:
    """exp(i angle) for every token and channel pair, [n, D/2]; text tokens stand at the origin."""
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    positions = torch.cat((torch.zeros(len(grid), 1), grid), 1)
    positions = torch.cat((torch.zeros(text, 3), positions))
    angles = [
        positions[:, axis, None] / THETA ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        for axis, width in enumerate(AXES)
    ]
    angle = torch.cat(angles, 1)
    return torch.polar(torch.ones_like(angle), angle)


def attention(q: Tensor, k: Tensor, v: Tensor, rotation: Tensor) -> Tensor:
    """[B, H, n, D] -> [B, n, H D], pairs of neighbouring channels rotated first."""
    q, k = (
        torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * rotation).flatten(-2)
        for x in (q, k)
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(HEAD_DIM)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)
