"""How a network may be compiled: names for the command line. No torch in this file."""

from __future__ import annotations

AUTO, OFF, BLOCKS, WHOLE, GRAPHS = "auto", "off", "blocks", "whole", "graphs"

COMPILE_MODES = (AUTO, OFF, BLOCKS, WHOLE, GRAPHS)
"""``auto``: blocks, on a GPU, from the second job of a shape on; ``off``: eager; ``blocks``: every repeated block, one graph for all of a kind;
``whole``: the network in one piece, once per shape; ``graphs``: blocks, with CUDA graphs around the exchanges."""
