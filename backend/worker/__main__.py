"""What the launcher starts once per rank: ``python -m tutti.backend.worker``."""

from __future__ import annotations

from ..supervisor.liveness import watch


def main() -> None:
    """Bind this process's life to the daemon's, and only then import what takes seconds: before the group is ready, not in its first job,
    where a rank that says nothing is taken for one that hangs."""
    watch()
    from ..models.registry import import_networks
    from .rank import run_rank

    import_networks()
    run_rank()


if __name__ == "__main__":
    main()
