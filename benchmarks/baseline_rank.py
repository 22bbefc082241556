"""The ordinary rank, whose compressed plans exchange as ``$TUTTI_BENCHMARK_EXCHANGE`` says: ``tutti serve --rank-module tutti.benchmarks.baseline_rank``."""

from __future__ import annotations

import os

from ..backend.supervisor.liveness import watch


def main() -> None:
    """As the ordinary rank starts: see :mod:`tutti.backend.worker.__main__`."""
    watch()
    from ..backend.models.registry import import_networks
    from ..backend.worker.rank import run_rank
    from .baselines import EXCHANGE_VARIABLE, exchange_of, install

    import_networks()
    install(exchange_of(os.environ[EXCHANGE_VARIABLE]))
    run_rank()


if __name__ == "__main__":
    main()
