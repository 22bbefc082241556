"""Families and checkpoints: what a model is, and what of it is sharded."""
