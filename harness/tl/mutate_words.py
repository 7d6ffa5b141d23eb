"""Owns the defects of words: names, operations, types, tile sizes, the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from harness.tl import syntax as s
from harness.tl.mutate_parts import Rule, altered, exchanged, expressions, named
from harness.tl.mutate_tree import Edit, Family, Site, Tree
from harness.tl.syntax import Expr, Level

FAMILY = Family()
_kind = FAMILY.kind
_OTHER_OPERATION: Mapping[str, tuple[str, ...]] = {
    "Add": ("Multiply", "Subtract"),
    "Multiply": ("Add", "Divide"),
    "Subtract": ("Add", "Divide"),
    "Divide": ("Multiply", "Subtract"),
    "RowMax": ("RowSum",),
    "RowSum": ("RowMax",),
    "Exp": ("Exp2", "Log"),
    "Tanh": ("Sigmoid", "Exp"),
}
_OTHER_SIGN = {"+": ("*", "-"), "-": ("+",), "*": ("+", "/"), "/": ("*",)}
_OTHER_FUNCTION = {"exp": ("exp2",), "tanh": ("sigmoid",)}


# --- names ------------------------------------------------------------------------------------------------


def _misspelt(name: str) -> str:
    return f"{name[:-1]}{name[-1] * 2}x"


@_kind("a name in an expression is misspelt (the first use of each)")
def name_misspelt(tree: Tree) -> Iterator[Edit]:
    seen: set[str] = set()
    for number, st in enumerate(tree.statements):
        if not isinstance(st, s.Reshape):
            for name in sorted({x for e in expressions(st) for x in s.names(e)} - seen):
                seen.add(name)
                new = next(altered(st, exchanged(name, _misspelt(name))))
                yield tree.put(tree.site(number), new)


@_kind("the name of a tile is misspelt in a copy, a Reshape, or where a result goes")
def tile_misspelt(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        yield tree.put(site, replace(st, name=_misspelt(st.name)))
    for site, reshape in tree.all(s.Reshape):
        yield tree.put(site, replace(reshape, name=_misspelt(reshape.name)))
    for site, compute in tree.all(s.Compute):
        if compute.accumulate:
            yield tree.put(site, replace(compute, accumulate=_misspelt(compute.accumulate)))
        for at, name in enumerate(compute.rescale):
            names = (*compute.rescale[:at], _misspelt(name), *compute.rescale[at + 1 :])
            yield tree.put(site, replace(compute, rescale=names))
        for at, got in enumerate(compute.get):
            gets = (*compute.get[:at], replace(got, name=_misspelt(got.name)), *compute.get[at + 1 :])
            yield tree.put(site, replace(compute, get=gets))


@_kind("a word that is no operation")
def operation_misspelt(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Compute):
        yield tree.put(site, replace(st, op=_misspelt(st.op)))


@_kind("a tensor, a state or an accumulator is not allocated")
def allocation_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Allocate):
        if st.level is Level.GLOBAL or st.init is not None:
            yield tree.drop(site)


@_kind("a name is allocated twice")
def allocation_twice(tree: Tree) -> Iterator[Edit]:
    for site, _ in tree.all(s.Allocate):
        yield tree.twice(site)


# --- operations -------------------------------------------------------------------------------------------


@_kind("a wrong operation: Add for Multiply, RowMax for RowSum, Exp2 for Exp")
def operation_wrong(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary():
                yield from (replace(expr, op=op) for op in _OTHER_SIGN.get(expr.op, ()))
            case s.Call():
                yield from (replace(expr, fn=fn) for fn in _OTHER_FUNCTION.get(expr.fn, ()))

    for site, st in tree.all(s.Compute):
        for op in _OTHER_OPERATION.get(st.op, ()):
            yield tree.put(site, replace(st, op=op))
    yield from tree.infix_by(rule)


@_kind("the operands of a difference or a quotient change places")
def operation_reversed(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-" | "/", x, y) if not named(x, *tree.maxima):
                yield replace(expr, left=y, right=x)

    for site, st in tree.all(s.Compute):
        if st.op in ("Subtract", "Divide") and not named(st.operands[0], *tree.maxima):
            yield tree.put(site, replace(st, operands=st.operands[::-1]))
    yield from tree.infix_by(rule)


def _registers(tree: Tree, axes: int) -> list[str]:
    found = [st for _, st in tree.all(s.Allocate) if st.level is Level.REGISTER and len(st.shape) == axes]
    return list(dict.fromkeys(st.name for st in found))


def _confusions(tree: Tree, pairs: list[tuple[str, str]]) -> Iterator[Edit]:
    for site, st in tree.all(s.Compute):
        for a, b in pairs:
            for new in altered(st, exchanged(a, b), "operands"):
                yield tree.put(site, new)
            if a in (g.name for g in st.get):
                yield tree.put(site, replace(st, get=(s.Get(b),)))
    for a, b in pairs:
        yield from tree.infix_by(exchanged(a, b))


@_kind("a matrix of the block is taken for another: S for P, O for S")
def matrix_confused(tree: Tree) -> Iterator[Edit]:
    names = _registers(tree, 2)
    yield from _confusions(tree, [(a, b) for a in names for b in names if a != b])


@_kind("a vector of the block is taken for another: m for l, row_sum for alpha")
def vector_confused(tree: Tree) -> Iterator[Edit]:
    names = _registers(tree, 1)
    yield from _confusions(tree, list(zip(names, (*names[1:], *names[:1]), strict=True)))


@_kind("a constant of the task is taken for another: scale for softcap")
def parameter_confused(tree: Tree) -> Iterator[Edit]:
    pairs = (("softcap", "scale"), ("scale", "softcap"), ("window", "BN"), ("window", "seq_k"))
    used = {x for st in tree.statements for e in expressions(st) for x in s.names(e)}
    for a, b in pairs:
        rule: Rule = exchanged(a, b)
        if {"softcap", "window"} & used & {a, b}:
            for number, st in enumerate(tree.statements):
                yield from (tree.put(tree.site(number), new) for new in altered(st, rule))


# --- types, tiles, schedule -------------------------------------------------------------------------------


@_kind("a state, an accumulator or the scores are kept in fp16")
def dtype_narrow(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Allocate):
        if st.level is Level.REGISTER and st.dtype is None:
            yield tree.put(site, replace(st, dtype="fp16"))


def _tiles(tree: Tree) -> Iterator[tuple[Site, s.Tile, int]]:
    for site, st in tree.all(s.Tile):
        yield from ((site, st, at) for at in range(len(st.parameters)))


@_kind("tiles larger than the shared memory")
def tiles_too_large(tree: Tree) -> Iterator[Edit]:
    yield from _with_choices(tree, (4096,))
    yield from _with_choices(tree, (2048, 4096))


@_kind("a tile that no instruction divides")
def tile_odd(tree: Tree) -> Iterator[Edit]:
    yield from _with_choices(tree, (20,))
    yield from _with_choices(tree, (100,))


def _with_choices(tree: Tree, choices: tuple[int, ...]) -> Iterator[Edit]:
    for site, st, at in _tiles(tree):
        parameter = (st.parameters[at][0], choices)
        parameters = (*st.parameters[:at], parameter, *st.parameters[at + 1 :])
        yield tree.put(site, replace(st, parameters=parameters))


@_kind("a tile parameter is not declared")
def tile_undeclared(tree: Tree) -> Iterator[Edit]:
    for site, st, at in _tiles(tree):
        yield tree.put(site, replace(st, parameters=(*st.parameters[:at], *st.parameters[at + 1 :])))


@_kind("a value of the schedule that no target has")
def schedule_value(tree: Tree) -> Iterator[Edit]:
    wrong: tuple[tuple[int | str, ...], ...] = ((3,), (0,), (64,), ("many",))
    for site, st in tree.all(s.Schedule):
        for at, (key, _) in enumerate(st.items):
            for values in wrong:
                if (key, values) != ("stages", (3,)):
                    items = (*st.items[:at], (key, values), *st.items[at + 1 :])
                    yield tree.put(site, replace(st, items=items))
