"""Owns the rounds of a loop in a Hopper kernel: their order, those a group needs, those that need a mask.

Rounds are numbered in the order in which they run. With the last first, the tile on the diagonal of a causal
mask comes before all others, so that the first round and no other has the mask's code.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.tl import ir
from harness.tl.evaluate import op
from harness.tl.lower.facts import ahead
from harness.tl.lower.gluon_trial import Freedom
from harness.tl.lower.peel import Peeled, alive, peel

FLAGS = {
    "SOME": "no tile is without rounds",
    "SKIPS": "some group of rows skips rounds that others of its tile need",
    "LATER": "more rounds than the first have a mask before those without",
    "LAST": "rounds with a mask follow those without",
}


@dataclass(frozen=True, slots=True)
class Rounds:
    """`needed`: bounds of rounds that masks leave anything of; `whole`: of those that need no mask."""

    loop: ir.For
    number: int  # of the loop in its kernel
    row: ir.Expr  # the group's first, where it is known; groups past the last row have no rounds
    skips: bool  # whether a group can let rounds go by, for which it must know what they load
    backwards: bool
    needed: Peeled | None
    whole: Peeled | None

    @classmethod
    def of(cls, loop: ir.For, number: int, row: ir.Expr | None, freedom: Freedom) -> Rounds:
        skips = row is not None and all(n in loop.body for n in ir.nodes(loop.body) if isinstance(n, ir.Load))
        needed = alive(loop) if freedom.skip and skips else None
        if needed is not None and not (needed.lows or needed.highs):
            needed = None
        return cls(loop, number, row or ir.Const(0), skips, freedom.order, needed, peel(loop))

    def flag(self, name: str) -> str:
        """The constexpr of that meaning for this loop."""
        return f"{name}_{self.loop.var}" if self.number == 0 else f"{name}_{self.loop.var}{self.number}"

    @property
    def known(self) -> bool:
        """Whether the host can tell the bounds before the launch: they are index arithmetic throughout."""
        found = [self.loop.start, self.loop.stop]
        for bounds in (self.needed, self.whole):
            found += [*bounds.lows, *bounds.highs] if bounds is not None else []
        return not any(isinstance(p, ir.Op) and p.fn == "where" for e in found for p in ir.walk(e))

    def bounds(self) -> tuple[ir.Expr, ir.Expr, ir.Expr, ir.Expr]:
        """On the loop variable: the first needed, past the last needed, the same of those without mask."""
        start, stop = ir.Sym(f"{self.loop.var}_start"), ir.Sym(f"{self.loop.var}_stop")
        first, last = _within(self.needed, start, stop)
        seq = ir.Sym("seq_q")
        left = op("max", ir.Const(0), op("sub", seq, self.row))
        lives = op("min", ir.Const(1), left)  # 0 past the last row
        a, b = ir.Sym(f"{self.loop.var}_first"), ir.Sym(f"{self.loop.var}_last")
        most = op("mul", lives, op("max", ir.Const(0), op("sub", stop, a)))
        last = op("min", last, op("add", a, most)) if self.skips else last
        if self.whole is None:
            return first, last, b, b
        low = op("min", op("max", a, *self.whole.lows), b) if self.whole.lows else a
        high = op("min", b, *self.whole.highs) if self.whole.highs else b
        return first, last, low, op("max", high, ir.Sym(f"{self.loop.var}_low"))


def _within(bounds: Peeled | None, start: ir.Expr, stop: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
    if bounds is None:
        return start, stop
    first = op("min", op("max", start, *bounds.lows), stop) if bounds.lows else start
    last = op("max", op("min", stop, *bounds.highs), first) if bounds.highs else stop
    return first, last


@dataclass(frozen=True, slots=True)
class Overlap:
    """A loop's body cut for products that run ahead: the first and their loads, work, the last and loads."""

    first_loads: tuple[ir.Load, ...]
    first: tuple[ir.Gemm, ...]
    between: tuple[ir.Node, ...]
    last_loads: tuple[ir.Load, ...]
    last: ir.Gemm


def overlap(loop: ir.For) -> Overlap | None:
    """The cut; None where the body is of another form."""
    found = ahead(loop)
    if found is None:
        return None
    head, rest = found
    products = [n for n in rest if isinstance(n, ir.Gemm)]
    if len(products) != 1 or not products[0].accumulate:
        return None
    last = products[0]
    at = rest.index(last)
    loads = tuple(n for n in rest if isinstance(n, ir.Load))
    between = tuple(n for n in rest if n is not last and not isinstance(n, ir.Load))
    operands = {last.a.tile, last.b.tile}
    for node in rest[at + 1 :]:  # what follows the last product may as well come before it
        if last.result in (*ir.reads(node), *ir.writes(node)) or operands & set(ir.writes(node)):
            return None
    needs = {t for n in between for t in ir.reads(n)}
    if any(load.tile != last.b.tile or load.tile in needs for load in loads):
        return None
    made = {t for n in between for t in ir.writes(n)} | {n.result for n in head if isinstance(n, ir.Gemm)}
    if last.a.tile not in made or last.b.tile in made:
        return None
    return Overlap(
        tuple(n for n in head if isinstance(n, ir.Load)),
        tuple(n for n in head if isinstance(n, ir.Gemm)),
        between, loads, last,
    )  # fmt: skip
