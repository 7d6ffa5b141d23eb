"""Owns TL6xx: whether every query meets exactly the keys its mask allows, once, and every row is stored once.

Brute force over small cases: the pairs that a run of the kernel visits are counted and compared with
the task's own mask.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from harness.tl import ir
from harness.tl.checks.cases import Cases, cases_of
from harness.tl.checks.contents import Entry, Stored
from harness.tl.checks.lanes import Array, Beyond, grid
from harness.tl.checks.visits import Visits
from harness.tl.diagnostics import Finding, finding
from harness.tl.problem import TaskLike, all_workloads
from harness.tl.syntax import Pos


def check_coverage(program: ir.Program, task: TaskLike) -> list[Finding]:
    """What is skipped, seen or stored that should not be; nothing where that cannot be followed."""
    found = _pads(program, task)
    try:
        with np.errstate(all="ignore"):
            cases = cases_of(program, task)
            for kernel in program.kernels:
                found += _kernel(kernel, cases)
    except (Beyond, ArithmeticError, ValueError, TypeError, IndexError, KeyError):
        pass  # nothing can be said
    return found


def _kernel(kernel: ir.Kernel, cases: Cases) -> list[Finding]:
    if not any(isinstance(n, ir.Store) and not n.matrix.workspace for n in ir.nodes(kernel.body)):
        return []
    lanes = grid(kernel, cases.fresh(), cases.constants, cases.count)
    visits = Visits({})
    visits.run(kernel.body, lanes)
    found = []
    by_columns: dict[tuple[str, ir.Expr], list[Stored]] = {}
    for stored in visits.stores:
        if stored.node.matrix.row_role != "seq_q":
            return []
        by_columns.setdefault((stored.node.matrix.tensor, stored.node.col), []).append(stored)
    for group in by_columns.values():
        found += _rows(group, visits, cases)
        if cases.allowed is not None and not found:
            found += _pairs(group, visits, cases)
    return found


# --- rows --------------------------------------------------------------------------------------------


def _rows(group: list[Stored], visits: Visits, cases: Cases) -> list[Finding]:
    """TL604: over all stores to these columns, each row once, and with its own query."""
    queries = int(cases.symbols["seq_q"].max())
    times = np.zeros(cases.count * queries, dtype=np.int64)
    pos = _pos(group[0].node)
    for stored in group:
        case = stored.lanes.symbol("#case")[:, None]
        row, inside = _stored_rows(stored, visits)
        times += np.bincount((case * queries + row)[inside], minlength=len(times))
        for entry in (stored.sums or ((),))[0]:
            if entry.row is not None:
                at = entry.lanes.matching(stored.lanes)
                wrong = (at >= 0) & (stored.row[at] != entry.row)
                if wrong.any():
                    n = int(np.flatnonzero(wrong)[0])
                    return [
                        finding(
                            "TL604",
                            _pos(stored.node),
                            f"the rows of queries from {entry.row[n]} on are stored from "
                            f"row {stored.row[at][n]} on",
                            "store at the coordinate that the queries are loaded from",
                        )
                    ]
    wanted = np.arange(queries) < cases.symbols["seq_q"][:, None]
    count = times.reshape(cases.count, queries)
    for wrong, what in (
        (wanted & (count == 0), "is never stored"),
        (wanted & (count > 1), "is stored more than once"),
    ):
        if wrong.any():
            case_, row_ = (int(x) for x in np.argwhere(wrong)[0])
            return [
                finding(
                    "TL604", pos, f"row {row_} of `{group[0].node.matrix.name}` {what} ({cases.words[case_]})"
                )
            ]
    return []


def _stored_rows(stored: Stored, visits: Visits) -> tuple[Array, Array]:
    """The rows (rounds, rows of the tile) that a store writes, and which of them are inside."""
    tile = stored.node.tile
    length = visits.shape(tile, stored.lanes)[0]
    row = stored.row[:, None] + np.arange(length)
    real = np.arange(length) < stored.lanes.scalar(tile.shape[0])[:, None]
    inside = real & (row >= 0) & (row < stored.lanes.symbol("seq_q")[:, None])
    return row, inside


# --- pairs -------------------------------------------------------------------------------------------


def _pairs(group: list[Stored], visits: Visits, cases: Cases) -> list[Finding]:
    """TL601 to TL603 of what is stored, and of the sums it is divided by."""
    assert cases.allowed is not None
    if any(stored.sums is None for stored in group):
        return []
    empty = [stored for stored in group if stored.sums and not stored.sums[0]]
    if empty:
        name = empty[0].node.tile.name
        text = f"`{name}` is stored, but no product with the values was ever added to it"
        return [finding("TL601", _pos(empty[0].node), text, f"Compute GEMM P, V and accumulate {name}")]
    found: list[Finding] = []
    seen: list[Counter[tuple[int, int, int]]] = []
    for part in range(max(len(stored.sums or ()) for stored in group)):
        entries = [(s, e) for s in group if s.sums is not None and part < len(s.sums) for e in s.sums[part]]
        key = Counter((id(s), id(e.lanes), id(e.allow)) for s, e in entries)
        if not entries or key in seen:
            continue
        seen.append(key)
        count = sum(_count(stored, entry, visits, cases) for stored, entry in entries)
        found += _compare(np.asarray(count).reshape(cases.allowed.shape), entries, visits, cases)
        if found:
            break
    return found


def _count(stored: Stored, entry: Entry, visits: Visits, cases: Cases, masked: bool = True) -> Array:
    """How often each (case, query, key) enters, of queries and keys that there are."""
    assert cases.allowed is not None
    count, queries, keys = cases.allowed.shape
    at = entry.lanes.matching(stored.lanes)
    live = at >= 0
    rows, columns = (int(entry.lanes.scalar(x).max(initial=1)) for x in entry.shape)
    row = (stored.row[at][:, None] + np.arange(rows))[:, :, None]
    key = (entry.base[:, None] + np.arange(columns))[:, None, :]
    case = entry.lanes.symbol("#case")[:, None, None]
    real_rows = np.arange(rows) < entry.lanes.scalar(entry.shape[0])[:, None]
    real_columns = np.arange(columns) < entry.lanes.scalar(entry.shape[1])[:, None]
    real_rows &= live[:, None] & (row[:, :, 0] >= 0) & (row[:, :, 0] < entry.lanes.symbol("seq_q")[:, None])
    real_columns &= (key[:, 0, :] >= 0) & (key[:, 0, :] < entry.lanes.symbol("seq_k")[:, None])
    inside = real_rows[:, :, None] & real_columns[:, None, :]
    if masked and entry.allow is not None:
        inside = inside & entry.allow
    flat = (case * queries + row) * keys + key
    return np.bincount(flat[inside], minlength=count * queries * keys)


def _compare(
    count: Array, entries: list[tuple[Stored, Entry]], visits: Visits, cases: Cases
) -> list[Finding]:
    allowed = cases.allowed
    assert allowed is not None
    first = entries[0][1].node
    loop = visits.loops.get(id(first))
    found = []
    skipped = allowed & (count == 0)
    if skipped.any() and isinstance(first, ir.Gemm) and not first.accumulate and loop is not None:
        text = f"each round overwrites what `{first.result.name}` summed up: only the last keys count"
        found.append(finding("TL601", _pos(first), text, f"and accumulate {first.result.name}"))
    elif skipped.any():
        met = sum(_count(s, e, visits, cases, masked=False) for s, e in entries)
        out_of_reach = skipped & (np.asarray(met).reshape(allowed.shape) == 0)
        hidden = not out_of_reach.any()
        where = visits.masks[0] if hidden and visits.masks else first if hidden or loop is None else loop
        what = "is masked though it is allowed" if hidden else "is never reached"
        example = _example(skipped if hidden else out_of_reach, cases)
        fix = "the mask must let it through" if hidden else "widen the bounds of the loop"
        found.append(
            finding(
                "TL601", _pos(where), f"key {example[1]} {what} for query {example[0]} ({example[2]})", fix
            )
        )
    forbidden = ~allowed & (count > 0)
    if forbidden.any():
        example = _example(forbidden, cases)
        where = (*visits.masks, *visits.exps, first)[0]
        found.append(
            finding(
                "TL602",
                _pos(where),
                f"query {example[0]} sees key {example[1]}, which its mask forbids ({example[2]})",
            )
        )
    elif any(_before_first(entry) for _, entry in entries):
        where = loop or first
        text = "positions before the first key are read, and no mask hides them"
        found.append(finding("TL602", _pos(where), text, "let the loop start at max(0, ...)"))
    twice = count > 1
    if twice.any():
        example = _example(twice, cases)
        nodes = list({id(e.node): e.node for _, e in entries}.values())
        again = [n for n in nodes[1:] if visits.loops.get(id(n)) is loop]  # two statements of one loop
        where = again[0] if again else loop or first
        found.append(
            finding(
                "TL603",
                _pos(where),
                f"query {example[0]} counts key {example[1]} more than once ({example[2]})",
            )
        )
    return found


def _before_first(entry: Entry) -> bool:
    """Whether keys at negative positions enter: what pads them counts in the softmax."""
    if not entry.base.size or entry.base.min() >= 0:
        return False
    columns = int(entry.lanes.scalar(entry.shape[1]).max(initial=1))
    real = np.arange(columns) < entry.lanes.scalar(entry.shape[1])[:, None]
    before = (real & (entry.base[:, None] + np.arange(columns) < 0))[:, None, :]
    return bool((before if entry.allow is None else before & entry.allow).any())


def _example(wrong: Array, cases: Cases) -> tuple[int, int, str]:
    case, query, key = (int(x) for x in np.argwhere(wrong)[0])
    return query, key, cases.words[case]


def _pos(node: ir.Node) -> Pos:
    return node.source.pos if node.source is not None else Pos(1, 1)


# --- pads --------------------------------------------------------------------------------------------


def _pads(program: ir.Program, task: TaskLike) -> list[Finding]:
    """TL605: a pad that enters a product: no number, or not 0 along an axis whose end no operation knows."""
    found = []
    for kernel in program.kernels:
        entering = {t for n in ir.nodes(kernel.body) if isinstance(n, ir.Gemm) for t in (n.a.tile, n.b.tile)}
        entering |= {n.tile for n in ir.nodes(kernel.body) if isinstance(n, ir.Move) and n.target in entering}
        for node in ir.nodes(kernel.body):
            if not isinstance(node, ir.Load) or node.tile not in entering or node.pad == ir.Const(0):
                continue
            value = node.pad.value if isinstance(node.pad, ir.Const) else None
            if value == 0:
                continue
            if value is not None and not math.isfinite(value):
                found.append(
                    finding(
                        "TL605",
                        _pos(node),
                        f"`{node.tile.name}` is padded with {value:g} and enters a product",
                    )
                )
            elif _past_columns(node, program, task):
                found.append(
                    finding(
                        "TL605",
                        _pos(node),
                        f"`{node.tile.name}` passes the end of the columns; what pads it enters a product",
                    )
                )
    return found


def _past_columns(node: ir.Load, program: ir.Program, task: TaskLike) -> bool:
    """Whether the tile is wider than what the matrix has left, on some shape of the task."""
    from harness.tl.evaluate import evaluate
    from harness.tl.problem import scalars

    for workload in all_workloads(task):
        sizes = {**scalars(workload), **program.defaults}
        try:
            if evaluate(node.matrix.cols, sizes) % evaluate(node.tile.shape[1], sizes):
                return True
        except (KeyError, ValueError, ArithmeticError):
            return False
    return False
