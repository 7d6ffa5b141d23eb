"""Owns the small cases on which coverage is tried: sizes, tile parameters and lengths scaled down together.

Tile sizes keep their ratios (and their divisibility), since programs rely on them; lengths written as
numbers shrink by the same factor. What a task's workloads never have (more queries than keys, tails)
is not tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.tl import ir
from harness.tl.checks.lanes import Array, Beyond
from harness.tl.problem import TaskLike, all_workloads

_MOST_RATIOS = 3
_LARGEST = 72  # rows or columns of a tile, scaled down
_LENGTH = 8  # numbers from here on are lengths; below they count


@dataclass(frozen=True)
class Cases:
    """Symbols by case (one element each), lengths that stand as numbers, and what the task allows."""

    count: int
    symbols: Mapping[str, Array]
    constants: Mapping[int, Array]
    allowed: Array | None  # (cases, queries, keys); None where positions alone do not decide
    words: tuple[str, ...]  # each case, for a message

    def fresh(self) -> dict[str, Array]:
        return dict(self.symbols)


_CACHE: dict[object, tuple[object, Cases]] = {}


def cases_of(program: ir.Program, task: TaskLike) -> Cases:
    """The cases for a program; raises Beyond where tiles cannot be made small."""
    lengths = tuple(sorted(set(_lengths(program))))
    sized = {
        s.name
        for k in program.kernels
        for t in k.tiles
        for e in t.shape
        for s in ir.walk(e)
        if isinstance(s, ir.Sym)
    }
    parameters = tuple((n, c) for n, c in program.parameters if n in sized)
    others = tuple((n, c[0]) for n, c in program.parameters if n not in sized)
    key = (task.name, id(task), parameters, others, lengths)
    known = _CACHE.get(key)
    if known is None or known[0] is not task:
        if len(_CACHE) > 256:
            _CACHE.clear()
        known = _CACHE[key] = (task, _make(dict(parameters), dict(others), lengths, task))
    return known[1]


def _lengths(program: ir.Program) -> Iterator[int]:
    """Every length that stands as a number where positions, bounds or sizes of tiles are computed."""
    for kernel in program.kernels:
        exprs = [axis.extent for axis in kernel.grid]
        exprs += [t.shape[at] for t in kernel.tiles for at in (0, 1)]
        for node in ir.nodes(kernel.body):
            match node:
                case ir.For():
                    exprs += [node.start, node.stop, node.step]
                case ir.If() | ir.Mask():
                    exprs.append(node.cond)
                case ir.Load() | ir.Store():
                    exprs.append(node.row)
                case ir.Gemm(contracted=ir.Axis(base=base)):
                    exprs.append(base)
                case ir.Map(expr=expr) if any(isinstance(x, ir.Place) for x in ir.walk(expr)):
                    exprs += [
                        x for x in ir.walk(expr) if isinstance(x, ir.Op) and x.fn in ("lt", "le", "gt", "ge")
                    ]
        for expr in exprs:
            for part in ir.walk(expr):
                if isinstance(part, ir.Const) and isinstance(part.value, int) and abs(part.value) >= _LENGTH:
                    yield part.value


def _make(
    parameters: Mapping[str, tuple[int, ...]],
    others: Mapping[str, int],
    lengths: tuple[int, ...],
    task: TaskLike,
) -> Cases:
    workloads = all_workloads(task)
    scaled = _scaled_choices(parameters, lengths)
    rows: list[dict[str, int]] = []
    constants: dict[int, list[int]] = {n: [] for n in lengths}
    works, words = [], []
    for choice, factor in scaled:
        unit = max(list(choice.values()) + [_shrunk(n, factor) for n in lengths if n > 0] + [2])
        if unit > _LARGEST:
            raise Beyond
        for number, (seq_q, seq_k) in enumerate(_shapes(unit, workloads)):
            first = workloads[0]
            numbers = _parameters(task, first, number, unit)
            try:
                work = first.with_(
                    batch=1, heads=1, kv_heads=1, seq_q=seq_q, seq_k=seq_k, parameters=tuple(numbers.items())
                )
            except (TypeError, ValueError):
                raise Beyond from None
            sizes = {"batch": 1, "heads": 1, "kv_heads": 1, "group": 1, "seq_q": seq_q, "seq_k": seq_k}
            dims = {
                d: first.sizes[d] // factor if first.sizes[d] % factor == 0 else first.sizes[d]
                for d in ("dim", "dim_v")
            }
            whole = {n: v for n, v in numbers.items() if isinstance(v, int)}
            rows.append({**sizes, **dims, **whole, **others, **choice})
            works.append(work)
            for n in lengths:
                constants[n].append(_shrunk(n, factor))
            text = ", ".join(
                f"{n} = {v}" for n, v in {"seq_q": seq_q, "seq_k": seq_k, **whole, **choice}.items()
            )
            if factor > 1 and lengths:
                text += f", {max(lengths)} scaled to {_shrunk(max(lengths), factor)}"
            words.append(text)
    if not rows:
        raise Beyond
    symbols = {name: np.array([r[name] for r in rows]) for name in rows[0]}
    fixed = {n: np.array(v) for n, v in constants.items()}
    return Cases(len(rows), symbols, fixed, _allowed(task, works, rows), tuple(words))


def _scaled_choices(
    parameters: Mapping[str, tuple[int, ...]], lengths: tuple[int, ...]
) -> list[tuple[dict[str, int], int]]:
    """Distinct ratios of the tile parameters, with the factor by which lengths shrink."""
    found: dict[tuple[int, ...], tuple[dict[str, int], int]] = {}
    for pick in itertools.islice(itertools.product(*parameters.values()), 48):
        sizes = [v for v in pick if v > 0] + [_rounded(n) for n in lengths]
        factor = math.gcd(*sizes) if sizes else 1
        while factor > 1 and (min(sizes) // factor < 2 or (factor > 2 and factor % 2)):
            factor //= 2
        choice = {n: max(1, v // factor) for n, v in zip(parameters, pick, strict=True)}
        found.setdefault(tuple(choice.values()), (choice, factor))
    ratios = sorted(found.values(), key=lambda c: max(c[0].values(), default=0))
    return ratios[:_MOST_RATIOS]


def _rounded(n: int) -> int:
    """A length next to a power of two (63, of a ceiling spelled out) counts as that."""
    return abs(n) + 1 if abs(n) % 2 and (abs(n) + 1) % _LENGTH == 0 else abs(n)


def _shrunk(n: int, factor: int) -> int:
    sign = -1 if n < 0 else 1
    whole = _rounded(n)
    return sign * (whole // factor - (whole - abs(n)))


def _shapes(unit: int, workloads: list[Any]) -> list[tuple[int, int]]:
    """Lengths of queries and keys such as the task has them: equal, more keys, more queries, tails."""
    u = unit
    shapes = [
        (2 * u + 1, 2 * u + 1),
        (u + 1, 3 * u - 1),
        (3 * u - 1, u + 1),
        (2 * u, 2 * u),
        (1, 2 * u + 1),
        (u, 1),
    ]
    lengths = [(w.sizes["seq_q"], w.sizes["seq_k"]) for w in workloads]
    if max(q for q, _ in lengths) == 1:
        shapes = [(1, k) for _, k in shapes]
    else:
        kinds = {(q > k) - (q < k) for q, k in lengths}
        shapes = [(q, k) for q, k in shapes if (q > k) - (q < k) in kinds]
    for at in (0, 1):
        if math.gcd(*(w[at] for w in lengths)) % 64 == 0 and lengths[0][at] > 1:  # never a tail
            shapes = [s for s in shapes if s[at] % u == 0]
    return list(dict.fromkeys(shapes))


def _parameters(task: TaskLike, workload: Any, number: int, unit: int) -> dict[str, int | float]:
    small = (unit + 1, 3, 2 * unit + 3, 1, 2, unit)
    given = workload.params
    return {p.name: small[number % len(small)] if p.type == "int" else given[p.name] for p in task.parameters}


def _allowed(task: TaskLike, works: list[Any], rows: list[dict[str, int]]) -> Any:
    """Which pairs the task's mask allows, in each case."""
    if any(t.dtype is not None and t.dtype.startswith("int") for t in task.tensors if t.role == "input"):
        return None  # data decides
    queries, keys = (max(r[n] for r in rows) for n in ("seq_q", "seq_k"))
    i, j = np.arange(queries)[:, None], np.arange(keys)[None, :]
    allowed = np.zeros((len(rows), queries, keys), dtype=bool)
    if task.mask is not None:
        import torch

        at = torch.from_numpy(i), torch.from_numpy(j)
    for number, (work, row) in enumerate(zip(works, rows, strict=True)):
        inside = (i < row["seq_q"]) & (j < row["seq_k"])
        if task.mask is not None:
            inside = inside & task.mask(*at, work).expand(queries, keys).numpy()
        allowed[number] = inside
    return allowed
