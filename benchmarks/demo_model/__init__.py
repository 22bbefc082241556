"""The recipe of the demo model: scenes, autoencoder, flow, all trained again from nothing by one command."""

from __future__ import annotations
