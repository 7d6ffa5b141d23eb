"""Owns examining an LLM-TL program: the checker's findings, then the interpreter against the oracle.

Everything here is told to a model, so it is the same on every machine: seeds are given, figures have
two digits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.targets import Target
from harness.tl import ir
from harness.tl.check import check
from harness.tl.diagnostics import Finding, Severity
from harness.tl.evaluate import evaluate
from harness.tl.interpret import InterpretError, interpret
from harness.tl.problem import scalars
from harness.verify.inputs import make_inputs
from harness.verify.tolerance import Comparison, expect
from tasks.grids import hidden_shapes
from tasks.spec import Task, Workload

RECIPES = ("normal", "large_logits")
MOST_SCORES = 1 << 21  # batch x heads x seq_q x seq_k of a shape that is interpreted: a second or two
MOST_ELEMENTS = 1 << 20  # of one tile, of which every block that runs together has one
TIME_LIMIT_S = 60.0  # of processor time, for interpreting one program on all shapes
MOST_FINDINGS = 12  # a model corrects a few at a time


@dataclass(frozen=True)
class Examined:
    """What is to be said of a program; `told` is empty where it passed. `program` where it resolved."""

    passed: bool
    told: str
    program: ir.Program | None = None


def examine(
    text: str,
    task: Task,
    target: Target,
    workloads: Sequence[Workload],
    level: Literal["sketch", "code"],
    seed: int,
) -> Examined:
    """Check; where that finds no error in a whole program, interpret it on small nasty shapes."""
    report = check(
        text, task, level=level, target=target if target.is_gpu else None, dtype=workloads[0].dtype
    )
    if not report.ok:
        return Examined(False, findings_text(text, report.findings))
    if level == "sketch" or report.program is None:
        return Examined(True, "")
    told = disagreement(report.program, task, workloads, seed)
    return Examined(not told, told, report.program)


def findings_text(text: str, findings: Sequence[Finding]) -> str:
    """Errors and warnings as a compiler shows them: place, code, sentence, line, fix."""
    lines = text.replace("\t", " ").split("\n")
    said = [f for f in findings if f.severity is not Severity.NOTE]
    parts = []
    for f in said[:MOST_FINDINGS]:
        line = lines[f.pos.line - 1].strip() if 0 < f.pos.line <= len(lines) else ""
        fix = f"\n  fix: {f.fix}" if f.fix else ""
        parts.append(f"line {f.pos.line}: {f.severity} {f.code}: {f.message}\n  {line}{fix}")
    if len(said) > MOST_FINDINGS:
        parts.append(f"and {len(said) - MOST_FINDINGS} more")
    return "\n".join(parts)


def disagreement(program: ir.Program, task: Task, workloads: Sequence[Workload], seed: int) -> str:
    """Where the program and the oracle differ first, in one sentence; empty where they agree."""
    deadline = time.thread_time() + TIME_LIMIT_S  # not the time that passes: others may work too
    for shape in shapes(workloads):
        if problem := _too_large(program, shape):
            return problem
        for recipe in RECIPES:
            inputs = make_inputs(task, shape, recipe, seed, "cpu")
            try:
                outcome = interpret(program, task, shape, inputs, deadline=deadline)
            except InterpretError as error:
                return f"On {_described(shape)}, run by the interpreter: {error}"
            result = expect(task, shape, inputs).compare(outcome.outputs)
            if not result.passed:
                return _difference(shape, recipe, result)
    return ""


def shapes(workloads: Sequence[Workload]) -> tuple[Workload, ...]:
    """Hidden shapes of the workloads' configurations, small enough to interpret; the first one in full."""
    found = hidden_shapes(workloads)
    small = [w for w in found if w.batch * w.heads * w.seq_q * w.seq_k <= MOST_SCORES]
    return tuple(small[:5]) or (found[0].with_(heads=found[0].group, kv_heads=1),)


def _difference(shape: Workload, recipe: str, result: Comparison) -> str:
    return (
        f"The interpreter's result differs from the task's on {_described(shape)}, {recipe} inputs: "
        f"{_two_digits(result.note)}"
    )


def _described(w: Workload) -> str:
    parameters = "".join(f", {name} {value:g}" for name, value in w.parameters)
    return (
        f"batch {w.batch}, heads {w.heads}, kv_heads {w.kv_heads}, seq_q {w.seq_q}, seq_k {w.seq_k}, "
        f"dim {w.dim}, dim_v {w.dim_v}{parameters}"
    )


def _two_digits(text: str) -> str:
    """Numbers with a fraction or an exponent, rounded: their last digits differ between machines."""
    words = []
    for word in text.split(" "):
        bare = word.rstrip(",.;:")
        try:
            value = float(bare)
        except ValueError:
            words.append(word)
            continue
        whole = bare.lstrip("-").isdigit()
        words.append(word if whole else f"{value:.2g}{word[len(bare) :]}")
    return " ".join(words)


def rounded(told: str) -> str:
    """What verification says, as a model is told it."""
    return _two_digits(told)


def _too_large(program: ir.Program, shape: Workload) -> str:
    sizes = {**scalars(shape), **program.defaults}
    for tile in (tile for kernel in program.kernels for tile in kernel.tiles):
        try:
            elements = int(evaluate(tile.shape[0], sizes) * evaluate(tile.shape[1], sizes))
        except (KeyError, ValueError, ZeroDivisionError):
            continue  # the interpreter says what is wrong with it
        if elements > MOST_ELEMENTS:
            return f"tile {tile.name} would hold {elements:,} elements, more than any block has room for"
    return ""
