"""Owns the defects of the scores: their scale, and a softmax spelled out in operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.tl import syntax as s
from harness.tl.mutate_parts import altered, named, target
from harness.tl.mutate_tree import Edit, Family, Site, Tree
from harness.tl.syntax import Expr

FAMILY = Family()
_kind = FAMILY.kind


# --- scale ------------------------------------------------------------------------------------------------


def _scalings(tree: Tree) -> Iterator[tuple[Site, s.Compute]]:
    for site, st in tree.all(s.Compute):
        if st.op == "Multiply" and any(named(x, "scale") for x in st.operands):
            yield site, st


@_kind("the scores are not scaled")
def scale_dropped(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("*", x, s.Name("scale")) | s.Binary("*", s.Name("scale"), x):
                yield x

    yield from tree.infix_by(rule)
    for site, _ in _scalings(tree):
        yield tree.drop(site)


@_kind("the scores are scaled twice")
def scale_twice(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        if named(expr, "scale"):
            yield s.Binary("*", expr, expr)

    yield from tree.infix_by(rule)
    for site, _ in _scalings(tree):
        yield tree.twice(site)


@_kind("the scale is made up: 1 / dim, or the scores divided by scale")
def scale_wrong(tree: Tree) -> Iterator[Edit]:
    def inverse(expr: Expr) -> Iterator[Expr]:
        if named(expr, "scale"):
            yield s.Binary("/", s.Num(1), s.Name("dim"))

    for site, st in tree.work():
        yield from (tree.put(site, new) for new in altered(st, inverse))
    for site, scaling in _scalings(tree):
        yield tree.put(site, replace(scaling, op="Divide"))


@_kind("the scores are scaled, or capped, later than they should be")
def scale_late(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.work():
        if any("scale" in s.names(e) for e in _operands(st)):
            for n in site.after():
                if isinstance(tree.at(n), s.Copy | s.Reshape):
                    break
                yield tree.move_after(site, n)


def _operands(st: s.Compute | s.Infix) -> tuple[Expr, ...]:
    return (st.value,) if isinstance(st, s.Infix) else st.operands


# --- spelled out ------------------------------------------------------------------------------------------


@_kind("the factor of the rescaling is computed the wrong way round: exp(m_new - m)")
def alpha_reversed(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-", s.Name(x), y) if x in tree.maxima:
                yield s.Binary("-", y, expr.left)

    yield from tree.infix_by(rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Subtract" and named(st.operands[0], *tree.maxima):
            yield tree.put(site, replace(st, operands=st.operands[::-1]))


@_kind("the running maximum is not brought up to date")
def maximum_not_updated(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.work():
        if site.loops and target(st) in tree.maxima and _is_assignment(st):
            yield tree.drop(site)


@_kind("the running maximum is brought up to date before the old one was used")
def maximum_updated_early(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.work():
        if site.loops and target(st) in tree.maxima and _is_assignment(st):
            for n in site.before():
                at = tree.at(n)
                if isinstance(at, s.Compute) and at.op == "RowMax":
                    yield tree.move_after(site, n)


def _is_assignment(st: s.Compute | s.Infix) -> bool:
    return st.op == "Assign" if isinstance(st, s.Compute) else isinstance(st.value, s.Name)


@_kind("the maximum of a block alone is taken for the running maximum")
def maximum_not_running(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Compute):
        if st.op == "RowMax" and len(st.operands) == 2:
            yield tree.put(site, replace(st, operands=st.operands[:1]))


@_kind("the maximum is not subtracted before the exponential")
def maximum_not_subtracted(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-", s.Name(x), _) if x not in tree.maxima:
                yield expr.left

    yield from tree.infix_by(rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Subtract" and not named(st.operands[0], *tree.maxima):
            yield tree.put(site, replace(st, op="Assign", operands=st.operands[:1]))


@_kind("the old maximum is subtracted for the new one")
def maximum_stale(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-", s.Name(x), s.Name()) if x not in tree.maxima:
                yield from (s.Binary("-", expr.left, s.Name(m)) for m in sorted(tree.maxima))

    yield from tree.infix_by(rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Subtract" and not named(st.operands[0], *tree.maxima):
            for m in sorted(tree.maxima):
                yield tree.put(site, replace(st, operands=(st.operands[0], s.Name(m))))


@_kind("an exponential is left out")
def exponential_dropped(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Call("exp", (x,)):
                yield x

    yield from tree.infix_by(rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Exp":
            yield tree.drop(site)
