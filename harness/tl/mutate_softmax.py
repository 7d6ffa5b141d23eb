"""Owns the defects of the softmax: its state, rescaling, normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.tl import syntax as s
from harness.tl.mutate_parts import altered, exchanged, is_minus_infinity, target
from harness.tl.mutate_tree import Edit, Family, Site, Tree
from harness.tl.syntax import Expr

FAMILY = Family()
_kind = FAMILY.kind
_SOFTMAX = ("Softmax", "OnlineSoftmax")


def _softmaxes(tree: Tree) -> Iterator[tuple[Site, s.Compute]]:
    return ((site, st) for site, st in tree.all(s.Compute) if st.op in _SOFTMAX)


# --- state ------------------------------------------------------------------------------------------------


@_kind("a state or an accumulator has no start value")
def init_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.states():
        yield tree.put(site, replace(st, init=None))


@_kind("a state or an accumulator starts at the wrong value: 0 for -inf, 1 or -inf for 0")
def init_wrong(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.states():
        minus = s.Unary("-", s.Name("inf"))
        wrong: tuple[Expr, ...] = (s.Num(1), minus)
        if is_minus_infinity(st.init):
            wrong = (s.Num(0), s.Num(1), s.Name("inf"))
        for value in wrong:
            yield tree.put(site, replace(st, init=value))


@_kind("a state or an accumulator is allocated in the loop, so each round forgets the last")
def init_in_loop(tree: Tree) -> Iterator[Edit]:
    for site, _ in tree.states():
        loop = next((n for n in site.after() if isinstance(tree.at(n), s.For)), None)
        if loop is not None:
            yield tree.move_before(site, loop + 1)


@_kind("maximum and sum change places in the softmax's state")
def state_swapped(tree: Tree) -> Iterator[Edit]:
    for site, st in _softmaxes(tree):
        if len(st.operands) == 3:
            x, m, l = st.operands  # noqa: E741 - the field's name for it
            yield tree.put(site, replace(st, operands=(x, l, m)))


@_kind("the softmax is left out")
def softmax_dropped(tree: Tree) -> Iterator[Edit]:
    for site, _ in _softmaxes(tree):
        yield tree.drop(site)


@_kind("an update of the state or of an accumulator is made twice")
def update_twice(tree: Tree) -> Iterator[Edit]:
    carried = tree.maxima | tree.sums | tree.accumulators
    for site, st in tree.work():
        softmax = isinstance(st, s.Compute) and st.op in _SOFTMAX
        if site.loops and (softmax or target(st) in carried):
            yield tree.twice(site)


# --- rescaling --------------------------------------------------------------------------------------------


def _rescales(tree: Tree) -> Iterator[Site]:
    """Statements in a loop that multiply an accumulator."""
    for site, st in tree.work():
        if site.loops and target(st) in tree.accumulators and _is(st, "Multiply", "*"):
            yield site


def _is(st: s.Compute | s.Infix, op: str, sign: str) -> bool:
    if isinstance(st, s.Compute):
        return st.op == op
    return st.op == f"{sign}=" or (isinstance(st.value, s.Binary) and st.value.op == sign)


@_kind("an accumulator is not rescaled when the maximum moves")
def rescale_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in _softmaxes(tree):
        if st.rescale:
            yield tree.put(site, replace(st, rescale=()))
    for site in _rescales(tree):
        yield tree.drop(site)


@_kind("another tile than the accumulator is rescaled")
def rescale_wrong_tile(tree: Tree) -> Iterator[Edit]:
    for site, st in _softmaxes(tree):
        for other in sorted(tree.sums | tree.maxima | {"S"}) if st.rescale else ():
            yield tree.put(site, replace(st, rescale=(other,)))


@_kind("an accumulator is rescaled after the new product has been added to it")
def rescale_late(tree: Tree) -> Iterator[Edit]:
    for site in _rescales(tree):
        yield tree.move_after(site, site.block[-1])


@_kind("the running sum is not rescaled")
def sum_not_rescaled(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("*", s.Name(x), _) if x in tree.sums:
                yield expr.left

    yield from tree.infix_by(rule)
    for site, st in tree.all(s.Compute):
        if site.loops and target(st) in tree.sums and st.op == "Multiply":
            yield tree.drop(site)


@_kind("a block's sum is not added to the running sum, or the running sum is forgotten")
def sum_not_added(tree: Tree) -> Iterator[Edit]:
    for site, infix in tree.all(s.Infix):
        match infix.value:
            case s.Binary("+", x, y) if infix.name in tree.sums:
                yield tree.put(site, replace(infix, value=x))
                yield tree.put(site, replace(infix, value=y))
    for site, st in tree.all(s.Compute):
        if site.loops and target(st) in tree.sums and st.op == "Add":
            yield tree.drop(site)


# --- normalisation ----------------------------------------------------------------------------------------


def _divisions(tree: Tree) -> Iterator[Site]:
    """Statements after the loop that divide by the running sum."""
    for site, st in tree.work():
        if not site.loops and target(st) in tree.accumulators and _is(st, "Divide", "/"):
            yield site


@_kind("the result is never divided by the sum")
def divide_dropped(tree: Tree) -> Iterator[Edit]:
    for site in _divisions(tree):
        yield tree.drop(site)


@_kind("the result is divided by the sum twice")
def divide_twice(tree: Tree) -> Iterator[Edit]:
    for site in _divisions(tree):
        yield tree.twice(site)


@_kind("the result is divided by the sum in each round of the loop")
def divide_in_loop(tree: Tree) -> Iterator[Edit]:
    for site in _divisions(tree):
        for n in site.before():
            loop = tree.at(n)
            if isinstance(loop, s.For):
                yield tree.move_after(site, n + sum(1 for _ in s.statements(loop.body)))


@_kind("the result is divided by the maximum")
def divide_by_maximum(tree: Tree) -> Iterator[Edit]:
    for site in _divisions(tree):
        for a in sorted(tree.sums):
            for b in sorted(tree.maxima):
                for new in altered(tree.at(site.number), exchanged(a, b)):
                    yield tree.put(site, new)
