"""How a worker group is split, ``cfg x ring x ulysses`` ranks, and how its ranks exchange. No torch in this file, the broker and the command
line read plans too.

Rank order is xfuser's tp-sp-pp-cfg-dp: ulysses is the innermost axis (neighbouring ranks), ring the next, cfg the outermost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import BadPlan

_AXES = ("cfg", "ring", "ulysses")

SCHEDULES = ("ring", "prefetch-2", "allgather", "bidirectional", "tokenring")
"""The orders in which ring ranks can meet one another's keys, all exact; the first is the default. See :mod:`.schedules`."""
CODECS = ("raw", "fp8", "int8", "fp8-all", "int8-all")
"""What the Ulysses all-to-all can carry; all but ``raw`` are approximate. See :mod:`.codecs`."""
COMPRESSIONS = ("off", "auto", "fast", "balanced", "small")
"""Presets of compressed exchange; all but ``off`` are approximate. See :mod:`tutti.backend.compression.policy`."""
COMPRESSED_SCHEDULES = ("ring", "prefetch-2", "bidirectional")
"""Schedules in which keys and values travel by hops: those whose differences can be sent."""
AUTO = "auto"
"""In the place of degrees: the largest legal ones are chosen for each model."""
_SETTINGS = {"schedule": SCHEDULES, "codec": CODECS, "compression": COMPRESSIONS}
"""Part of a plan beside its degrees -> its values, the default first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to split a group; raises :class:`BadPlan` on a degree below 1."""

    cfg: int = 1
    """Ranks (groups of ranks) that each take some of the guidance branches."""
    ring: int = 1
    """Ranks among which keys and values travel in a ring."""
    ulysses: int = 1
    """Ranks that exchange tokens for heads with one all-to-all; must divide the model's heads."""
    schedule: str = SCHEDULES[0]
    """How keys and values, or queries, go round the ring: one of :data:`SCHEDULES`."""
    codec: str = CODECS[0]
    """What travels in the all-to-all: one of :data:`CODECS`. Approximate ones are never chosen by ``auto``."""
    compression: str = COMPRESSIONS[0]
    """Whether differences to the call before travel, and how: one of :data:`COMPRESSIONS`. Likewise never chosen by ``auto``."""

    def __post_init__(self) -> None:
        for axis in _AXES:
            degree = getattr(self, axis)
            if type(degree) is not int or degree < 1:
                raise BadPlan(f"Give {axis} a whole number of at least 1: got {degree!r}.")
        for setting, known in _SETTINGS.items():
            if (value := getattr(self, setting)) not in known:
                raise BadPlan(f"Choose a {setting} of {', '.join(known)}: {str(value)[:40]!r} is none of them.")
        if self.ring == 1 and self.schedule != SCHEDULES[0]:
            raise BadPlan(
                f"Give ring at least 2, or take schedule={self.schedule} off the plan: there is no ring to order."
            )
        if self.ulysses == 1 and self.codec != CODECS[0]:
            raise BadPlan(
                f"Give ulysses at least 2, or take codec={self.codec} off the plan: there is no all-to-all to encode."
            )

        if self.compression != COMPRESSIONS[0]:
            self._check_compression()

    def _check_compression(self) -> None:
        if not self.exchanges:
            raise BadPlan(
                f"Give ring or ulysses at least 2, or take compression={self.compression} off the plan: there is no exchange to compress."
            )
        if self.codec != CODECS[0]:
            raise BadPlan(
                f"Take codec={self.codec} or compression={self.compression} off the plan: each is an exchange of its own."
            )
        if self.schedule not in COMPRESSED_SCHEDULES:
            raise BadPlan(
                f"Choose a schedule of {', '.join(COMPRESSED_SCHEDULES)} for compression={self.compression}: "
                f"in {self.schedule} no keys and values go from hop to hop."
            )

    @property
    def split(self) -> Plan:
        """The plan's degrees alone: plans of one split share their process groups."""
        return replace(self, schedule=SCHEDULES[0], codec=CODECS[0], compression=COMPRESSIONS[0])

    @property
    def exact(self) -> bool:
        """Whether nothing is lost on the way."""
        return self.codec == CODECS[0] and self.compression == COMPRESSIONS[0]

    @property
    def can_compress(self) -> bool:
        """Whether its codec and schedule go with a compression."""
        return self.codec == CODECS[0] and self.schedule in COMPRESSED_SCHEDULES

    @property
    def exchanges(self) -> bool:
        """Whether attentions exchange anything: neither one rank does, nor ranks that have a branch each."""
        return self.ring > 1 or self.ulysses > 1

    @property
    def world_size(self) -> int:
        """How many ranks the plan needs."""
        return self.cfg * self.ring * self.ulysses

    def __str__(self) -> str:
        parts = [f"{axis}={getattr(self, axis)}" for axis in _AXES]
        parts += [
            f"{name}={getattr(self, name)}" for name, values in _SETTINGS.items() if getattr(self, name) != values[0]
        ]
        return ",".join(parts)

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read ``"ulysses=2,ring=1"``: any order, a missing axis is 1, any other missing part the default. Raises :class:`BadPlan`."""
        parts: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in (*_AXES, *_SETTINGS):
                raise BadPlan(
                    f'Write a plan as "ulysses=2,ring=1" (axes: {", ".join(_AXES)}; also {", ".join(_SETTINGS)}): '
                    f"{part.strip()[:40]!r} is none of them."
                )
            if name in parts:
                raise BadPlan(f"Name every part of a plan once: {name} appears twice.")
            parts[name] = value
        return cls(
            cfg=_degree("cfg", parts.get("cfg", "1")),
            ring=_degree("ring", parts.get("ring", "1")),
            ulysses=_degree("ulysses", parts.get("ulysses", "1")),
            **{name: parts.get(name, values[0]) for name, values in _SETTINGS.items()},
        )


def _degree(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise BadPlan(f"Give {name} a whole number of at least 1: got {text[:40]!r}.")
    return int(text)


def split_compression(text: str) -> tuple[str, str]:
    """A plan's text without its compression, and that; each is empty where the text names none.

    A job may ask for a compression and leave the degrees to the daemon (``compression=balanced``) or to the model
    (``auto,compression=balanced``). Raises :class:`BadPlan` for one that is unknown or named twice.
    """
    rest: list[str] = []
    named: list[str] = []
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name == "compression":
            named.append(value)
        else:
            rest.append(part)
    if len(named) > 1:
        raise BadPlan("Name every part of a plan once: compression appears twice.")
    compression = named[0] if named else ""
    if named and compression not in COMPRESSIONS:
        raise BadPlan(f"Choose a compression of {', '.join(COMPRESSIONS)}: {compression[:40]!r} is none of them.")
    return ",".join(rest).strip(), compression


def compressed(plan: Plan, compression: str) -> Plan:
    """``plan`` with a compression (empty: as it is), where there is an exchange to compress; elsewhere it is left out.

    Raises :class:`BadPlan` where the plan's own codec or schedule does not go with it.
    """
    return replace(plan, compression=compression) if compression and plan.exchanges else plan


CFG_DEGREES = (1, 2)
"""Guidance has two branches, positive and negative."""


def factor_plans(world_size: int) -> list[Plan]:
    """Every plan that uses ``world_size`` ranks, ``cfg=1`` first, then largest ulysses first.

    Process groups are created in this order: it must be the same on every rank.
    """
    if world_size < 1:
        raise BadPlan(f"A worker group has at least one rank: got {world_size}.")
    return [
        Plan(cfg=cfg, ring=world_size // cfg // ulysses, ulysses=ulysses)
        for cfg in CFG_DEGREES
        if world_size % cfg == 0
        for ulysses in range(world_size // cfg, 0, -1)
        if world_size // cfg % ulysses == 0
    ]


def legal_plans(world_size: int, num_heads: int) -> list[Plan]:
    """The plans of :func:`factor_plans` whose ulysses degree divides the model's heads."""
    return [plan for plan in factor_plans(world_size) if num_heads % plan.ulysses == 0]


