"""A real ComfyUI for tests: one server process, driven through its HTTP and websocket API.

``python install.py comfyui`` puts a ComfyUI under ``.comfyui/<version>``; :class:`ComfyServer` starts it on the CPU with a base directory
of its own, so that models, outputs and custom nodes of two servers never meet. Nothing here is a fake.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch
from safetensors.torch import load_file

from .leaks import MARK

REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI_VERSIONS = ("0.30.0", "0.16.3")
"""The versions that the pack is tested with, the main one first."""

START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 20.0
FINAL_EVENTS = ("execution_success", "execution_error", "execution_interrupted")

Prompt = dict[str, dict[str, Any]]
"""A workflow in ComfyUI's API format: node id -> {class_type, inputs}."""


def comfyui_folder(version: str) -> Path | None:
    """The installed ComfyUI of `version`, or None when it is not there."""
    folder = REPOSITORY / ".comfyui" / version
    return (
        folder if (folder / "ComfyUI" / "main.py").exists() and (folder / "venv" / "bin" / "python").exists() else None
    )


@dataclass(slots=True)
class Preview:
    """One preview image that arrived over the websocket."""

    at_s: float
    """Seconds since the prompt was queued."""
    node_id: str
    image: bytes


@dataclass(slots=True)
class Run:
    """What came of one prompt."""

    prompt_id: str = ""
    status: str = ""
    """``success``, ``error``, ``interrupted`` or ``refused`` (HTTP 400 before anything ran)."""
    outputs: dict[str, Any] = field(default_factory=dict)
    previews: list[Preview] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(node id, text) of every progress text, in order."""
    events: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """(seconds, type, data) of every JSON event of this prompt."""
    error: str = ""
    error_type: str = ""
    seconds: float = 0.0
    interrupted_at_s: float | None = None

    def text_of(self, node_id: str) -> str:
        """All progress texts of one node, one per line."""
        return "\n".join(text for node, text in self.texts if node == node_id)

    @property
    def all_texts(self) -> str:
        """The progress texts of every node, one per line."""
        return "\n".join(text for _, text in self.texts)


class ComfyServer:
    """One running ComfyUI. Use :func:`running`; every prompt goes through :meth:`run`."""

    def __init__(self, process: subprocess.Popen[bytes], base: Path, port: int, log: Path) -> None:
        self.process = process
        self.base = base
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    def get_json(self, path: str) -> Any:
        """GET `path` and parse the answer."""
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def log_text(self) -> str:
        """Everything the server printed so far."""
        return self.log.read_text(errors="replace")

    def run(
        self,
        prompt: Prompt,
        *,
        preview_method: str | None = None,
        interrupt_when: Callable[[Run], bool] | None = None,
        timeout_s: float = 60.0,
    ) -> Run:
        """Queue `prompt`, wait for its end and return what happened.

        `preview_method` is what the frontend setting sends with a prompt (``latent2rgb``, ...). `interrupt_when` is asked after every event;
        the first time it says yes, the run is interrupted as the Cancel button does it.
        """
        return asyncio.run(self._run(prompt, preview_method, interrupt_when, timeout_s))

    async def _run(
        self, prompt: Prompt, preview_method: str | None, interrupt_when: Callable[[Run], bool] | None, timeout_s: float
    ) -> Run:
        run, client_id = Run(), uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client_id}") as socket_,
        ):
            await socket_.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            body: dict[str, Any] = {"prompt": prompt, "client_id": client_id}
            if preview_method:
                body["extra_data"] = {"preview_method": preview_method}
            start = time.monotonic()
            async with session.post(f"{self.url}/prompt", json=body) as reply:
                answer = await reply.json()
            if "prompt_id" not in answer or answer.get("node_errors"):
                run.status, run.error = "refused", json.dumps(answer)
                return run
            run.prompt_id = answer["prompt_id"]

            async def until_the_end() -> None:
                while not run.status:
                    message = await socket_.receive()
                    _take(run, message, time.monotonic() - start)
                    if interrupt_when and run.interrupted_at_s is None and not run.status and interrupt_when(run):
                        run.interrupted_at_s = time.monotonic() - start
                        async with session.post(f"{self.url}/interrupt", json={"prompt_id": run.prompt_id}):
                            pass
                run.seconds = time.monotonic() - start
                await self._read_history(session, run)

            try:
                await asyncio.wait_for(until_the_end(), timeout_s)
            except asyncio.TimeoutError:
                async with session.post(f"{self.url}/interrupt", json={"prompt_id": run.prompt_id}):
                    pass  # the next test finds an idle server
                lines = "\n".join(self.log_text().splitlines()[-20:])
                raise AssertionError(f"no end after {timeout_s} s; {run.all_texts}\n{lines}") from None
        return run

    async def _read_history(self, session: aiohttp.ClientSession, run: Run) -> None:
        """The history is written after the final event: wait for it (the caller's timeout bounds this)."""
        while True:
            async with session.get(f"{self.url}/history/{run.prompt_id}") as reply:
                history = await reply.json()
            if run.prompt_id in history:
                run.outputs = history[run.prompt_id].get("outputs", {})
                return
            await asyncio.sleep(0.02)

    def latents(self, run: Run) -> list[torch.Tensor]:
        """The tensors that the SaveLatent nodes of `run` wrote, ordered by node id."""
        files = [
            self.base / "output" / entry["subfolder"] / entry["filename"]
            for _, output in sorted(run.outputs.items())
            for entry in output.get("latents", [])
        ]
        return [load_file(path)["latent_tensor"] for path in files]


def _take(run: Run, message: aiohttp.WSMessage, at_s: float) -> None:
    """Put one websocket message where it belongs in `run`."""
    if message.type == aiohttp.WSMsgType.BINARY:
        _take_binary(run, message.data, at_s)
    elif message.type == aiohttp.WSMsgType.TEXT:
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data", {})
        if data.get("prompt_id") not in (None, run.prompt_id):
            return
        run.events.append((at_s, kind, data))
        if kind in FINAL_EVENTS and data.get("prompt_id") == run.prompt_id:
            run.status = kind.removeprefix("execution_")
            run.error = data.get("exception_message", "").strip()
            run.error_type = data.get("exception_type", "")
    else:
        raise ConnectionError(f"ComfyUI closed the websocket: {message.type}")


def _take_binary(run: Run, data: bytes, at_s: float) -> None:
    kind = struct.unpack(">I", data[:4])[0]
    if kind == 1:
        run.previews.append(Preview(at_s, "", data[8:]))
    elif kind == 3:
        size = struct.unpack(">I", data[4:8])[0]
        run.texts.append((data[8 : 8 + size].decode(), data[8 + size :].decode()))
    elif kind == 4:
        size = struct.unpack(">I", data[4:8])[0]
        meta = json.loads(data[8 : 8 + size])
        run.previews.append(Preview(at_s, str(meta.get("node_id", "")), data[8 + size :]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _prepare_base(base: Path, packs: Mapping[str, Path], models: Path | None) -> None:
    if models is not None:
        base.mkdir(parents=True, exist_ok=True)
        (base / "models").symlink_to(models, target_is_directory=True)
    for name in ("custom_nodes", "input", "output", "temp", "tmp", "user", "models/diffusion_models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, source in packs.items():
        (base / "custom_nodes" / name).symlink_to(source, target_is_directory=True)


def environment(base: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The test's own environment without what belongs to its Python or to a daemon, and with a temporary folder that goes with the base."""
    kept = {k: v for k, v in os.environ.items() if k == MARK or not k.startswith(("TUTTI_", "PYTHON", "VIRTUAL_ENV"))}
    ours = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(base / "tmp"),
    }
    return kept | ours | dict(extra)


@contextlib.contextmanager
def running(
    version: str,
    base: Path,
    *,
    packs: Mapping[str, Path] | None = None,
    models: Path | None = None,
    arguments: Sequence[str] = (),
    extra_environment: Mapping[str, str] | None = None,
) -> Iterator[ComfyServer]:
    """Start ComfyUI `version` with base directory `base`, yield it when it answers, and stop it at the end.

    `packs` maps folder names under ``custom_nodes`` to the folders they link to; `models` is the folder that its models folder links to. Raises ``RuntimeError`` with the end of the log when the server
    does not come up within the deadline.
    """
    folder = comfyui_folder(version)
    if folder is None:
        raise RuntimeError(
            f"Run `python install.py comfyui --version {version}` first: ComfyUI {version} is not installed"
        )
    _prepare_base(base, packs or {}, models)
    port, log = _free_port(), base / "comfyui.log"
    command = [
        str(folder / "venv" / "bin" / "python"), str(folder / "ComfyUI" / "main.py"), "--cpu", "--disable-api-nodes",
        "--database-url", "sqlite:///:memory:", "--base-directory", str(base), "--port", str(port), *arguments,
    ]  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=environment(base, extra_environment or {}), cwd=base
        )
    server = ComfyServer(process, base, port, log)
    try:
        _wait_until_up(server)
        yield server
    finally:
        _stop(process)
        for name in packs or {}:
            (base / "custom_nodes" / name).unlink(missing_ok=True)
        shutil.rmtree(base / "output", ignore_errors=True)


def _wait_until_up(server: ComfyServer) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with {server.process.returncode}:\n{server.log_text()[-4000:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            server.get_json("/system_stats")
            return
        time.sleep(0.1)
    raise RuntimeError(f"ComfyUI did not answer within {START_DEADLINE_S} s:\n{server.log_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_DEADLINE_S)
