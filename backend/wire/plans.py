"""A plan as people are shown it: what loses something says so, wherever the plan's text goes."""

from __future__ import annotations


def shown_plan(plan: str) -> str:
    """``plan`` (``auto``, or a plan in its full form), and that it is approximate where it is.

    A plan's text names its codec or compression only where it is not the exact default (:class:`tutti.backend.parallel.plan.Plan`).
    """
    return f"{plan} (approximate)" if "codec=" in plan or "compression=" in plan else plan
