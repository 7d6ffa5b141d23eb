"""Owns the defects of the softmax: its state, rescaling, normalisation, scale, and its parts spelled out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.tl import syntax as s
from harness.tl.mutate_parts import Rule, altered, exchanged, is_minus_infinity, named, target
from harness.tl.mutate_tree import Edit, Family, Site, Tree
from harness.tl.syntax import Expr

FAMILY = Family()
_kind = FAMILY.kind
_SOFTMAX = ("Softmax", "OnlineSoftmax")


def _work(tree: Tree) -> Iterator[tuple[Site, s.Compute | s.Infix]]:
    yield from tree.all(s.Compute)
    yield from tree.all(s.Infix)


def _softmaxes(tree: Tree) -> Iterator[tuple[Site, s.Compute]]:
    return ((site, st) for site, st in tree.all(s.Compute) if st.op in _SOFTMAX)


def _infix_by(tree: Tree, rule: Rule) -> Iterator[Edit]:
    for site, st in tree.all(s.Infix):
        for new in altered(st, rule):
            yield tree.put(site, new)


# --- state -----------------------------------------------------------------------------------------------


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
    for site, st in _work(tree):
        softmax = isinstance(st, s.Compute) and st.op in _SOFTMAX
        if site.loops and (softmax or target(st) in carried):
            yield tree.twice(site)


# --- rescaling ---------------------------------------------------------------------------------------------


def _rescales(tree: Tree) -> Iterator[Site]:
    """Statements in a loop that multiply an accumulator."""
    for site, st in _work(tree):
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

    yield from _infix_by(tree, rule)
    for site, st in tree.all(s.Compute):
        if site.loops and target(st) in tree.sums and st.op == "Multiply":
            yield tree.drop(site)


@_kind("a block's sum is not added to the running sum, or the running sum is forgotten")
def sum_not_added(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Infix):
        match st.value:
            case s.Binary("+", x, y) if st.name in tree.sums:
                yield tree.put(site, replace(st, value=x))
                yield tree.put(site, replace(st, value=y))
    for site, st in tree.all(s.Compute):
        if site.loops and target(st) in tree.sums and st.op == "Add":
            yield tree.drop(site)


# --- normalisation -------------------------------------------------------------------------------------------


def _divisions(tree: Tree) -> Iterator[Site]:
    """Statements after the loop that divide by the running sum."""
    for site, st in _work(tree):
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


# --- scale ----------------------------------------------------------------------------------------------------


def _scalings(tree: Tree) -> Iterator[Site]:
    for site, st in tree.all(s.Compute):
        if st.op == "Multiply" and any(named(x, "scale") for x in st.operands):
            yield site


@_kind("the scores are not scaled")
def scale_dropped(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("*", x, s.Name("scale")) | s.Binary("*", s.Name("scale"), x):
                yield x

    yield from _infix_by(tree, rule)
    for site in _scalings(tree):
        yield tree.drop(site)


@_kind("the scores are scaled twice")
def scale_twice(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        if named(expr, "scale"):
            yield s.Binary("*", expr, expr)

    yield from _infix_by(tree, rule)
    for site in _scalings(tree):
        yield tree.twice(site)


@_kind("the scale is made up: 1 / dim, or the scores divided by scale")
def scale_wrong(tree: Tree) -> Iterator[Edit]:
    for site, st in _work(tree):
        inverse = s.Binary("/", s.Num(1), s.Name("dim"))
        yield from (tree.put(site, x) for x in altered(st, lambda e: (inverse,) if named(e, "scale") else ()))
    for site in _scalings(tree):
        st = tree.at(site.number)
        if isinstance(st, s.Compute):
            yield tree.put(site, replace(st, op="Divide"))


@_kind("the scores are scaled, or capped, later than they should be")
def scale_late(tree: Tree) -> Iterator[Edit]:
    for site, st in _work(tree):
        if any(named(x, "scale") for e in _operands(st) for x in s.walk(e)):
            for n in site.after():
                if isinstance(tree.at(n), s.Copy | s.Reshape):
                    break
                yield tree.move_after(site, n)


def _operands(st: s.Compute | s.Infix) -> tuple[Expr, ...]:
    return (st.value,) if isinstance(st, s.Infix) else st.operands


# --- spelled out --------------------------------------------------------------------------------------------------


@_kind("the factor of the rescaling is computed the wrong way round: exp(m_new - m)")
def alpha_reversed(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-", s.Name(x), y) if x in tree.maxima:
                yield s.Binary("-", y, expr.left)

    yield from _infix_by(tree, rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Subtract" and named(st.operands[0], *tree.maxima):
            yield tree.put(site, replace(st, operands=st.operands[::-1]))


@_kind("the running maximum is not brought up to date")
def maximum_not_updated(tree: Tree) -> Iterator[Edit]:
    for site, st in _work(tree):
        if site.loops and target(st) in tree.maxima and _is_assignment(st):
            yield tree.drop(site)


@_kind("the running maximum is brought up to date before the old one was used")
def maximum_updated_early(tree: Tree) -> Iterator[Edit]:
    for site, st in _work(tree):
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

    yield from _infix_by(tree, rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Subtract" and not named(st.operands[0], *tree.maxima):
            yield tree.put(site, replace(st, op="Assign", operands=st.operands[:1]))


@_kind("the old maximum is subtracted for the new one")
def maximum_stale(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-", s.Name(x), s.Name()) if x not in tree.maxima:
                yield from (s.Binary("-", expr.left, s.Name(m)) for m in sorted(tree.maxima))

    yield from _infix_by(tree, rule)
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

    yield from _infix_by(tree, rule)
    for site, st in tree.all(s.Compute):
        if st.op == "Exp":
            yield tree.drop(site)
