"""``tutti status`` as people read it."""

from __future__ import annotations

import json
from typing import Any

from tutti.backend.cli.status import as_json, as_text, printable
from tutti.backend.wire.connection import Connection
from tutti.backend.wire.messages import Status
from tutti.backend.wire.status_rows import JobStatus

CONNECTION = Connection(
    endpoint="tcp://127.0.0.1:1", server_public_key="a" * 40, client_public_key="b" * 40, client_secret_key="c" * 40
)


def status(**changed: Any) -> Status:
    fields: dict[str, Any] = {
        "request": 1, "state": "busy", "reason": "", "version": "0", "uptime_s": 1.0, "plan": "auto", "transport": "gloo", "device": "cpu",
        "ranks": (), "resident": (), "jobs": (), "queued": 0, "finished": 0, "failed": 0, "restarts": 0,
    }  # fmt: skip
    return Status(**fields | changed)


def test_what_a_client_named_its_node_cannot_steer_the_terminal() -> None:
    job = JobStatus(job_id="a" * 32, node_id="7\x1b[2J\x9b1m\r\n\u202e", model="m", state="running", step=1, steps=4)
    text = as_text(status(jobs=(job,)), CONNECTION)
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert "7\N{REPLACEMENT CHARACTER}[2J" in text
    assert text.splitlines()[-1].startswith("  aaaaaaaa")


def test_names_in_any_script_stay_as_they_are() -> None:
    assert printable("Knoten 7 \u00e9\u4e2d\u6587") == "Knoten 7 \u00e9\u4e2d\u6587"


def test_people_and_programs_are_told_what_attentions_run_on() -> None:
    told = "cudnn; flash is off for 1 shape: its output is off by 3.1e-02 (rank 1)"
    up = status(attention=told)
    assert f"  attention  {told}" in as_text(up, CONNECTION).splitlines()
    assert json.loads(as_json(up, CONNECTION))["attention"] == told
    assert "  attention  -" in as_text(status(), CONNECTION).splitlines(), "before the first"


def test_people_and_programs_are_told_what_compression_brought() -> None:
    told = "balanced: 7.6x fewer bytes, error 1.2 %, 0.4 GB of state"
    up = status(compression=told)
    assert f"  compress   {told}" in as_text(up, CONNECTION).splitlines()
    assert json.loads(as_json(up, CONNECTION))["compression"] == told
    assert "  compress   -" in as_text(status(), CONNECTION).splitlines(), "where it is off"
