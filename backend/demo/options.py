"""What ``tutti demo`` can be told, checked: every mistake is one sentence with its remedy, before anything is started."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ..assets.advice import GUIDANCE, size_warning
from ..errors import BadPlan, BadRequest
from ..parallel import plan as plans
from ..parallel.plan import AUTO, COMPRESSIONS, Plan, choose_plan, split_compression

PROMPTS: Final = (
    "a red circle on a white background",
    "a blue star on a yellow background",
    "a green heart on a black background",
    "a striped orange square on a grey background",
    "a dotted purple diamond on a white background",
    "a large yellow ring on a blue background",
    "a small white triangle at the top left on a red background",
    "a black cross at the bottom right on a green background",
    "a red heart at the left and a blue heart at the right on a white background",
    "a large red circle at the top left and a small blue star on a grey background",
    "a striped green ring at the top and a dotted orange diamond at the bottom on a black background",
    "a red star at the top left and a green circle and a blue square at the bottom right on a white background",
)
"""What is drawn when nothing is asked for."""
CODECS: Final = ("off", *plans.CODECS[1:])
"""What can encode the ranks' all-to-all: all but ``off`` are approximate."""
FILE_NAME: Final = "demo.png"
HEADS: Final = 2
"""Of the demo model: what a ulysses degree must divide."""
SIDES: Final = (64, 512)
"""Least and greatest side, in pixels, of what can be drawn."""
MULTIPLE: Final = 16
STEPS: Final = 28
SIZE: Final = "128"
SEED: Final = 12
"""The first of 24 with which each of :data:`PROMPTS` shows something; how often one does not, `quality` measures."""
MOST_STEPS: Final = 1000
MOST_RANKS: Final = 64
"""More than any one box has GPUs: a typing error, not a wish."""
MOST_PROMPTS: Final = 96
_OTHER_PICTURES: Final = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """One run; raises :class:`BadRequest` or :class:`BadPlan`."""

    prompts: tuple[str, ...] = PROMPTS
    out: Path = field(default=Path())
    """A folder, where ``demo.png`` is written, or a file that ends in ``.png``."""
    plan: str = AUTO
    """``ulysses=2,ring=1``; ``auto`` lets the daemon choose."""
    codec: str = "off"
    """What the plan's all-to-all carries; one of :data:`CODECS`."""
    compression: str = "off"
    """How the ranks' exchange is compressed, one of the plan's :data:`COMPRESSIONS`; then everything is drawn without it too."""
    ranks: int | None = None
    """Ranks to start; None means as many as the plan has, else every GPU, or two CPU ranks."""
    steps: int = STEPS
    size: str = SIZE
    """Width and height in pixels: ``192x128``, or one number for a square."""
    guidance: float = GUIDANCE[1]
    seed: int = SEED
    """Of the first picture's noise; the next one has the next seed."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise BadRequest(f"Set --codec to {' or '.join(CODECS)}: there is no codec {self.codec[:40]!r}.")
        if self.compression not in COMPRESSIONS:
            raise BadRequest(
                f"Set --compression to {' or '.join(COMPRESSIONS)}: there is no compression {self.compression[:40]!r}."
            )
        if self.ranks is not None and not 1 <= self.ranks <= MOST_RANKS:
            raise BadRequest(f"Set --ranks to 1 to {MOST_RANKS}: got {self.ranks}.")
        if not 1 <= self.steps <= MOST_STEPS:
            raise BadRequest(f"Set --steps to 1 to {MOST_STEPS}: got {self.steps}.")
        if not 1 <= len(self.prompts) <= MOST_PROMPTS:
            raise BadRequest(f"Give 1 to {MOST_PROMPTS} prompts: got {len(self.prompts)}.")
        if not 0 <= self.seed < 2**62:
            raise BadRequest(f"Set --seed to a number of at least 0: got {self.seed}.")
        least, _, most = GUIDANCE
        if not least <= self.guidance <= most:
            raise BadRequest(f"Set --guidance to {least:g} to {most:g}, what the demo model was taught: got {self.guidance:g}.")  # fmt: skip
        if self.out.suffix.lower() in _OTHER_PICTURES:
            raise BadRequest(f"Give --out a folder or a file that ends in .png: {self.out.name} is neither.")
        _ = self.width_and_height
        if (chosen := self.chosen_plan) or self.ranks:
            self.plan_on(self.ranks or (chosen.world_size if chosen else 1))

    @property
    def width_and_height(self) -> tuple[int, int]:
        """In pixels."""
        found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", self.size.strip().lower(), re.ASCII)
        width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not all(SIDES[0] <= side <= SIDES[1] and side % MULTIPLE == 0 for side in (width, height)):
            raise BadRequest(
                f"Set --size to WIDTHxHEIGHT in multiples of {MULTIPLE} from {SIDES[0]} to {SIDES[1]}, such as 192x128: got {self.size[:40]!r}."
            )
        return width, height

    @property
    def chosen_plan(self) -> Plan | None:
        """None is ``auto``."""
        if split_compression(self.plan)[0] in ("", AUTO):
            return None
        plan = Plan.parse(self.plan)
        if plan.world_size > MOST_RANKS:
            raise BadPlan(f"Choose a plan of at most {MOST_RANKS} ranks: {plan} needs {plan.world_size}.")
        return choose_plan(plan, self.ranks or plan.world_size, HEADS)

    def plan_on(self, ranks: int) -> Plan | None:
        """What is asked of a daemon of so many ranks, codec and compression included. None: the daemon chooses, and chooses what is exact.

        Raises:
            BadRequest: the plan names another codec or compression.
            BadPlan: so few ranks have no exchange to encode or compress.
        """
        chosen = self.chosen_plan
        codec, compression = CODECS[0], split_compression(self.plan)[1] or COMPRESSIONS[0]
        if self.codec != CODECS[0]:
            codec = self.codec
            if chosen and chosen.codec not in (plans.CODECS[0], codec):
                raise BadRequest(f"Name one codec: --plan has {chosen.codec}, --codec {codec}.")
        if self.compression != COMPRESSIONS[0]:
            if compression not in (COMPRESSIONS[0], self.compression):
                raise BadRequest(f"Name one compression: --plan has {compression}, --compression {self.compression}.")
            compression = self.compression
        if codec == CODECS[0] and compression == COMPRESSIONS[0]:
            return chosen
        plan = chosen or choose_plan(None, ranks, HEADS)
        return replace(plan, codec=plan.codec if codec == CODECS[0] else codec, compression=compression)

    def warnings(self) -> list[str]:
        """What can be drawn, but was not taught."""
        warning = size_warning(*self.width_and_height)
        return [warning] if warning else []

    def prepared_file(self) -> Path:
        """Where the picture goes, absolute; its folder is made.

        Raises:
            BadRequest: nothing can be written there.
        """
        try:
            path = self.out.expanduser().absolute()
        except RuntimeError as error:
            raise BadRequest(f"Choose another --out: nobody's home is {self.out.parts[0]}.") from error
        # os.path's questions, because those of Path raise where a folder above may not be entered.
        if os.path.isdir(path) or path.suffix.lower() != ".png":
            path = path / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadRequest(f"Choose another --out: the folder {path.parent} cannot be made ({error.strerror}).") from error  # fmt: skip
        if os.path.isdir(path) or not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
            raise BadRequest(f"Choose another --out: {path} cannot be written.")
        return path
