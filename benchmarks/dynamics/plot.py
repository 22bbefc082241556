"""Lines and dots over steps as a PNG: panels, axes, a legend. Drawn with Pillow, which the demo needs anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

Point = tuple[float, float]

_WIDTH, _HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 40, 40
_INK, _FAINT, _PAPER = (30, 30, 30), (220, 220, 220), (255, 255, 255)
_COLOURS: Final = ((35, 90, 205), (214, 40, 40), (42, 157, 70), (125, 45, 165))
_DOTS: Final = (130, 130, 130)
_TICKS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram over steps."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    """Name -> (step, value); at most four."""
    dots: Sequence[Point]
    """Single values to set beside the lines."""
    dots_name: str
    low: float
    high: float
    steps: int

    def place(self, point: Point, top: int) -> Point:
        """A point in pixels."""
        across = (_WIDTH - _LEFT - _RIGHT) * point[0] / max(1, self.steps - 1)
        up = (_HEIGHT - _TOP - _BOTTOM) * (point[1] - self.low) / (self.high - self.low)
        return _LEFT + across, top + _HEIGHT - _BOTTOM - up


def write_plot(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels below one another."""
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        _draw(pen, panel, number * _HEIGHT)
    sheet.save(path)


def _draw(pen: ImageDraw.ImageDraw, panel: Panel, top: int) -> None:
    pen.text((_LEFT, top + 6), panel.title, fill=_INK)
    for tick in range(_TICKS + 1):
        value = panel.low + (panel.high - panel.low) * tick / _TICKS
        _, y = panel.place((0, value), top)
        pen.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_FAINT)
        pen.text((8, y - 6), f"{value:.3g}", fill=_INK)
    for step in range(0, panel.steps, max(1, panel.steps // 7)):
        x, y = panel.place((step, panel.low), top)
        pen.text((x - 4, y + 6), str(step), fill=_INK)
    for number, (name, points) in enumerate(panel.lines.items()):
        pen.line([panel.place(point, top) for point in points], fill=_COLOURS[number], width=2)
        _explain(pen, name, _COLOURS[number], number, top)
    if panel.dots:
        for x, y in (panel.place(point, top) for point in panel.dots):
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_DOTS)
        _explain(pen, panel.dots_name, _DOTS, len(panel.lines), top)


def _explain(pen: ImageDraw.ImageDraw, name: str, colour: tuple[int, int, int], number: int, top: int) -> None:
    """One entry of the legend."""
    across = _LEFT + 130 * number
    pen.line([(across, top + 31), (across + 16, top + 31)], fill=colour, width=3)
    pen.text((across + 22, top + 24), name, fill=_INK)
