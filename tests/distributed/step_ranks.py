"""What each rank runs for test_step: one step of a small network by every plan, and what it sent for it."""

from __future__ import annotations

from tutti.backend.parallel.plan import Plan
from tutti.benchmarks.step.contestants import our_step
from tutti.benchmarks.step.networks import draw_call, draw_network, twin_of

from tests.support.ranks import this_rank
from tests.support.step_models import odd_flux


def main() -> None:
    rank = this_rank()
    model = odd_flux()
    network, call = draw_network(model, rank.group.device), draw_call(model, rank.group.device)
    for plan in rank.arguments["plans"]:
        step = our_step(model, twin_of(network, model), call, rank.group.mesh(Plan.parse(plan)), "off")
        before = rank.group.transport.sent_bytes
        step()
        rank.facts[plan] = rank.group.transport.sent_bytes - before
    rank.finish()


if __name__ == "__main__":
    main()
