"""The documents announce what tests show, no more and no less."""

from __future__ import annotations

from pathlib import Path

import pytest
from tutti.backend.models.registry import FAMILIES
from tutti.comfy_nodes.families import FAMILIES as FACES

from tests.support import support_table
from tests.support.families import ROWS
from tests.support.support_table import DOCUMENTS, LABELS, NotShown, section, section_in, tasks_of


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_document_has_the_table_that_the_tests_give(document: Path) -> None:
    assert section_in(document) == section(), "run: python -m tests.support.support_table"


def test_every_family_that_runs_is_announced_and_has_parity_rows() -> None:
    names = {family.name for family in FAMILIES}
    assert names == set(LABELS) == {face.name for face in FACES} == {"flux", *ROWS}


def test_a_cell_whose_test_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(support_table, "SHOWN_BY", {**support_table.SHOWN_BY, "wan": {"edit": "nothing: like this"}})
    with pytest.raises(NotShown, match="nothing: like this"):
        tasks_of("wan")
