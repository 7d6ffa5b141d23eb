"""Owns the verdict on a program: everything that is wrong with it, from syntax to schedule, in one report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from harness.targets import Target
from harness.tl import ir, syntax
from harness.tl.checks.capacity import check_capacity, check_instruction
from harness.tl.checks.channels import check_channels
from harness.tl.checks.coverage import check_coverage
from harness.tl.checks.effects import check_effects
from harness.tl.checks.extents import check_extents
from harness.tl.checks.formula import check_formula
from harness.tl.checks.roles import check_roles
from harness.tl.checks.schedule import check_schedule, check_stages
from harness.tl.checks.sizes import check_sizes
from harness.tl.checks.softmax import check_softmax
from harness.tl.checks.types import check_types
from harness.tl.checks.usage import check_usage
from harness.tl.diagnostics import Finding, finding
from harness.tl.parse import parse_leniently
from harness.tl.problem import TaskLike
from harness.tl.resolve import resolve_leniently
from harness.tl.schedule import asks_for_roles

# What is missing: it may stand in a line that could not be read, or that a sketch does not need.
_MISSING = frozenset({"TL501", "TL502", "TL503", "TL507"})
_MISSING_IN_SKETCH = frozenset({"TL502", "TL503", "TL507"})


@dataclass(frozen=True)
class Report:
    """All findings, in the order of the text; `program` is the resolved form where no error stands."""

    findings: tuple[Finding, ...]
    program: ir.Program | None

    @property
    def ok(self) -> bool:
        """Whether there is no error (notes and warnings are none)."""
        return not any(f.is_error for f in self.findings)


def check(
    text_or_program: str | syntax.Program,
    task: TaskLike,
    *,
    level: Literal["sketch", "code"] = "code",
    target: Target | None = None,
    dtype: str = "fp16",
) -> Report:
    """Everything there is to say about a program for this task; raises nothing, whatever the text.

    Capacity, types and the features of a target are checked where there is a `target`; `dtype` is that
    of the operands. A sketch is checked for its order and its data flow only.
    """
    try:
        return _check(text_or_program, task, level == "sketch", target, dtype)
    except RecursionError:
        return Report(
            (finding("TL001", syntax.Pos(1, 1), "expressions or loops are nested too deeply"),), None
        )


def _check(
    text_or_program: str | syntax.Program, task: TaskLike, sketch: bool, target: Target | None, dtype: str
) -> Report:
    if isinstance(text_or_program, str):
        tree, unread = parse_leniently(text_or_program)
    else:
        tree, unread = text_or_program, ()
    resolution = resolve_leniently(tree, task, sketch=sketch)
    partial, program = resolution.partial, resolution.program
    found = [*unread, *resolution.findings]
    found += [f for f in check_softmax(partial) if f.code not in _unsaid(sketch, bool(unread))]
    found += check_schedule(partial, tree, target)
    if not sketch:
        found += check_types(partial, target, dtype)
    if program is not None and not unread:
        found += check_coverage(program, task)
        found += check_extents(program, task)
        found += check_sizes(program, task)
        found += check_usage(program, task)
        if not any(f.code.startswith("TL50") for f in found):
            found += check_formula(program, task)
        found += check_effects(program, task, tree)
        if target is not None and _with_roles(program, target):
            sound = not any(f.code in ("TL903", "TL904", "TL908") for f in found)
            found += check_instruction(program, task, target)
            found += check_roles(program, task, tree, target, dtype) if sound else []
            found += check_channels(program, task, tree) if sound else []
        elif target is not None:
            found += check_capacity(program, task, target, dtype=dtype)
            found += check_stages(program, task, tree, target, dtype)
    complete = not any(f.is_error for f in found)
    errors = {(f.code, f.pos) for f in found if f.is_error}
    found = [f for f in found if f.is_error or (f.code, f.pos) not in errors]  # the graver word suffices
    findings = tuple(sorted(dict.fromkeys(found), key=lambda f: (f.pos.line, f.pos.column, f.code)))
    if program is None or not complete:
        return Report(findings, None)
    text = text_or_program if isinstance(text_or_program, str) else ""
    return Report(findings, replace(program, text=text))


def _with_roles(program: ir.Program, target: Target) -> bool:
    return asks_for_roles(program) and target.is_gpu and (target.capability or (0, 0)) >= (9, 0)


def _unsaid(sketch: bool, unread: bool) -> frozenset[str]:
    return _MISSING if unread else _MISSING_IN_SKETCH if sketch else frozenset()
