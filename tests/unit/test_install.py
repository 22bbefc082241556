"""install.py as a user meets it: real environments, real pip, a real build; only the pack is small (tests/support/toy_pack.py)."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import setproctitle
from tutti.backend.cli import demo
from tutti.backend.setup import backend_env, checkout, comfyui, command, environment, folders
from tutti.backend.setup.runner import TAIL_LINES, Runner, SetupError

from tests.support.toy_pack import REPOSITORY, ToyPack, build_tools_lock, download_build_tools

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    download_build_tools(folder)
    return folder


@pytest.fixture
def pack(tmp_path: Path, wheels: Path) -> ToyPack:
    """A pack in a folder whose name has a space, and an empty data folder."""
    toy = ToyPack(folder=tmp_path / "custom nodes" / "ComfyUI-Tutti", data_home=tmp_path / "data", wheels=wheels)
    toy.folder.mkdir(parents=True)
    toy.data_home.mkdir()
    toy.write()
    return toy


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_the_installer_is_written_for_python_3_10() -> None:
    for path in [REPOSITORY / "install.py", *(REPOSITORY / "backend" / "setup").glob("*.py")]:
        ast.parse(path.read_text(), feature_version=(3, 10))


def test_a_back_end_is_installed_kept_replaced_and_never_replaced_by_a_sick_one(pack: ToyPack) -> None:
    first = pack.install("backend")
    assert first.returncode == 0, first.stdout + first.stderr
    pointer = json.loads((pack.data / "current.json").read_text())
    old = Path(pointer["executable"])
    assert pointer["version"] == "0.1.0"
    said = subprocess.run([old, "doctor"], capture_output=True, text=True, timeout=30)
    assert str(pack.data) in said.stdout, "the installed package must not be the pack's own folder"
    assert not list(pack.folder.glob("*.egg-info"))
    assert not (pack.folder / "build").exists()

    again = pack.install("backend")
    assert again.returncode == 0
    assert "installed already" in again.stdout
    assert "Installing" not in again.stdout

    pack.write(version="0.2.0", doctor_status=7)
    sick = pack.install("backend")
    assert sick.returncode == 1
    assert "tutti doctor" in sick.stderr
    assert "doctor of" in sick.stderr
    assert "What to do:" in sick.stderr
    assert json.loads((pack.data / "current.json").read_text()) == pointer
    assert subprocess.run([old, "doctor"], capture_output=True, timeout=30).returncode == 0

    pack.write(version="0.2.0")
    mended = pack.install("backend")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert json.loads((pack.data / "current.json").read_text())["version"] == "0.2.0"
    assert subprocess.run([pack.bin / "tutti", "doctor"], capture_output=True, timeout=30).returncode == 0
    assert (pack.bin / "tutti").resolve() == Path(json.loads((pack.data / "current.json").read_text())["executable"])
    (remaining,) = (pack.data / "envs").iterdir()
    assert remaining.name.startswith("0.2.0-cpu-"), "neither the old environment nor the sick one stays"


def test_an_environment_that_a_process_runs_from_is_in_use(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True, timeout=100)
    assert not backend_env.is_in_use(tmp_path / "env")
    with running(tmp_path / "env" / "bin" / "python"):
        assert backend_env.is_in_use(tmp_path / "env")
        assert not backend_env.is_in_use(tmp_path / "en")
    assert not backend_env.is_in_use(tmp_path / "env")


def test_an_environment_is_in_use_by_a_process_that_gave_itself_a_title(tmp_path: Path) -> None:
    """As daemon, launcher and ranks do: the command line no longer names the environment."""
    env = tmp_path / "an env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True, timeout=100)
    (site,) = env.glob("lib/python3*/site-packages")
    shutil.copytree(Path(setproctitle.__file__).parent, site / "setproctitle")
    titled = "import setproctitle; setproctitle.setproctitle('tutti: daemon'); "
    with running(env / "bin" / "python", titled) as pid:
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"tutti: daemon"), "else this tests nothing"
        assert backend_env.is_in_use(env)
        assert not backend_env.is_in_use(tmp_path / "an")
    assert not backend_env.is_in_use(env)


class running:  # noqa: N801 - a context manager, read as a verb
    """A process of this Python for as long as the block runs; ``first`` is what it does before the block begins."""

    def __init__(self, python: Path, first: str = "") -> None:
        script = f"{first}print(flush=True); import time; time.sleep(100)"
        self._process = subprocess.Popen([python, "-c", script], stdout=subprocess.PIPE)

    def __enter__(self) -> int:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n"
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_package_with_another_hash_is_refused_and_the_end_of_pips_output_is_shown(pack: ToyPack) -> None:
    pack.write(lock=re.sub(r"sha256:[0-9a-f]+", "sha256:" + "0" * 64, build_tools_lock()))
    done = pack.install("backend", "--torch", "own")
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "TUTTI_PIP_ARGS" in done.stderr
    assert not (pack.data / "current.json").exists()


@pytest.mark.parametrize("command", [["backend"], ["dev"], ["comfyui"], ["demo"], ["test", "--", "-k", "x"]])
def test_a_dry_run_says_what_it_would_do_and_does_nothing(pack: ToyPack, command: list[str]) -> None:
    for name in ("dev.txt", "comfyui-0.30.0.txt", "comfyui-0.16.3.txt"):
        (pack.folder / "locks" / name).write_text((REPOSITORY / "locks" / name).read_text())
    before = tree(pack.folder), tree(pack.data_home)
    done = pack.install("--dry-run", *command, TUTTI_PIP_ARGS="--index-url 'https://a b'")
    assert done.returncode == 0, done.stderr
    assert "would run" in done.stdout
    assert (tree(pack.folder), tree(pack.data_home)) == before
    pip_lines = [line for line in done.stdout.splitlines() if "-m pip install" in line]
    assert pip_lines
    for line in pip_lines:
        assert '--index-url "https://a b"' in line


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_the_demos_own_options_reach_it_word_for_word(dashes: list[str]) -> None:
    words = ["--prompt", "a red circle and a blue star", "--plan=ring=2", "--prompt", "green", "--out", "some folder"]
    parsed = command.parse(["demo", *dashes, *words])
    assert (parsed.command, parsed.extra, parsed.dry_run) == ("demo", words, False)
    assert command.parse(["demo", "--dry-run", "--prompt", "x"]).dry_run is True
    assert command.parse(["demo"]).extra == []


def test_a_typing_error_in_the_demos_options_is_told_before_anything_is_installed() -> None:
    for words in (["--promt", "x"], ["--dryrun"], ["--prompt", "x", "--steps=3", "-x"]):
        with pytest.raises(SystemExit) as ended:
            command.parse(["demo", *words])
        assert ended.value.code == 2
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    assert known == {*command.DEMO_OPTIONS, "-h", "--help"}


@pytest.mark.parametrize("words", [["dev", "--prompt", "x"], ["backend", "--", "x"], ["--prompt", "x"]])
def test_other_commands_take_no_options_that_they_do_not_know(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse(words)
    assert ended.value.code == 2


def test_without_a_command_a_missing_requirement_is_named_with_the_line_to_run(pack: ToyPack) -> None:
    before = tree(pack.folder)
    command = [
        sys.executable,
        "-S",
        str(pack.folder / "install.py"),
    ]  # -S: no site-packages, so neither pyzmq nor msgpack
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f'"{sys.executable}" -m pip install -r "{pack.folder / "requirements.txt"}"' in done.stdout
    assert tree(pack.folder) == before


def test_without_a_command_the_next_step_is_printed_with_real_paths_and_nothing_is_installed(pack: ToyPack) -> None:
    before = tree(pack.folder), tree(pack.data_home)
    done = pack.install()
    assert done.returncode == 0
    assert f'"{sys.executable}" "{pack.folder / "install.py"}" backend' in done.stdout
    assert (tree(pack.folder), tree(pack.data_home)) == before


def test_without_a_command_an_installed_back_end_is_recognised_and_an_outdated_one_named(pack: ToyPack) -> None:
    folders.write_current(pack.data, folders.Current(executable=sys.executable, version="0.1.0"))
    assert "complete" in pack.install().stdout
    folders.write_current(pack.data, folders.Current(executable=sys.executable, version="0.0.9"))
    assert "The installed back end is 0.0.9" in pack.install().stdout


def test_a_damaged_pointer_counts_as_none(tmp_path: Path) -> None:
    for text in (
        "",
        "[]",
        "{}",
        '{"executable": "/no/such/file", "version": "1"}',
        '{"executable": 1, "version": "1"}',
    ):
        (tmp_path / "current.json").write_text(text)
        assert folders.read_current(tmp_path) is None


def test_the_data_folder_follows_the_platform() -> None:
    home = Path.home()
    assert folders.data_folder({"XDG_DATA_HOME": "/data"}, "linux") == Path("/data/tutti")
    assert folders.data_folder({"XDG_DATA_HOME": "relative"}, "linux") == home / ".local/share/tutti"
    assert folders.data_folder({}, "darwin") == home / "Library/Application Support/tutti"
    assert folders.data_folder({"LOCALAPPDATA": "/local"}, "win32") == Path("/local/tutti")


def test_a_failed_command_is_reported_with_its_last_lines_and_what_to_do() -> None:
    script = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(SetupError) as caught:
        Runner(say=lambda _: None).run([sys.executable, "-c", script], title="Counting", remedy="count again.")
    text = str(caught.value)
    assert text.startswith("Counting: failed with exit status 3.")
    assert "line 99" in text
    assert f"line {99 - TAIL_LINES}" not in text
    assert text.endswith("What to do: count again.")


def test_a_command_that_hangs_is_ended_and_reported() -> None:
    with pytest.raises(SetupError, match=r"not finished after 0 s"):
        Runner(say=lambda _: None).run(
            [sys.executable, "-c", "import time; time.sleep(60)"], title="Waiting", remedy="", timeout_s=0.3
        )


def test_a_missing_command_is_reported() -> None:
    with pytest.raises(SetupError, match="could not be started"):
        Runner(say=lambda _: None).run(["/no/such/command"], title="Trying", remedy="install it")


def test_the_callers_python_settings_do_not_leak_into_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "7")
    environ = Runner().environment
    assert "PYTHONPATH" not in environ
    assert "PIP_TARGET" not in environ
    assert environ["PIP_DEFAULT_TIMEOUT"] == "7"


def interpreter() -> environment.Interpreter:
    return environment.Interpreter(executable=sys.executable, version=sys.version_info[:2])


def test_an_environment_whose_making_was_interrupted_before_pip_is_made_anew(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True, timeout=100)
    said: list[str] = []
    env = environment.Environment(tmp_path / "env", Runner(say=said.append), interpreter())
    env.create()
    assert subprocess.run([env.python, "-m", "pip", "--version"], capture_output=True, timeout=60).returncode == 0
    assert said
    said.clear()
    env.create()
    assert said == [], "a complete one is kept"


def test_a_python_without_ensurepip_is_not_suitable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stripped = tmp_path / "python"
    block = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[1])"
    stripped.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{block}" "$2"\n')
    stripped.chmod(0o755)
    subprocess.run([stripped, "-c", "import venv"], check=True, timeout=60)
    assert environment.suitable_python((3, 10)).executable == sys.executable
    monkeypatch.setattr(sys, "executable", str(stripped))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match="no ensurepip") as caught:
        environment.suitable_python((3, 10))
    assert "python3-venv" in str(caught.value)


def test_a_python_that_is_too_old_everywhere_is_an_error_with_a_remedy() -> None:
    with pytest.raises(SetupError, match=r"needs Python 3\.99"):
        environment.suitable_python((3, 99))


def test_a_lock_is_split_into_what_is_hashed_and_torch() -> None:
    text = "# note\na==1 ; python_version >= '3' \\\n    --hash=sha256:00\nnvidia_x==2 \\\n    --hash=sha256:11\ntorch==2.13.0\n"
    hashed, plain = environment.split_lock(text, {"nvidia-x"})
    assert hashed == "a==1 ; python_version >= '3' \\\n    --hash=sha256:00\n"
    assert plain == ["torch==2.13.0"]


def test_fingerprints_tell_parts_apart() -> None:
    assert environment.fingerprint("ab", "c") != environment.fingerprint("a", "bc")


def test_without_root_the_chromium_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(checkout, "find_chromium", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    checkout.install_chromium(Runner(say=said.append))
    assert checkout.CHROMIUM_COMMAND in said[0]


def test_every_comfyui_source_has_its_lock() -> None:
    assert {f"comfyui-{version}.txt" for version in comfyui.SOURCES} == {
        path.name for path in (REPOSITORY / "locks").glob("comfyui-*")
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The real back end, from the real lock, in a data folder of its own; what install.py printed."""
    data_home = tmp_path_factory.mktemp("data")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "install.py"), "backend", "--torch", "own"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "XDG_DATA_HOME": str(data_home), "XDG_BIN_HOME": str(data_home / "bin")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return data_home, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_back_end_installs_from_its_lock_and_passes_doctor(installed: tuple[Path, str]) -> None:
    data_home, said = installed
    current = folders.read_current(data_home / "tutti")
    assert current is not None
    assert "tutti doctor" in said
    python = Path(current.executable).with_name("python")
    script = "import tutti, torch, diffusers, zmq, sys; print(tutti.__file__)"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=100, cwd="/")
    assert done.stdout.startswith(str(data_home)), done.stderr
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, timeout=100)
    assert checked.returncode == 0, shlex.quote(checked.stdout)