def choose_plan(requested: Plan | None, world_size: int, num_heads: int, *, branches: int = 1) -> Plan:
    """The plan to run: ``requested`` if it is legal, else :class:`BadPlan` that names the legal ones.

    ``None`` means auto: two branches on two halves of the group where it has halves (they exchange one latent a call), and in each
    the largest legal ulysses degree, the rest in the ring. (Ulysses moves 4/u of the activations once per attention, a ring moves all keys
    and values r-1 times.) A plan with ``cfg=2`` that was asked for runs a job of one branch too: both halves compute it.
    """
    legal = legal_plans(world_size, num_heads)
    if requested is None:
        cfg = 2 if branches > 1 and world_size % 2 == 0 else 1
        return next(plan for plan in legal if plan.cfg == cfg)
    names = "; ".join(map(str, legal))
    if requested.cfg not in CFG_DEGREES:
        raise BadPlan(f"Choose a plan with cfg=1 or cfg=2: guidance has two branches. Legal plans: {names}.")
    if requested.world_size != world_size:
        raise BadPlan(
            f"Choose a plan for {world_size} rank(s): {requested} needs {requested.world_size}. Legal plans: {names}."
        )
    if requested.split not in legal:
        raise BadPlan(
            f"Choose a ulysses degree that divides the model's {num_heads} heads: {requested.ulysses} does not. Legal plans: {names}."
        )
    return requested
