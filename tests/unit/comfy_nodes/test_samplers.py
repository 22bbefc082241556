"""The nodes, the wire and the ranks agree on which samplers run whole in the daemon."""

from __future__ import annotations

from typing import get_args, get_type_hints

from tutti.backend.sampling.solvers import SOLVERS
from tutti.backend.wire.messages import Sample
from tutti.comfy_nodes.families import SAMPLERS


def test_every_sampler_that_the_nodes_send_is_on_the_wire_and_has_a_solver() -> None:
    on_the_wire = get_args(get_type_hints(Sample)["sampler"])
    assert len(set(SAMPLERS)) == len(SAMPLERS)
    assert set(SAMPLERS) == set(on_the_wire) == set(SOLVERS)
