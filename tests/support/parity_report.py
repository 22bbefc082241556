"""Measure every family's worst error against stock ComfyUI's own network, and write it into docs/parity.md.

python -m tests.support.parity_report     # some five minutes on two cores
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.families import ROWS
from tests.support.family_parity import PLANS, Comparison, FamilyRow, compare
from tests.support.support_table import LABELS, REPOSITORY

DOCUMENT: Final = REPOSITORY / "docs" / "parity.md"
BEGIN: Final = "<!-- The measured errors begin: tests/support/parity_report.py writes them. -->"
END: Final = "<!-- The measured errors end. -->"
HEADER: Final = "| family | comparisons | worst error | smallest error with an exchange dropped |\n|---|---|---|---|\n"


def line(label: str, found: Comparison) -> str:
    """One family's row."""
    return (
        f"| {label} | {len(found.errors)} | {max(found.errors.values()):.1e} | {min(found.controls.values()):.1e} |\n"
    )


def compared(label: str, rows: Sequence[FamilyRow]) -> str:
    """The small checkpoints of a family, and the calls on each."""
    return f"* **{label}** \u2014 " + "; ".join(f"*{row.name}*: {', '.join(row.calls)}" for row in rows) + "\n"


def main() -> None:
    """Compare, family by family."""
    table, calls = HEADER, ""
    for name, (family, rows) in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            table += line(LABELS[name], compare(family, rows, Path(folder)))
        calls += compared(LABELS[name], rows)
        print(table.splitlines()[-1], flush=True)
    plans = ", ".join(f"`{plan}`" for several in PLANS.values() for plan in several)
    text = DOCUMENT.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    measured = f"{table}\nUnder the plans {plans}, fp32, the largest of all ranks. What was called:\n\n{calls}"
    DOCUMENT.write_text(f"{text[:begin]}\n\n{measured}\n{text[end:]}")


if __name__ == "__main__":
    main()
