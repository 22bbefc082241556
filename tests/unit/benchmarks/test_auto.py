"""The benchmark of ``auto`` where links do not decide: a short run on real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tutti.benchmarks import auto
from tutti.benchmarks.auto import AUTO, CONTROL, PLANS, main
from tutti.benchmarks.report import read_targets
from zmq.utils.garbage import gc as garbage


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_plan_is_timed_with_and_without_and_beside_a_preset_that_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "STEPS", 8)  # three calls as they are, and then compressed ones
    assert main(["--rounds", "1", "--json", str(tmp_path / "figures")]) == 0
    garbage.stop()  # pyzmq's own thread for buffers that are sent without a copy
    lines = [json.loads(line) for line in (tmp_path / "figures").read_text().splitlines()]
    found = {(line["case"], line["metric"]): line["value"] for line in lines}
    for plan in PLANS:
        case = f"{plan} on CPU ranks of one host"
        assert found[case, "first auto job / off"] > 0
        assert found[case, f"step with {CONTROL} / off"] > 0
        assert found[case, f"step with {AUTO} / off"] > 0
        assert found[case, "auto jobs that compressed"] in (0, 1)
    promised = {(target.case, target.metric) for target in read_targets("auto")}
    assert promised <= set(found)
