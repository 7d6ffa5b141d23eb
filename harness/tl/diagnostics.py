"""Owns what a finding is and the list of all codes; the words for a place are given by who finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from harness.tl.syntax import Pos


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a program: what, where, and what to do about it."""

    code: str
    severity: Severity
    pos: Pos
    message: str
    fix: str = ""

    @property
    def is_error(self) -> bool:
        return self.severity is Severity.ERROR


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for; `fix` serves where the place gives none of its own."""

    code: str
    title: str
    severity: Severity
    fix: str


class TLError(ValueError):
    """A program that cannot be used; holds the findings that say why."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        first = next((f for f in self.findings if f.is_error), None) or next(iter(self.findings), None)
        if first is None:
            text = "the program cannot be used"
        else:
            fix = f" ({first.fix})" if first.fix else ""
            text = f"line {first.pos.line}, column {first.pos.column}: {first.code}: {first.message}{fix}"
        more = sum(f.is_error for f in self.findings) - 1
        super().__init__(text + (f"; and {more} more" if more > 0 else ""))


def finding(code: str, pos: Pos, message: str, fix: str = "", severity: Severity | None = None) -> Finding:
    """A finding with the severity and the fix that its code has by default."""
    known = CODES[code]
    return Finding(code, severity or known.severity, pos, message, fix or known.fix)


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

CODES: dict[str, Code] = {
    c.code: c
    for c in (
        Code("TL001", "syntax error", _E, "every line is one statement; see the table of statements"),
        Code("TL002", "block left open", _E, "close every `for` and `if` with `end`"),
        Code("TL003", "stray end", _E, "remove it, or open the block that it should close"),
        Code("TL004", "alias resolved", _N, ""),
        Code("TL005", "inferred", _N, ""),
        Code("TL006", "unknown operation", _E, "use an operation of the table"),
        Code("TL007", "operands do not fit the operation", _E, "see what the operation takes"),
        Code("TL101", "used before it is made", _E, "allocate, copy or compute it first"),
        Code("TL102", "never stored", _E, "copy the result from register to global"),
        Code("TL103", "unused", _W, "remove it, or use it"),
        Code("TL104", "name taken", _E, "choose another name"),
        Code("TL105", "unknown symbol", _E, "use a size of the task, a tile parameter, or a Let"),
        Code("TL106", "no such tensor", _E, "name a tensor of the task, or declare a workspace"),
        Code("TL107", "holds nothing yet", _E, "give it a value before it is read"),
        Code("TL201", "GEMM shapes", _E, "the columns of the first operand meet the rows of the second"),
        Code("TL202", "shapes do not broadcast", _E, "operands have equal sizes, or 1"),
        Code("TL203", "coordinate", _E, "say which block the tile covers: in coordinate [L = ...]"),
        Code(
            "TL204", "transposed operand", _W, "go through shared memory, or change the order of the product"
        ),
        Code("TL205", "result does not fit its tile", _E, "allocate the tile with the shape of the result"),
        Code("TL206", "fits some shapes only", _W, "write the size by its name"),
        Code("TL207", "position not known", _E, "use positions on tiles that come from one place"),
        Code(
            "TL208", "not the task's tensor", _E, "give the shape and the offset that the task's tensor has"
        ),
        Code("TL209", "contraction over different places", _E, "load both operands at the same coordinate"),
        Code("TL301", "global tensor in Compute", _E, "copy a tile of it to shared or register first"),
        Code("TL302", "global tensor never allocated", _E, "Allocate it in global"),
        Code("TL303", "accumulator outside registers", _E, "allocate the accumulator in register"),
        Code("TL304", "accumulator allocated in its loop", _E, "allocate it before the loop"),
        Code("TL305", "not at that level", _E, "copy from the level where the tile is"),
        Code(
            "TL401",
            "GEMM feeds GEMM without Reshape",
            _E,
            "Reshape it from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) between the two",
        ),
        Code("TL402", "Reshape without need", _W, "only a GEMM's result needs it, before it enters a GEMM"),
        Code(
            "TL403",
            "Reshape to the wrong layout",
            _E,
            "from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)",
        ),
        Code(
            "TL501",
            "accumulator not rescaled",
            _E,
            "add `and rescale X` to the Softmax, or multiply by alpha",
        ),
        Code(
            "TL502",
            "state not initialised",
            _E,
            "the maximum starts at -inf, the sum and the accumulator at 0",
        ),
        Code("TL503", "never normalised", _E, "divide the accumulator by the sum after the loop"),
        Code("TL504", "normalised twice", _E, "divide by the sum once, after the loop"),
        Code("TL505", "mask after softmax", _E, "mask the scores before the softmax"),
        Code("TL506", "scale applied twice", _E, "multiply the scores by scale once"),
        Code("TL507", "scale never applied", _E, "multiply the scores by scale before the softmax"),
        Code("TL508", "softmax of a softmax", _E, "let the scores pass one softmax"),
        Code("TL509", "no softmax", _E, "Compute Softmax of the scores before the product with the values"),
        Code("TL601", "allowed keys skipped", _E, "widen the loop bounds or the mask"),
        Code("TL602", "forbidden keys seen", _E, "mask the scores before the softmax"),
        Code("TL603", "keys counted twice", _E, "let each key tile come once"),
        Code(
            "TL604", "output not stored once", _E, "let the blocks of the grid cover every row exactly once"
        ),
        Code("TL605", "tail without a pad", _E, "pad with 0 what lies past the end"),
        Code(
            "TL701",
            "shared memory",
            _E,
            "smaller tiles, fewer stages, or one tile after the other in one place",
        ),
        Code("TL702", "registers", _W, "smaller tiles, or more warps"),
        Code(
            "TL703",
            "not a multiple of the instruction's shape",
            _E,
            "take tile sizes that the instruction divides",
        ),
        Code("TL704", "no choice fits", _E, "widen the sets of the tile parameters"),
        Code("TL705", "channels do not fit", _E, "fewer stages, smaller tiles, or fewer consumers"),
        Code("TL706", "registers of a role", _W, "smaller tiles, fewer consumers, or leave `registers` out"),
        Code("TL707", "shape of a warpgroup's product", _E, "take sizes that wgmma m64nNk16 takes"),
        Code("TL708", "what a schedule takes", _N, ""),
        Code("TL801", "dtype not supported", _E, "choose a dtype that the target computes"),
        Code("TL802", "accumulating below f32", _E, "accumulate in f32"),
        Code("TL803", "missing cast", _W, "Cast it to the type the GEMM takes, or leave the type open"),
        Code("TL901", "feature the target lacks", _E, "leave it out for this target"),
        Code("TL902", "stages do not fit", _E, "fewer stages"),
        Code(
            "TL903", "cyclic wait", _E, "let each channel have one writer that does not wait for its reader"
        ),
        Code("TL904", "unknown schedule key", _W, "see the table of schedule keys"),
        Code(
            "TL905",
            "roles wait forever",
            _E,
            "copy in the order in which consumers read, or give the channel more stages",
        ),
        Code(
            "TL906",
            "overwritten before it is read",
            _E,
            "let one role write the place, and only after every reader has released it",
        ),
        Code("TL907", "keys without effect", _W, "leave the key out"),
        Code("TL908", "rows of the consumers", _E, "let the rows of the tile be 64 for each consumer"),
    )
}
