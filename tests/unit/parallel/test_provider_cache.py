"""Measured times on disk: they belong to the versions that gave them, and a bad file is an empty one."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.providers import cache as cache_module
from tutti.backend.parallel.providers.cache import TimesCache, versions


def test_kept_times_belong_to_the_versions_that_gave_them(tmp_path: Path) -> None:
    made_by = {"torch": "2.13.0", "gpu": "one", "driver": "580"}
    cache = TimesCache(tmp_path / "new" / "folder", made_by)
    assert cache.get("case") == {}
    cache.put("case", {"a": 1.5})
    cache.put("other case", {"b": 2.5})
    assert TimesCache(tmp_path / "new" / "folder", made_by).get("case") == {"a": 1.5}
    for changed in ("torch", "gpu", "driver"):
        other = TimesCache(tmp_path / "new" / "folder", {**made_by, changed: "another"})
        assert other.get("case") == {}
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", '{"versions": {}}', '{"versions": {"torch": "1"}, "times": []}', "\x00"],
)
def test_a_damaged_file_is_an_empty_one(content: str, tmp_path: Path) -> None:
    cache = TimesCache(tmp_path, {"torch": "1"})
    assert cache.path is not None
    cache.path.write_text(content)
    assert cache.get("case") == {}
    cache.put("case", {"a": 1.0})
    assert cache.get("case") == {"a": 1.0}


def test_times_that_are_no_times_are_left_out(tmp_path: Path) -> None:
    cache = TimesCache(tmp_path, {"torch": "1"})
    assert cache.path is not None
    times = {"case": {"a": "fast", "b": -1, "c": 2}, "other": 3}
    cache.path.write_text(json.dumps({"versions": {"torch": "1"}, "times": times}))
    assert cache.get("case") == {"c": 2.0}
    assert cache.get("other") == {}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = TimesCache(tmp_path / "file", {"torch": "1"})
    cache.put("case", {"a": 1.0})
    assert "cannot keep measured attention times" in caplog.text


def test_times_belong_to_the_versions_of_the_packages_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"xfuser": "0.7", "flash-attn": "2.8", "flash-attn-3": "3.0", "sageattention": "2.2"}

    def version(distribution: str) -> str:
        if distribution in installed:
            return installed[distribution]
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(cache_module.importlib.metadata, "version", version)
    device = torch.device("cpu")
    monkeypatch.setattr(cache_module, "installed", lambda: False)
    without = versions(device)
    assert not installed.keys() & without.keys()  # nothing of theirs is timed
    monkeypatch.setattr(cache_module, "installed", lambda: True)
    assert versions(device) == without | installed
    paths = {TimesCache(Path("folder"), versions(device)).path}
    for package in tuple(installed):
        installed[package] += ".1"
        paths.add(TimesCache(Path("folder"), versions(device)).path)
    del installed["flash-attn"]
    paths.add(TimesCache(Path("folder"), versions(device)).path)
    assert len(paths) == 6
