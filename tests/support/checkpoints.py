"""Small checkpoints for tests. The generator itself is the product's: benchmarks use it too."""

from __future__ import annotations

from tutti.backend.models.tiny import write_tiny_flux

__all__ = ["write_tiny_flux"]
