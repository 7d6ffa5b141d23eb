"""Owns the defects of control: masks, loop bounds, the grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.tl import syntax as s
from harness.tl.mutate_parts import Rule, altered, exchanged, named, shifted, variants
from harness.tl.mutate_tree import Edit, Family, Site, Tree
from harness.tl.syntax import Expr

FAMILY = Family()
_kind = FAMILY.kind
_NEIGHBOUR = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_OTHER_WAY = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _diagonal_dropped(expr: Expr) -> Iterator[Expr]:
    """x + seq_k - seq_q becomes x."""
    match expr:
        case s.Binary("-", s.Binary("+", x, s.Name("seq_k")), s.Name("seq_q")):
            yield x


def _diagonal_reversed(expr: Expr) -> Iterator[Expr]:
    """x + seq_k - seq_q becomes x + seq_q - seq_k."""
    for x in _diagonal_dropped(expr):
        yield s.Binary("-", s.Binary("+", x, s.Name("seq_q")), s.Name("seq_k"))


# --- masks ------------------------------------------------------------------------------------------------


def _masks(tree: Tree) -> Iterator[tuple[Site, s.Compute, Expr]]:
    return ((site, st, st.where) for site, st in tree.all(s.Compute) if st.where is not None)


def _masks_by(tree: Tree, rule: Rule) -> Iterator[Edit]:
    for site, st, where in _masks(tree):
        for new in variants(where, rule):
            yield tree.put(site, replace(st, where=new))


@_kind("the mask is left out")
def mask_dropped(tree: Tree) -> Iterator[Edit]:
    for site, _, _ in _masks(tree):
        yield tree.drop(site)


@_kind("the mask comes too late: after the maximum, the exponentials or the whole softmax")
def mask_late(tree: Tree) -> Iterator[Edit]:
    for site, _, _ in _masks(tree):
        for n in site.after():
            if isinstance(tree.at(n), s.Copy | s.Reshape):
                break
            yield tree.move_after(site, n)


@_kind("the mask comes before the scores are final")
def mask_early(tree: Tree) -> Iterator[Edit]:
    for site, _, _ in _masks(tree):
        for n in site.before():
            st = tree.at(n)
            if isinstance(st, s.Compute) and st.op == "GEMM":
                break
            yield tree.move_before(site, n)


@_kind("the edge of a mask is off by one: < for <=, or one more, or one less")
def mask_edge(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        if isinstance(expr, s.Compare):
            ops, xs = expr.ops, expr.operands
            for at, op in enumerate(ops):
                if op in _NEIGHBOUR:
                    yield replace(expr, ops=(*ops[:at], _NEIGHBOUR[op], *ops[at + 1 :]))
            for at in {0, len(xs) - 1} if len(xs) > 2 else {1}:
                for by in (1, -1):
                    yield replace(expr, operands=(*xs[:at], shifted(xs[at], by), *xs[at + 1 :]))

    yield from _masks_by(tree, rule)


@_kind("the mask shows what it should hide")
def mask_reversed(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        if isinstance(expr, s.Compare):
            yield replace(expr, ops=tuple(_OTHER_WAY.get(op, op) for op in expr.ops))

    yield from _masks_by(tree, rule)


@_kind("query and key positions change places in the mask")
def mask_positions_swapped(tree: Tree) -> Iterator[Edit]:
    for site, st, where in _masks(tree):
        yield tree.put(site, replace(st, where=_swapped(where, "q", "k")))


def _swapped(expr: Expr, a: str, b: str) -> Expr:
    """The expression with the two names exchanged everywhere."""
    marked = expr
    for old, new in ((a, "\0"), (b, a), ("\0", b)):
        while found := list(variants(marked, exchanged(old, new))):
            marked = found[0]
    return marked


@_kind("the mask's diagonal starts in the top left corner: no seq_k - seq_q")
def mask_diagonal_dropped(tree: Tree) -> Iterator[Edit]:
    yield from _masks_by(tree, _diagonal_dropped)


@_kind("the mask's diagonal is shifted the wrong way: seq_q - seq_k")
def mask_diagonal_reversed(tree: Tree) -> Iterator[Edit]:
    yield from _masks_by(tree, _diagonal_reversed)


@_kind("a mask with two sides has only one of them")
def mask_side_dropped(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        if isinstance(expr, s.Compare) and len(expr.ops) == 2:
            yield s.Compare(expr.ops[:1], expr.operands[:2])
            yield s.Compare(expr.ops[1:], expr.operands[1:])

    yield from _masks_by(tree, rule)


@_kind("the mask takes a block number for a position")
def mask_wrong_index(tree: Tree) -> Iterator[Edit]:
    for a, b in (("q", "i"), ("k", "j")):
        yield from _masks_by(tree, exchanged(a, b))


# --- loops ------------------------------------------------------------------------------------------------


def _loops_by(tree: Tree, rule: Rule, *bounds: str) -> Iterator[Edit]:
    for site, st in tree.all(s.For):
        for new in altered(st, rule, *(bounds or ("start", "stop"))):
            yield tree.put(site, new)


@_kind("the loop ends one tile early")
def loop_stop_short(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.For):
        yield tree.put(site, replace(st, stop=shifted(st.stop, -1)))


@_kind("a bound is rounded down for up: the last tile, not full, is lost")
def loop_stop_floor(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Call("ceil", (s.Binary("/", x, y),)):
                yield s.Binary("//", x, y)

    yield from _loops_by(tree, rule)


@_kind("the loop begins one tile late")
def loop_start_late(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.For):
        yield tree.put(site, replace(st, start=shifted(st.start, 1)))


@_kind("the loop's first tile is rounded up for down")
def loop_start_ceil(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("//", x, y):
                yield s.Call("ceil", (s.Binary("/", x, y),))

    yield from _loops_by(tree, rule, "start")


@_kind("the loop takes every second tile")
def loop_step(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.For):
        yield tree.put(site, replace(st, step=s.Num(2)))


@_kind("a bound counts queries for keys, or keys for queries")
def loop_bound_length(tree: Tree) -> Iterator[Edit]:
    yield from _loops_by(tree, exchanged("seq_k", "seq_q"))
    yield from _loops_by(tree, exchanged("seq_q", "seq_k"))


@_kind("a bound counts in the other tile's size: BM for BN")
def loop_bound_tile(tree: Tree) -> Iterator[Edit]:
    for a in tree.parameters:
        for b in tree.parameters:
            if a != b:
                yield from _loops_by(tree, exchanged(a, b))


@_kind("a bound forgets the shift of the diagonal, seq_k - seq_q")
def loop_diagonal_dropped(tree: Tree) -> Iterator[Edit]:
    yield from _loops_by(tree, _diagonal_dropped)


@_kind("a bound shifts the diagonal the wrong way")
def loop_diagonal_reversed(tree: Tree) -> Iterator[Edit]:
    yield from _loops_by(tree, _diagonal_reversed)


@_kind("a bound looks at a block's first row for its last, or the other way")
def loop_bound_block(tree: Tree) -> Iterator[Edit]:
    def earlier(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("+", s.Name(x), s.Num(1)) if x in tree.grid:
                yield expr.left

    def later(expr: Expr) -> Iterator[Expr]:
        if named(expr, *tree.grid):
            yield shifted(expr, 1)

    yield from _loops_by(tree, earlier)
    yield from _loops_by(tree, later, "start")


@_kind("a bound forgets to stay inside: one of the operands of min or max stands alone")
def loop_clamp_dropped(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Call("min" | "max", args):
                yield from args

    yield from _loops_by(tree, rule)


@_kind("min for max in a bound, or max for min")
def loop_clamp_swapped(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Call("min" | "max" as fn, args):
                yield s.Call("max" if fn == "min" else "min", args)

    yield from _loops_by(tree, rule)


@_kind("a loop bound is off by one at the edge of the window or the diagonal")
def loop_edge(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Binary("-", x, s.Name("window")):
                yield s.Binary("-", shifted(x, 1), s.Name("window"))
                yield s.Binary("-", shifted(x, 8), s.Name("window"))
            case s.Binary("-", s.Binary("+", _, s.Name("seq_k")), s.Name("seq_q")):
                yield shifted(expr, -1)

    yield from _loops_by(tree, rule)


@_kind("a statement of the loop's body stands before the loop")
def loop_body_hoisted(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.For):
        first = next((n for n in range(site.number + 1, len(tree.statements))
                      if not isinstance(tree.at(n), s.Comment)), None)  # fmt: skip
        if first is not None and st.body and tree.site(first).loops:
            yield tree.move_before(tree.site(first), site.number)


# --- the grid ---------------------------------------------------------------------------------------------


@_kind("the grid lacks an axis")
def grid_axis_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Grid):
        for at in range(len(st.axes)):
            yield tree.put(site, replace(st, axes=(*st.axes[:at], *st.axes[at + 1 :])))


@_kind("a grid axis has the wrong extent")
def grid_extent(tree: Tree) -> Iterator[Edit]:
    wrong = (("batch", "heads"), ("heads", "kv_heads"), ("heads", "batch"), ("seq_q", "seq_k"), ("BM", "BN"))
    for site, st in tree.all(s.Grid):
        for a, b in wrong:
            for new in altered(st, exchanged(a, b)):
                yield tree.put(site, new)


@_kind("the grid rounds the number of row blocks down")
def grid_floor(tree: Tree) -> Iterator[Edit]:
    def rule(expr: Expr) -> Iterator[Expr]:
        match expr:
            case s.Call("ceil", (s.Binary("/", x, y),)):
                yield s.Binary("//", x, y)

    for site, st in tree.all(s.Grid):
        for new in altered(st, rule):
            yield tree.put(site, new)


@_kind("two grid axes change their extents")
def grid_axes_swapped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Grid):
        for at in range(len(st.axes) - 1):
            (a, x), (b, y) = st.axes[at : at + 2]
            yield tree.put(site, replace(st, axes=(*st.axes[:at], (a, y), (b, x), *st.axes[at + 2 :])))
