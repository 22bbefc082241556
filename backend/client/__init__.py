"""The client's side of the protocol: a blocking DEALER with CURVE, requests, jobs and their cancel. Needs pyzmq and msgpack only.

ComfyUI's nodes, the command line and the benchmarks all talk to a daemon through this one package.
"""

from __future__ import annotations

from .client import Client, job_id_for

__all__ = ["Client", "job_id_for"]
