"""A small network for tests of the step benchmark, with lengths that nothing divides."""

from __future__ import annotations

from dataclasses import replace

from tutti.benchmarks.step.networks import MODELS, StepModel


def odd_flux(*, hidden: int = 512) -> StepModel:
    """FLUX.1 with one block of each kind: 63 image and 13 text tokens, 4 heads."""
    flux = MODELS["flux-512"]
    geometry = replace(flux.geometry, hidden=hidden, depth=1, depth_single=1)
    conditioning = {**flux.conditioning, "context": (1, 13, geometry.context_dim)}
    return replace(flux, geometry=geometry, x=(1, 16, 14, 18), conditioning=conditioning)
