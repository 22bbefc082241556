"""Choosing a plan: what is legal, and what doctor prints."""
