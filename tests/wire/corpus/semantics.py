"""Messages whose every field is legal, and whose parts contradict one another."""

from __future__ import annotations

from tutti.backend.wire.dtypes import ITEM_BYTES

from ..examples import CLIENT, DIGEST, EXAMPLES
from ..raw import Node, Pairs, drop, edited, get, pack, parse, put
from .row import Row, editing, setting


def _tensors(message: str, what: str, changes: dict[str, tuple[str, list[int]] | None], says: str) -> Row:
    """An example with tensors replaced, added, or (None) left out; the frames always fit their rows."""
    frames = EXAMPLES[message].frames()
    tree = parse(frames[1])
    rows: dict[str, tuple[str, list[int]]] = {name: (dtype, shape) for name, dtype, shape in get(tree, "tensors")}
    for name, row in changes.items():
        if row is None:
            del rows[name]
        else:
            rows[name] = row
    put(tree, ["tensors"], [[name, dtype, shape] for name, (dtype, shape) in rows.items()])
    return Row(f"{message}: {what}", [frames[0], pack(tree), *map(_frame, rows.values())], says)


def _frame(row: tuple[str, list[int]]) -> bytes:
    size = ITEM_BYTES[row[0]]
    for dim in row[1]:
        size *= dim
    return bytes(size)


def _branches(what: str, cfg: float, kinds: list[str], says: str) -> Row:
    def edit(tree: Node) -> None:
        put(tree, ["body", "cfg"], cfg)
        put(tree, ["body", "branches"], [Pairs([("kind", kind)]) for kind in kinds])

    return editing("Sample", what, edit, says)


def _described_without_manifest() -> Row:
    def edit(tree: Node) -> None:
        put(tree, ["manifest"], False)

    return Row("Described: no manifest", edited("Described", edit)[:2], "a manifest belongs to Described")


def _with_manifest(message: str) -> Row:
    frames = EXAMPLES[message].frames()
    tree = parse(frames[1])
    put(tree, ["manifest"], True)
    return Row(
        f"{message}: a manifest", [frames[0], pack(tree), b"\x90", *frames[2:]], "a manifest belongs to Described"
    )


def _both(tree: Node) -> None:
    put(tree, ["body", "sample"], parse(EXAMPLES["Sample"].frames()[1])[1][1])


def _neither(tree: Node) -> None:
    drop(tree, "body", "evaluate")


def _spec(what: str, path: str, value: Node, says: str, message: str = "Prepare for another rank") -> Row:
    return Row(f"Prepare: {what}", setting(message, path, value, says).frames, says)


LATENT = "is not batch, channels and at least one more size"
STRANGER = "no tensor of this message"
MISSING = "the tensor is missing"

