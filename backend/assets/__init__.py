"""The demo model that ships with Tutti: its files, its vocabulary, and how a prompt becomes conditioning. Standard library only."""

from __future__ import annotations
