"""Fields of another type, out of their bounds, missing, unknown, or there twice."""

from __future__ import annotations

from ..raw import Node, Pairs, Raw, get
from .row import Row, dropping, editing, repeating, setting

INTEGER = "expected an integer, got "
NUMBER = "expected a number, got "
TEXT = "expected a string, got "
TRUTH = "expected true or false, got "
UNREADABLE = "not readable"
TWICE = "the field is there twice"


def _name(message: str, name: Node, says: str) -> Row:
    """A row that adds a field with a strange name."""

    def edit(tree: Node) -> None:
        get(tree, "body").append((name, 1))

    return editing(message, f"a field named {str(name)[:40]!r}", edit, says)


def _options(name: str, pairs: Pairs, says: str) -> Row:
    row = setting("Sample", "body.branches.0.options", pairs, says)
    return Row(f"options: {name}", row.frames, says)


WHOLE_NUMBERS = (
    setting("Ping", "body.nonce", -1, "Ping.nonce: -1 is not within 0 to 9223372036854775807"),
    setting("Ping", "body.nonce", -(2**63), "Ping.nonce: -9223372036854775808 is not within"),
    setting("Ping", "body.nonce", 2**63, "Ping.nonce: 9223372036854775808 is not within"),
    setting("Ping", "body.nonce", 2**64 - 1, "Ping.nonce: 18446744073709551615 is not within"),
    setting("Ping", "body.nonce", True, "Ping.nonce: " + INTEGER + "bool"),
    setting("Ping", "body.nonce", False, "Ping.nonce: " + INTEGER + "bool"),
    setting("Ping", "body.nonce", 1.0, "Ping.nonce: " + INTEGER + "float"),
    setting("Ping", "body.nonce", float("nan"), "Ping.nonce: " + INTEGER + "float"),
    setting("Ping", "body.nonce", "1", "Ping.nonce: " + INTEGER + "str"),
    setting("Ping", "body.nonce", None, "Ping.nonce: " + INTEGER + "NoneType"),
    setting("Progress", "body.step", float("nan"), "Progress.step: " + INTEGER + "float"),
    setting("Progress", "body.steps", float("inf"), "Progress.steps: " + INTEGER + "float"),
    setting("Progress", "body.step", -1, "Progress.step: -1 is not within"),
    setting("Accepted", "body.ahead", -1, "Accepted.ahead: -1 is not within"),
    setting("Go", "body.sequence", 0, "Go.sequence: 0 is not within 1 to"),
    setting("Repeat", "body.sequence", 0, "Repeat.sequence: 0 is not within 1 to"),
    setting("Repeat", "body.turn", -1, "Repeat.turn: -1 is not within 0 to"),
    setting("Done", "body.memory_bytes", -1, "Done.memory_bytes: -1 is not within"),
    setting("RankHello", "body.world_size", 0, "RankHello.world_size: 0 is not within 1 to"),
    setting("RankHello", "body.pid", 0, "RankHello.pid: 0 is not within 1 to"),
    setting("Evaluate", "body.turn", -1, "Evaluate.turn: -1 is not within"),
    setting("Status", "body.ranks.1.memory_bytes", 2**63, "Status.ranks[1].memory_bytes: 9223372036854775808"),
    setting("Failed", "body.request", -1, "Failed.request: -1 is not within"),
    setting("Failed", "body.request", None, "Failed.request: " + INTEGER + "NoneType"),
)
NUMBERS = (
    setting("Sample", "body.cfg", float("nan"), "Sample.cfg: nan is not within"),
    setting("Sample", "body.cfg", float("inf"), "Sample.cfg: inf is not within"),
    setting("Sample", "body.cfg", float("-inf"), "Sample.cfg: -inf is not within"),
    setting("Sample", "body.cfg", "1.0", "Sample.cfg: " + NUMBER + "str"),
    setting("Sample", "body.cfg", True, "Sample.cfg: " + NUMBER + "bool"),
    setting("Sample", "body.cfg", 2**64 - 1, "Sample.cfg: " + NUMBER + "int"),
    setting("Sample", "body.cfg", Raw(b"\xca\x7f\xc0\x00\x00"), "Sample.cfg: nan is not within"),
    setting("Sample", "body.timestep_multiplier", 0, "Sample.timestep_multiplier: 0.0 is not within 1e-06"),
    setting("Sample", "body.timestep_multiplier", 1e7, "Sample.timestep_multiplier: 10000000.0 is not within"),
    setting("Welcome", "body.lease_s", 0.0, "Welcome.lease_s: 0.0 is not within 0.1 to 3600"),
    setting("Welcome", "body.lease_s", 1e300, "Welcome.lease_s: 1e+300 is not within"),
    setting("Result", "body.step_ms", -0.5, "Result.step_ms: -0.5 is not within"),
    setting("Status", "body.uptime_s", float("nan"), "Status.uptime_s: nan is not within"),
)
TEXTS = (
    setting("Cancel", "body.job_id", "", "Cancel.job_id: '' does not match"),
    setting("Cancel", "body.job_id", "a" * 31, "does not match"),
    setting("Cancel", "body.job_id", "a" * 33, "Cancel.job_id: 33 characters, at most 32"),
    setting("Cancel", "body.job_id", "A" * 32, "does not match"),
    setting("Cancel", "body.job_id", "g" * 32, "does not match"),
    setting("Cancel", "body.job_id", "a" * 31 + "\n", "does not match"),
    setting("Cancel", "body.job_id", "\uff11" * 32, "does not match"),  # full-width digits
    setting("Cancel", "body.job_id", b"a" * 32, "Cancel.job_id: " + UNREADABLE),
    setting("Cancel", "body.job_id", 0, "Cancel.job_id: " + TEXT + "int"),
    setting("Cancel", "body.job_id", None, "Cancel.job_id: " + TEXT + "NoneType"),
    setting("Hello", "body.client_id", "../../../etc/passwd", "Hello.client_id: '../../../etc/passwd' does not match"),
    setting("Hello", "body.software", "x" * 4_097, "Hello.software: 4097 characters, at most 4096"),
    setting("Hello", "body.software", "\U0001f3a8" * 16_000, "Hello.software: 16000 characters, at most 4096"),
    setting("Hello", "body.software", Raw(b"\xa3\xed\xa0\x80"), "Hello.software: not readable"),  # a surrogate
    setting("Hello", "body.software", Raw(b"\xa6\xed\xa0\xbd\xed\xb8\x80"), "Hello.software: not readable"),  # CESU-8
    setting("Hello", "body.software", Raw(b"\xa1\xff"), "Hello.software: not readable"),
    setting("Hello", "body.software", Raw(b"\xa1\x80"), "Hello.software: not readable"),  # a lone continuation
    setting("Hello", "body.software", Raw(b"\xa2\xc0\x80"), "Hello.software: not readable"),  # NUL, overlong
    setting("Hello", "body.software", Raw(b"\xa2\xe6\xbc"), "Hello.software: not readable"),  # a character cut short
    setting("Hello", "body.software", Raw(b"\xa4\xf4\x90\x80\x80"), "Hello.software: not readable"),  # beyond U+10FFFF
    setting("Describe", "body.model", "m" * 513, "Describe.model: 513 characters, at most 512"),
    setting("Sample", "body.node_id", 12, "Sample.node_id: " + TEXT + "int"),
    setting("Sample", "body.on.family", "", "Sample.on.family: '' does not match"),
    setting("Sample", "body.on.family", "flux; rm -rf", "Sample.on.family: 'flux; rm -rf' does not match"),
    setting("Sample", "body.on.family", "f" * 65, "Sample.on.family: 65 characters"),
    setting("Sample", "body.on.plan", "ulysses = 2", "Sample.on.plan: 'ulysses = 2' does not match"),
    setting("Failed", "body.code", "Unknown Model", "Failed.code: 'Unknown Model' does not match"),
    setting("Failed", "body.message", "x" * 4_097, "Failed.message: 4097 characters"),
    setting("RankHello", "body.token", "5A" * 32, "RankHello.token: the value does not match"),
    setting("RankHello", "body.token", "5a" * 31, "RankHello.token: the value does not match"),
    setting("Prepare", "body.forget.1", "x" * 32, "Prepare.forget[1]: 'xxxx"),
    setting("Prepare", "body.path", "x" * 4_097, "Prepare.path: 4097 characters"),
)
WORDS = (
    setting("Sample", "body.sampler", "eval", "Sample.sampler: expected one of dpmpp_2m, euler, heun, got 'eval'"),
    setting("Sample", "body.sampler", "", "got ''"),
    setting("Sample", "body.sampler", "Euler", "got 'Euler'"),
    setting("Sample", "body.sampler", 0, "got 0"),
    setting("Sample", "body.sampler", [], "Sample.sampler: " + UNREADABLE),
    setting("Sample", "body.on.dtype", "F64", "Sample.on.dtype: expected one of BF16, F16, F32, got 'F64'"),
    setting("Sample", "body.on.dtype", "bfloat16", "got 'bfloat16'"),
    setting("Sample", "body.branches.0.kind", "neutral", "Sample.branches[0].kind: expected one of negative, positive"),
    setting("Pong", "body.state", "on fire", "Pong.state: expected one of"),
    setting("Pong", "body.state", "x" * 60_000, "got 'xxxx"),
    setting("Accepted", "body.state", "failed", "Accepted.state: expected one of"),
    setting("Progress", "body.phase", None, "Progress.phase: expected one of"),
    setting("Sample", "body.previews", 1, "Sample.previews: " + TRUTH + "int"),
    setting("Sample", "body.previews", "true", "Sample.previews: " + TRUTH + "str"),
    setting("Sample", "body.keep_if_client_gone", None, "Sample.keep_if_client_gone: " + TRUTH + "NoneType"),
)
ARRAYS = (
    setting("Sample", "body.branches", None, "Sample.branches: " + UNREADABLE),
    setting("Sample", "body.branches", Pairs(), "Sample.branches: " + UNREADABLE),
    setting("Sample", "body.branches", [None], "Sample.branches[0]: " + UNREADABLE),
    setting("Sample", "body.branches", [Pairs()] * 9, "Sample.branches: 9 elements, at most 8"),
    setting("Sample", "body.branches", Raw(b"\xdd\xff\xff\xff\xff"), "4294967295 elements, at most 8"),
    setting("Evaluate", "body.calls", [Pairs()] * 9, "Evaluate.calls: 9 elements, at most 8"),
    setting("Evaluate", "body.calls.1", [], "Evaluate.calls[1]: " + UNREADABLE),
    setting("Done", "body.resident", ["m"] * 65, "Done.resident: 65 elements, at most 64"),
    setting("Done", "body.resident", "flux", "Done.resident: " + UNREADABLE),
    setting("Done", "body.resident", [1], "Done.resident[0]: " + TEXT + "int"),
    setting("Status", "body.jobs", [Pairs()] * 65, "Status.jobs: 65 elements, at most 64"),
    setting("Status", "body.ranks", [None], "Status.ranks[0]: " + UNREADABLE),
    setting("Prepare", "body.forget", [""] * 1_025, "Prepare.forget: 1025 elements, at most 1024"),
    setting("Prepare", "body.specs", [Pairs()] * 65, "Prepare.specs: 65 elements, at most 64"),
)
PRESENCE = (
    dropping("Ping", "body.nonce", "Ping.nonce: missing"),
    dropping("Sample", "body.on", "Sample.on: missing"),
    dropping("Sample", "body.on.dtype", "Sample.on.dtype: missing"),
    dropping("Sample", "body.branches.1.kind", "Sample.branches[1].kind: missing"),
    dropping("Evaluate", "body.calls.0.conditioning", "Evaluate.calls[0].conditioning: missing"),
    dropping("RankHello", "body.token", "RankHello.token: missing"),
    repeating("Ping", "body.nonce", "Ping.nonce: " + TWICE),
    repeating("Sample", "body.job_id", "Sample.job_id: " + TWICE),
    repeating("Sample", "body.on.model", "Sample.on.model: " + TWICE),
    repeating("Sample", "body.branches.0.kind", "Sample.branches[0].kind: " + TWICE),
    repeating("Prepare", "body.specs.0.dtype", "Prepare.specs[0].dtype: " + TWICE),
    setting("Ping", "body.extra", 1, "Ping.extra: unknown field"),
    setting("Ping", "body.__class__", "os.system", "Ping.__class__: unknown field"),
    setting("Sample", "body.seed", 42, "Sample.seed: unknown field"),
    setting("Sample", "body.on.path", "/etc/passwd", "Sample.on.path: unknown field"),
    setting("Sample", "body.branches.0.weight", 1.0, "Sample.branches[0].weight: unknown field"),
    setting("Prepare", "body.specs.0.data", "x", "Prepare.specs[0].data: unknown field"),
    setting("Sample", "body.on", None, "Sample.on: " + UNREADABLE),
    setting("Sample", "body.on", "flux", "Sample.on: " + UNREADABLE),
    setting("Prepare", "body.evaluate", None, "Prepare.evaluate: " + UNREADABLE),
    setting("Ping", "body", Pairs((str(i), i) for i in range(65)), "Ping: a map of 65, at most 64"),
    _name("Ping", 1, "what follows is not the name of a field"),
    _name("Ping", None, "what follows is not the name of a field"),
    _name("Ping", b"nonce", "not readable"),
    _name("Ping", [], "not readable"),
    _name("Ping", "", "unknown field"),
    _name("Ping", "x" * 60_000, "Ping.xxxx"),
    _name("Ping", "a\r\nTraceback", "Ping.'a\\r\\nTraceback': unknown field"),
    _name("Ping", "\u202enonce", "unknown field"),
)
OPTIONS = (
    _options("a list", Pairs([("a", [])]), "Sample.branches[0].options: not readable"),
    _options("a map", Pairs([("a", Pairs())]), "Sample.branches[0].options: not readable"),
    _options("nil", Pairs([("a", None)]), "options.a: expected text, a number or a truth value, got NoneType"),
    _options("binary", Pairs([("a", b"x")]), "Sample.branches[0].options: not readable"),
    _options("NaN", Pairs([("a", float("nan"))]), "options.a: nan is not within"),
    _options("infinity", Pairs([("a", float("inf"))]), "options.a: inf is not within"),
    _options("65 bits", Pairs([("a", 2**63)]), "options.a: 9223372036854775808 is not within"),
    _options("long text", Pairs([("a", "x" * 4_097)]), "options.a: 4097 characters, at most 4096"),
    _options("a surrogate", Pairs([("a", Raw(b"\xa3\xed\xa0\x80"))]), "Sample.branches[0].options: not readable"),
    _options("a name twice", Pairs([("a", 1), ("a", 2)]), "options.a: the option is there twice"),
    _options("a name that is empty", Pairs([("", 1)]), "the name of an option is 1 to 64 characters, got ''"),
    _options("a name of 65 characters", Pairs([("n" * 65, 1)]), "the name of an option is 1 to 64 characters"),
    _options("a name that is a number", Pairs([(1, 1)]), "the name of an option is 1 to 64 characters, got 1"),
    _options("a name that is an array", Pairs([([], 1)]), "Sample.branches[0].options: not readable"),
    _options("65 of them", Pairs((str(i), i) for i in range(65)), "a map of 65, at most 64"),
    setting("Sample", "body.branches.0.options", [], "Sample.branches[0].options: " + UNREADABLE),
    setting("Sample", "body.branches.0.options", None, "Sample.branches[0].options: " + UNREADABLE),
    setting("Described", "body.metadata.format", None, "Described.metadata.format: expected text"),
    setting("Evaluate", "body.calls.0.options", Pairs([("a", [])]), "Evaluate.calls[0].options: not readable"),
)

FIELDS = (*WHOLE_NUMBERS, *NUMBERS, *TEXTS, *WORDS, *ARRAYS, *PRESENCE, *OPTIONS)
