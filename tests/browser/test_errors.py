"""When a run fails, the page itself says first what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import OpenEditor
from tests.browser.editor import RENDERERS, Editor
from tests.browser.scene import FLUX
from tests.comfy.rig import plain, prompt
from tests.support import daemon, workflows
from tests.support.comfyui import ComfyServer

NOTICE = ".tutti-remedy"
"""The notice that the pack's page script shows."""


def fail(editor: Editor, name: str = FLUX, **inputs: object) -> str:
    """Queue a run that must fail and return its error message."""
    editor.load_prompt(prompt(plain(), workflows.tutti_loader(name, **inputs)))
    editor.queue()
    editor.wait_for_event(["execution_error"])
    (message,) = [text for kind, text in editor.events() if kind == "execution_error"]
    return message


def notice(editor: Editor) -> str:
    """The text that the user reads, as one line."""
    shown = editor.page.locator(NOTICE)
    shown.wait_for()
    return " ".join(shown.inner_text().split())


@pytest.mark.parametrize("renderer", RENDERERS)
def test_without_a_daemon_the_page_says_what_to_run(open_editor: OpenEditor, renderer: str) -> None:
    editor = open_editor(renderer)
    message = fail(editor)
    assert message.startswith("Run `")
    assert notice(editor) == message.strip()


def test_inputs_that_are_refused_before_the_run_are_explained(open_editor: OpenEditor) -> None:
    editor = open_editor("vue")
    editor.load_prompt(prompt(plain(), workflows.tutti_loader(FLUX, plan="ulysses: two")))
    editor.queue()
    assert notice(editor).startswith("Set plan to auto or to degrees")
    assert editor.page.locator(NOTICE).count() == 1
    assert editor.events() == []


def test_the_error_report_says_what_to_do_before_it_names_anything_of_this_machine(open_editor: OpenEditor) -> None:
    editor = open_editor("vue")
    fail(editor)
    editor.page.get_by_role("button", name="View details").click()
    report = editor.page.get_by_text("Exception Message:")
    report.wait_for()
    message = report.inner_text().split("Exception Message:")[1].strip("* \n")
    assert message.startswith("tutti.DaemonUnreachable: Run `")


def test_the_notice_does_not_cover_the_way_to_the_details(open_editor: OpenEditor) -> None:
    editor = open_editor("vue")
    fail(editor)
    notice(editor)
    editor.page.get_by_role("button", name="View details").click(timeout=5000)  # fails when something is in front


def test_an_error_of_another_pack_is_left_to_comfyui(open_editor: OpenEditor) -> None:
    """Negative control: the notice is for our errors only."""
    editor = open_editor("vue")
    foreign = {"exception_type": "ValueError", "exception_message": "not ours", "node_id": "1"}
    send = "detail => app.api.dispatchEvent(new CustomEvent('execution_error', {detail}))"
    editor.page.evaluate(send, foreign)
    editor.page.evaluate(send, {**foreign, "exception_type": "tutti.BadPlan", "exception_message": "Do this: because"})
    assert notice(editor) == "Do this: because"
    assert editor.page.locator(NOTICE).count() == 1


def test_an_unknown_checkpoint_and_a_bad_plan_are_explained(
    open_editor: OpenEditor, comfy: ComfyServer, comfy_state_dir: Path
) -> None:
    with daemon.running(comfy.base.parent / "models", comfy_state_dir, ranks=1, plan="ulysses=1,ring=1"):
        editor = open_editor("vue")
        fail(editor, "no-such-model.safetensors")
        unknown = notice(editor)
        editor.page.locator(NOTICE).get_by_role("button").click()
        editor.page.locator(NOTICE).wait_for(state="detached")
        fail(editor, plan="ulysses=7")
        plan = notice(editor)
    assert "no-such-model" in unknown
    assert "ulysses=1" in plan
