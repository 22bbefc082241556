"""The pack as ComfyUI sees it: it loads at once, brings nodes, help pages and translations, and touches nothing while it is imported."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
import urllib.request
from pathlib import Path

import pytest

from tests.comfy.rig import CHECKPOINT, PACK, needs
from tests.support import comfyui
from tests.support.comfyui import ComfyServer

NODES = ("TuttiLoadDiffusionModel", "TuttiSampler", "TuttiStatus", "TuttiDemoLoader", "TuttiDemoPrompt")


def get(server: ComfyServer, path: str) -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=30) as reply:
        return bytes(reply.read())


def test_comfyui_reports_an_import_time_of_less_than_50_ms(comfy: ComfyServer) -> None:
    """ComfyUI prints one decimal: 0.0 is less than 50 ms."""
    lines = [line for line in comfy.log_text().splitlines() if line.rstrip().endswith(f"/{PACK}")]
    (times,) = [found for line in lines if (found := re.search(r"([0-9.]+) seconds", line))]
    assert times[1] == "0.0", lines


@pytest.mark.parametrize("version", comfyui.COMFYUI_VERSIONS)
def test_importing_the_pack_imports_no_zmq_and_starts_no_thread(version: str, tmp_path: Path) -> None:
    """In a bare interpreter of ComfyUI's environment, with everything that ComfyUI itself has imported by then."""
    needs(version)
    folder = comfyui.comfyui_folder(version)
    assert folder is not None
    script = """
        import asyncio, importlib.util, json, sys, threading
        comfyui, pack = sys.argv[1:3]
        sys.argv = ["main.py", "--cpu", "--base-directory", sys.argv[3]]
        sys.path.insert(0, comfyui)
        import comfy.options
        comfy.options.enable_args_parsing()
        import utils.install_util, nodes, server
        from comfy_api.latest import io
        before, threads = set(sys.modules), threading.active_count()
        spec = importlib.util.spec_from_file_location("a_x_pack", pack + "/__init__.py")
        module = sys.modules["a_x_pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        at_import = sorted(set(sys.modules) - before)
        extension = asyncio.run(module.comfy_entrypoint())
        for node in asyncio.run(extension.get_node_list()):
            node.GET_SCHEMA()
        print(json.dumps([at_import, sorted(set(sys.modules) - before), threading.active_count() - threads]))
    """
    python = folder / "venv" / "bin" / "python"
    command = [python, "-c", textwrap.dedent(script), folder / "ComfyUI", comfyui.REPOSITORY, tmp_path]
    environment = comfyui.environment(tmp_path, {})
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    at_import, in_all, threads = json.loads(done.stdout.splitlines()[-1])
    assert at_import == ["a_x_pack"]
    assert not {"zmq", "msgpack", "torch"} & set(in_all)
    assert "a_x_pack.comfy_nodes.extension" in in_all, "the control: the nodes were loaded"
    assert threads == 0


@pytest.mark.parametrize("node", NODES)
def test_every_node_and_input_is_described(comfy: ComfyServer, node: str) -> None:
    info = comfy.get_json(f"/object_info/{node}")[node]
    assert info["display_name"].startswith("Tutti")
    assert info["description"]
    assert info["category"] == "Tutti"
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert all(options.get("tooltip") for _, options in inputs.values())
    assert all(info["output_tooltips"])


def test_the_loader_names_its_inputs_as_comfyuis_own_loader_does(comfy: ComfyServer) -> None:
    ours = comfy.get_json("/object_info/TuttiLoadDiffusionModel")["TuttiLoadDiffusionModel"]
    stock = comfy.get_json("/object_info/UNETLoader")["UNETLoader"]
    assert list(ours["input"]["required"]) == list(stock["input"]["required"])
    assert ours["output"] == stock["output"] == ["MODEL"]
    assert ours["input"]["required"]["weight_dtype"][1]["advanced"]
    assert ours["input"]["optional"]["plan"][1]["advanced"]


def test_the_models_of_comfyuis_own_folders_are_listed_without_a_daemon(comfy: ComfyServer) -> None:
    info = comfy.get_json("/object_info/TuttiLoadDiffusionModel")["TuttiLoadDiffusionModel"]
    names = info["input"]["required"]["unet_name"][1]["options"]
    assert CHECKPOINT in names
    assert "sub/folder.safetensors" in names
    assert "tutti_demo_flux.safetensors" in names, "it ships with Tutti"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page_and_a_translation(comfy: ComfyServer, node: str, language: str) -> None:
    page = get(comfy, f"/extensions/{PACK}/docs/{node}/{language}.md").decode()
    assert page.startswith("# Tutti")
    translated = comfy.get_json("/i18n")[language]["nodeDefs"][node]
    info = comfy.get_json(f"/object_info/{node}")[node]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert set(translated.get("inputs", {})) == set(inputs)
    assert translated["display_name"].startswith("Tutti")


def test_the_shared_workflows_are_in_the_template_browser(comfy: ComfyServer) -> None:
    listed = comfy.get_json("/api/workflow_templates")[PACK]
    assert set(listed) == {path.stem for path in (comfyui.REPOSITORY / "workflows").glob("*.json")}
    assert listed


def test_no_node_pack_failed_to_load(comfy: ComfyServer) -> None:
    log = comfy.log_text()
    assert not [line for line in log.splitlines() if "IMPORT FAILED" in line and "custom_nodes" in line]
    assert "Error while calling comfy_entrypoint" not in log
