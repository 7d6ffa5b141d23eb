"""Owns TL907 and TL908: keys of a schedule without effect, and rows of consumers that make no tile."""

from __future__ import annotations

from collections.abc import Iterable

from harness.tl import ir, syntax
from harness.tl.checks.capacity import choices, shapes
from harness.tl.checks.schedule import Given, Value, keys_of
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.evaluate import evaluate
from harness.tl.lower.facts import ahead, grows
from harness.tl.lower.gluon_view import loops_of
from harness.tl.problem import TaskLike
from harness.tl.roles import row_extent
from harness.tl.schedule import ROWS, asks_for_roles
from harness.tl.syntax import Pos

_OFF = ("false", "off", 0)
_CONSUMERS = 2  # where a schedule with roles does not say


def check_effects(program: ir.Program, task: TaskLike, tree: syntax.Program) -> list[Finding]:
    """What the keys ask for in vain, whatever the target; with roles, whether consumers make up the tile."""
    given = keys_of(tree)
    found = _in_vain(program, given)
    if asks_for_roles(program):
        found += _rows(program, task, given)
    return found


def _in_vain(program: ir.Program, given: Given) -> list[Finding]:
    found = []
    consumers = given.get("consumers", (None, (_CONSUMERS,)))[1]
    if _always(given, "pingpong") and all(v == 1 for v in consumers):
        text = "`pingpong` lets consumers take turns, and there is one consumer"
        found.append(finding("TL907", given["pingpong"][0], text, "leave `pingpong` out, or 2 consumers"))
    loops = [n for k in program.kernels for n in ir.nodes(k.body) if isinstance(n, ir.For)]
    loops += loops_of(program)
    if _always(given, "overlap") and not any(ahead(loop) is not None for loop in loops):
        text = "`overlap` issues products a round ahead, and every product needs what its own round computes"
        found.append(finding("TL907", given["overlap"][0], text, "leave `overlap` out"))
    if given.get("order", (None, ()))[1] == ("longest_first",) and not any(
        grows(kernel, axis.name) for kernel in program.kernels for axis in kernel.grid if axis.role == "rows"
    ):
        text = "`order longest_first` starts the longest loops first, and all loops are of one length"
        found.append(finding("TL907", given["order"][0], text, "leave `order` out"))
    return found


def _always(given: Given, key: str) -> bool:
    """Whether the key is on in every schedule of the set."""
    values: tuple[Value, ...] = given.get(key, (None, ()))[1]
    return bool(values) and all(v not in _OFF for v in values)


def _rows(program: ir.Program, task: TaskLike, given: Given) -> list[Finding]:
    pos = next((given[k][0] for k in ("consumers", "producer", "pingpong") if k in given), Pos(1, 1))
    wanted = [v for v in given.get("consumers", (pos, (_CONSUMERS,)))[1] if isinstance(v, int) and v > 0]
    rows: set[int] = set()
    try:
        for kernel in program.kernels:
            extent = row_extent(kernel)
            if extent is not None:
                rows |= {int(evaluate(extent, {**s, **c})) for s in shapes(program, task)
                         for c in choices(program, ())}  # fmt: skip
    except (KeyError, ArithmeticError, ValueError, TypeError):
        return []
    if not rows or not wanted:
        return []
    wrong = [n for n in wanted if ROWS * n not in rows]
    if not wrong:
        return []
    severity = Severity.ERROR if len(wrong) == len(wanted) else Severity.NOTE
    computes = "consumer computes" if wrong == [1] else "consumers compute"
    text = (
        f"{_listed(wrong)} {computes} {_listed(ROWS * n for n in wrong)} rows, {ROWS} each; "
        f"the tile has {_listed(sorted(rows))}"
    )
    return [finding("TL908", pos, text, severity=severity)]


def _listed(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, numbers))
