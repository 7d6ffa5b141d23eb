"""Owns TL705 to TL708: what a schedule with roles takes of a multiprocessor, choice by choice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from harness.targets import Target
from harness.tl import ir, syntax
from harness.tl.channels import BYTES
from harness.tl.checks.capacity import choices, shapes
from harness.tl.checks.schedule import keys_of
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.evaluate import evaluate
from harness.tl.problem import TaskLike
from harness.tl.roles import RoleDemand, Taken, row_extent
from harness.tl.schedule import Schedule
from harness.tl.syntax import Pos

_MOST_POINTS = 512
_MOST_N, _STEP_N, _BYTES_K = 256, 8, 32  # of wgmma: columns, their step, bytes of the summed axis
Point = tuple[Schedule, dict[str, int], Taken]


def check_roles(
    program: ir.Program, task: TaskLike, tree: syntax.Program, target: Target, dtype: str
) -> list[Finding]:
    """What does not fit for any choice (errors), or for some (notes); and what the first choice takes."""
    limit = target.smem_per_block or 0
    given = keys_of(tree)
    pos = next(
        (given[k][0] for k in ("consumers", "producer", "registers", "pingpong") if k in given), Pos(1, 1)
    )
    found: list[Finding] = []
    fits, total, least, without = 0, 0, None, []
    try:
        spaces = [
            (sizes, list(itertools.islice(points(program, sizes, dtype), _MOST_POINTS)))
            for sizes in shapes(program, task)
        ]
    except (KeyError, ArithmeticError, ValueError, TypeError):
        return []
    for sizes, space in spaces:
        if not space:
            continue
        words = f"dim = {sizes['dim']}, dim_v = {sizes['dim_v']}"
        good = [p for p in space if p[2].shared_bytes <= limit]
        smallest = min(space, key=lambda p: p[2].shared_bytes)
        if not good:
            without.append((words, smallest))
        if least is None or smallest[2].shared_bytes < least[2].shared_bytes:
            least = smallest
        fits, total = fits + len(good), total + len(space)
        found += _registers(good or space, words, pos)
        found += _products(program, sizes, good or space, dtype)
        schedule, choice, taken = (good or [smallest])[0]
        found.append(finding("TL708", pos, _table(words, schedule, choice, taken)))
    at = f"the {limit / 1024:g} KB that {target.name} has"
    if least is not None and not fits:
        text = f"channels take {least[2].shared_words}, more than {at}"
        found.append(
            finding("TL705", pos, text if total == 1 else f"no choice fits; of the smallest, {text}")
        )
    elif without:
        which = "; ".join(f"{words}: {p[2].shared_words}" for words, p in without)
        text = f"no choice fits in {at} for some shapes of the task ({which})"
        found.append(finding("TL705", pos, text, severity=Severity.WARNING))
    elif fits < total:
        text = f"{total - fits} of {total} choices do not fit in {at} and are left out"
        found.append(finding("TL705", pos, text, severity=Severity.NOTE))
    return list(dict.fromkeys(found))


def points(program: ir.Program, sizes: Mapping[str, int | float], dtype: str) -> Iterator[Point]:
    """Each schedule and tile choice whose rows are those of its consumers, with what its kernels take."""
    kernels = [(k, e) for k in program.kernels if (e := row_extent(k)) is not None]
    for schedule in Schedule.every(program):
        demands = [(RoleDemand(kernel, schedule, dtype), extent) for kernel, extent in kernels]
        for choice in choices(program, ()):
            values = {**sizes, **choice}
            if any(int(evaluate(extent, values)) != schedule.rows for _, extent in demands):
                continue
            taken = [demand.of(values) for demand, _ in demands]
            if taken:
                yield schedule, choice, max(taken, key=lambda t: t.shared_bytes)


def _registers(space: list[Point], words: str, pos: Pos) -> list[Finding]:
    """TL706: a file that cannot be shared out like that; tiles that do not fit in a thread's registers."""
    stuck = [p for p in space if not p[2].startable]
    if stuck:
        schedule, _, taken = stuck[0]
        text = (
            f"{schedule.consumers} consumers of {taken.given} registers a thread leave the producer "
            f"{taken.producer} of the {schedule.pool} that the block starts with; it needs 24"
        )
        severity = Severity.ERROR if len(stuck) == len(space) else Severity.NOTE
        return [finding("TL706", pos, text, severity=severity)]
    if all(p[2].spills for p in space):
        taken = min((p[2] for p in space), key=lambda t: t.consumer - t.given)
        return [
            finding("TL706", pos, f"a consumer's thread takes {taken.register_words} ({words}); it spills")
        ]
    return []


def _products(
    program: ir.Program, sizes: Mapping[str, int | float], space: list[Point], dtype: str
) -> list[Finding]:
    """TL707: columns of a product and the axis it sums over, against wgmma's shapes."""
    step_k = _BYTES_K // BYTES.get(dtype, 2)
    found = []
    for node in (n for k in program.kernels for n in ir.nodes(k.body) if isinstance(n, ir.Gemm)):
        tile = node.a.tile
        if node.a.columns is not None:
            summed: ir.Expr = ir.Op("sub", (node.a.columns[1], node.a.columns[0]))
        else:
            summed = tile.shape[0] if node.a.transposed else tile.shape[1]
        pos = node.source.pos if node.source is not None else Pos(1, 1)
        name = node.result.name
        columns = f"columns; wgmma takes multiples of {_STEP_N} up to {_MOST_N}"
        terms = f"to sum over; wgmma takes multiples of {step_k}"
        for extent, step, most, words in (
            (node.result.shape[1], _STEP_N, _MOST_N, columns),
            (summed, step_k, None, terms),
        ):
            values = {int(evaluate(extent, {**sizes, **choice})) for _, choice, _ in space}
            wrong = sorted(n for n in values if n % step or (most is not None and n > most))
            if wrong:
                severity = Severity.ERROR if len(wrong) == len(values) else Severity.NOTE
                text = f"`{name}` has {', '.join(map(str, wrong))} {words}"
                found.append(finding("TL707", pos, text, severity=severity))
    return found


def _table(words: str, schedule: Schedule, choice: Mapping[str, int], taken: Taken) -> str:
    tiles = ", ".join(f"{name} = {value}" for name, value in choice.items())
    consumers = f"{schedule.consumers} consumer" + "s" * (schedule.consumers > 1)
    return (
        f"with {tiles or 'its tiles'}, {consumers} ({words}): shared memory "
        f"{taken.shared_words}; a consumer's thread {taken.register_words} registers; "
        f"the producer's has {taken.producer}"
    )