SAMPLES = (
    _tensors("Sample", "no noise", {"noise": None}, f"noise: {MISSING}"),
    _tensors("Sample", "no sigmas", {"sigmas": None}, f"sigmas: {MISSING}"),
    _tensors("Sample", "noise of BF16", {"noise": ("BF16", [1, 4, 3, 5])}, "noise: BF16 where F32 is expected"),
    _tensors("Sample", "noise of two dimensions", {"noise": ("F32", [4, 3])}, f"noise: (4, 3) {LATENT}"),
    _tensors("Sample", "noise of no dimensions", {"noise": ("F32", [])}, f"noise: () {LATENT}"),
    _tensors("Sample", "noise of batch 0", {"noise": ("F32", [0, 4, 3, 5])}, f"noise: (0, 4, 3, 5) {LATENT}"),
    _tensors("Sample", "noise of width 0", {"noise": ("F32", [1, 4, 3, 0])}, f"noise: (1, 4, 3, 0) {LATENT}"),
    _tensors("Sample", "sigmas of F64", {"sigmas": ("F64", [5])}, "sigmas: F64 where F32 is expected"),
    _tensors("Sample", "no sigma in sigmas", {"sigmas": ("F32", [0])}, "sigmas: (0,) is not a row of 1 to 10001"),
    _tensors("Sample", "10,002 sigmas", {"sigmas": ("F32", [10_002])}, "sigmas: (10002,) is not a row of 1 to 10001"),
    _tensors("Sample", "sigmas in two rows", {"sigmas": ("F32", [2, 5])}, "sigmas: (2, 5) is not a row"),
    _tensors("Sample", "a single sigma without dimensions", {"sigmas": ("F32", [])}, "sigmas: () is not a row"),
    _tensors(
        "Sample", "latent of another width", {"latent": ("F32", [1, 4, 3, 6])}, "latent: (1, 4, 3, 6) is not the shape"
    ),
    _tensors("Sample", "latent of another batch", {"latent": ("F32", [2, 4, 3, 5])}, "is not the shape of the noise"),
    _tensors("Sample", "latent of another rank", {"latent": ("F32", [1, 4, 1, 3, 5])}, "is not the shape of the noise"),
    _tensors("Sample", "latent of F16", {"latent": ("F16", [1, 4, 3, 5])}, "latent: F16 where F32 is expected"),
    _tensors("Sample", "mask of another width", {"mask": ("F32", [1, 3, 4])}, "mask: (1, 3, 4) cannot be broadcast"),
    _tensors("Sample", "mask of batch 2", {"mask": ("F32", [2, 1, 3, 5])}, "mask: (2, 1, 3, 5) cannot be broadcast"),
    _tensors(
        "Sample", "mask of five dimensions", {"mask": ("F32", [1, 1, 1, 3, 5])}, "mask: (1, 1, 1, 3, 5) cannot be"
    ),
    _tensors("Sample", "mask of width 0", {"mask": ("F32", [3, 0])}, "mask: (3, 0) cannot be broadcast"),
    _tensors("Sample", "mask of BOOL", {"mask": ("BOOL", [3, 5])}, "mask: BOOL where F32 is expected"),
    _tensors(
        "Sample", "a branch that is not there", {"branch.2.context": ("F32", [1])}, f"branch.2.context: {STRANGER}"
    ),
    _tensors("Sample", "branch -1", {"branch.-1.context": ("F32", [1])}, f"branch.-1.context: {STRANGER}"),
    _tensors("Sample", "branch 00", {"branch.00.context": ("F32", [1])}, f"branch.00.context: {STRANGER}"),
    _tensors("Sample", "a branch's tensor without a name", {"branch.0.": ("F32", [1])}, f"branch.0.: {STRANGER}"),
    _tensors("Sample", "a branch without a dot", {"branch.0": ("F32", [1])}, f"branch.0: {STRANGER}"),
    _tensors("Sample", "a stray context", {"context": ("F32", [1])}, f"context: {STRANGER}"),
    _tensors("Sample", "NOISE in capitals", {"NOISE": ("F32", [1])}, f"NOISE: {STRANGER}"),
    _branches("no branches", 1.0, [], "no positive branch"),
    _branches("only a negative branch", 4.0, ["negative"], "no positive branch"),
    _branches("cfg 4 without a negative branch", 4.0, ["positive"], "a negative branch goes with a cfg other than 1"),
    _branches("cfg 1 with a negative branch", 1.0, ["positive", "negative"], "a negative branch goes with a cfg other"),
    _branches("cfg 0 without a negative branch", 0.0, ["positive"], "a negative branch goes with a cfg other than 1"),
)
TURNS = (
    setting("Evaluate", "body.calls", [], "no calls"),
    _tensors("Evaluate", "a call without x", {"call.1.x": None}, f"call.1.x: {MISSING}"),
    _tensors("Evaluate", "a call without timestep", {"call.0.timestep": None}, f"call.0.timestep: {MISSING}"),
    _tensors("Evaluate", "a third call's x", {"call.2.x": ("F32", [1, 1, 1])}, f"call.2.x: {STRANGER}"),
    _tensors("Evaluate", "call.0.y", {"call.0.y": ("F32", [1])}, f"call.0.y: {STRANGER}"),
    _tensors(
        "Evaluate", "x of integers", {"call.0.x": ("I32", [2, 4, 3, 5])}, "call.0.x: I32 where BF16 or F16 or F32"
    ),
    _tensors("Evaluate", "x of FP8", {"call.0.x": ("F8_E4M3", [2, 4, 3, 5])}, "call.0.x: F8_E4M3 where"),
    _tensors("Evaluate", "x of two dimensions", {"call.0.x": ("F32", [2, 4])}, f"call.0.x: (2, 4) {LATENT}"),
    _tensors("Evaluate", "x of batch 0", {"call.0.x": ("F32", [0, 4, 3, 5])}, f"call.0.x: (0, 4, 3, 5) {LATENT}"),
    _tensors(
        "Evaluate", "a timestep for another batch", {"call.0.timestep": ("F32", [3])}, "for each of the batch of 2"
    ),
    _tensors(
        "Evaluate", "a timestep without dimensions", {"call.1.timestep": ("F32", [])}, "for each of the batch of 1"
    ),
    _tensors("Evaluate", "a timestep of BF16", {"call.1.timestep": ("BF16", [1])}, "call.1.timestep: BF16 where F32"),
    _tensors("Evaluated", "no tensors", {"call.0.out": None, "call.1.out": None}, f"call.0.out: {MISSING}"),
    _tensors("Evaluated", "a gap", {"call.1.out": None, "call.2.out": ("F32", [1, 1, 1])}, f"call.1.out: {MISSING}"),
    _tensors("Evaluated", "integers", {"call.0.out": ("I8", [1, 1, 1])}, "call.0.out: I8 where"),
    _tensors("Evaluated", "x beside out", {"call.1.x": ("F32", [1, 1, 1])}, f"call.2.out: {MISSING}"),
    _tensors(
        "Evaluated", "nine calls", {f"call.{i}.out": ("F32", [1, 1, 1]) for i in range(9)}, f"call.8.out: {STRANGER}"
    ),
    _tensors("Upload", "no tensors", {"context": None, "ids": None, "odd": None}, "an Upload without tensors"),
)
ANSWERS = (
    _tensors("Preview", "no x0", {"x0": None}, f"x0: {MISSING}"),
    _tensors("Preview", "x0 of F32", {"x0": ("F32", [1, 4, 3, 5])}, "x0: F32 where BF16 is expected"),
    _tensors("Preview", "x0 of one dimension", {"x0": ("BF16", [60])}, f"x0: (60,) {LATENT}"),
    _tensors("Preview", "a latent beside x0", {"latent": ("BF16", [1, 4, 3, 5])}, f"latent: {STRANGER}"),
    _tensors("Result", "no x0", {"x0": None}, f"x0: {MISSING}"),
    _tensors("Result", "no latent", {"latent": None}, f"latent: {MISSING}"),
    _tensors(
        "Result",
        "x0 of another shape",
        {"x0": ("F32", [1, 4, 5, 3])},
        "x0: (1, 4, 5, 3) is not the shape of the latent",
    ),
    _tensors("Result", "a latent of BF16", {"latent": ("BF16", [1, 4, 3, 5])}, "latent: BF16 where F32 is expected"),
    _tensors("Ping", "a tensor", {"x": ("U8", [1])}, f"x: {STRANGER}"),
    _tensors("Hello", "an empty tensor", {"x": ("U8", [0])}, f"x: {STRANGER}"),
    _tensors("Failed", "a tensor", {"x": ("U8", [1])}, f"x: {STRANGER}"),
    _tensors("Repeat", "half a call", {"call.0.timestep": None}, "the tensor is missing"),
    _tensors("Repeat", "a timestep of another batch", {"call.0.timestep": ("F32", [7])}, "not one number for each"),
    _tensors("Repeat", "conditioning", {"upload.x": ("F32", [1])}, f"upload.x: {STRANGER}"),
    _tensors("Go", "a tensor", {"noise": ("F32", [1, 1, 1])}, f"noise: {STRANGER}"),
    _tensors("RankHello", "a tensor", {"x": ("U8", [1])}, f"x: {STRANGER}"),
    setting("Failed", "body.job_id", CLIENT, "both request and job_id are there"),
    setting("RankHello", "body.rank", 2, "rank 2 in a group of 2"),
    setting("RankHello", "body.rank", 2**63 - 1, "rank 9223372036854775807 in a group of 2"),
    _described_without_manifest(),
    _with_manifest("Ping"),
    _with_manifest("Sample"),
    _with_manifest("Upload"),
)
PREPARES = (
    editing("Prepare", "both sample and evaluate", _both, "exactly one of sample and evaluate"),
    editing("Prepare", "neither sample nor evaluate", _neither, "exactly one of sample and evaluate"),
    _tensors("Prepare", "a tensor not in the specs", {"call.2.x": ("F32", [1, 1, 1])}, "not as the specs describe it"),
    _tensors(
        "Prepare", "a tensor of another shape", {"call.0.x": ("BF16", [1, 8, 3, 5])}, "not as the specs describe it"
    ),
    _tensors(
        "Prepare", "a tensor of another dtype", {"call.0.x": ("F16", [2, 4, 3, 5])}, "not as the specs describe it"
    ),
    _spec("specs with a name twice", "body.specs.0.name", "sigmas", "two tensors have the same name"),
    _spec("specs without noise", "body.specs.0.name", "noises", f"noise: {MISSING}"),
    _spec("specs with a wrong dtype", "body.specs.1.dtype", "I32", "sigmas: I32 where F32 is expected"),
    _spec("specs with a wrong shape", "body.specs.2.shape", [1, 4, 3, 6], "latent: (1, 4, 3, 6) is not the shape"),
    _spec(
        "specs of 257 MiB", "body.specs.4.shape", [257 << 20], "branch.0.context: 538968064 bytes, at most 268435456"
    ),
    _spec("uploads beside a sample", "body.specs.4.name", f"upload.{DIGEST}.context", STRANGER),
    _spec("a negative size", "body.specs.1.shape", [-5], "Prepare.specs[1].shape[0]: -5 is not within"),
)

SEMANTICS = (*SAMPLES, *TURNS, *ANSWERS, *PREPARES)
