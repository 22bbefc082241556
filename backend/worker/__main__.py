"""What the launcher starts once per rank: ``python -m tutti.backend.worker``."""

from __future__ import annotations

from ..supervisor.liveness import watch


def main() -> None:
    """Bind this process's life to the daemon's, and only then import what takes seconds."""
    watch()
    from .rank import run_rank

    run_rank()


if __name__ == "__main__":
    main()
