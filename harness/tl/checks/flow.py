"""Owns how values pass through operations on their way through a softmax (what a value is: `values`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from harness.tl import ir
from harness.tl.checks.values import (
    LOWEST,
    NO_DEGREE,
    PLAIN,
    SUM,
    UNKNOWN,
    Degree,
    Flow,
    Parts,
    constant,
    joined,
    shifted,
    summed,
)
from harness.tl.syntax import NOWHERE, Pos


@dataclass
class Flows:
    """The flow of expressions. `on_function` sees what enters exp and others.

    `on_mismatch` sees two terms of a sum that do not agree, `on_misuse` what no softmax does with its
    state (a word of `misuse.KINDS`), and where, if that is not here.
    """

    tiles: dict[ir.Tile, Flow]
    on_function: Callable[[str, Flow], None]
    on_mismatch: Callable[[Flow, Flow], None]
    on_misuse: Callable[[str, Pos | None], None]
    pos: Pos = NOWHERE
    _count: int = 0
    _met_as: dict[tuple[int, int], int] = field(default_factory=dict)
    _below: dict[int, frozenset[int] | None] = field(default_factory=dict)  # maxima no larger than this one
    _masks: dict[int, int] = field(default_factory=dict)  # masks of the scores it was taken from

    def fresh(self, *below: Flow, masks: int | None = None) -> Parts:
        """A maximum not met before, that is at least what is `below`, of scores masked so often."""
        self._count += 1
        smaller: set[int] | None = set()
        for flow in below:
            for key in flow.parts if flow.parts is not None else (SUM,):
                known = self._below.get(key)
                smaller = smaller | {key} | known if smaller is not None and known is not None else None
                if masks is None or self._masks.get(key, masks) < masks:
                    masks = self._masks.get(key)
        self._below[self._count] = frozenset(smaller) if smaller is not None else None
        if masks is not None:
            self._masks[self._count] = masks
        return {self._count: 1}

    def read(self, tile: ir.Tile) -> Flow:
        return self.tiles.get(tile, UNKNOWN)

    def of(self, expr: ir.Expr) -> Flow:
        match expr:
            case ir.Const(value=value):
                return constant(value)
            case ir.Ref(tile=tile):
                return self.read(tile)
            case ir.Sym(name="scale"):
                return Flow({}, degree=(1.0, 0.0))
            case ir.Sym(name="dim"):
                return Flow({}, degree=(-2.0, 0.0))
            case ir.Op(fn=fn, args=args):
                return self._apply(fn, [self.of(arg) for arg in args])
        return PLAIN

    def _apply(self, fn: str, args: list[Flow]) -> Flow:
        match fn, args:
            case "add", [first, *rest]:
                for x in rest:
                    first = self.add(first, x)
                return first
            case "sub", [a, b]:
                return self.add(a, b, -1)
            case "mul", [first, *rest]:
                for x in rest:
                    first = self.multiply(first, x)
                return first
            case "div", [a, b]:
                return self.multiply(a, b, -1)
            case (("max" | "min"), [first, *rest]):
                for x in rest:
                    first = self._extreme(first, x)
                return first
            case "where", [_, a, b]:
                return self._either(a, b)
            case "neg", [a]:
                return replace(self.add(constant(0), a, -1), const=-a.const if a.const is not None else None)
            case "reciprocal", [a]:
                return self.multiply(constant(1), a, -1)
            case (("exp" | "exp2"), [a]):
                self.on_function(fn, a)
                self._exponential(a)
                if a.factor or a.parts is None:
                    return Flow(None, True)
                parts = summed(a.parts, {SUM: 1}) if a.score else a.parts
                return Flow(parts, True, a.score, degree=NO_DEGREE)
            case (("log" | "log2"), [a]):
                if a.parts and not a.factor:
                    self.on_misuse("log", None)
                return Flow(a.parts if a.factor else None)
            case "pow", [a, b] if b.const is not None:
                return self._power(a, b.const)
            case (("sqrt" | "rsqrt"), [a]):
                return self._power(a, 0.5 if fn == "sqrt" else -0.5)
            case _, [a] if fn.startswith("cast_"):
                return a
            case _, [a]:
                self.on_function(fn, a)
                kept = fn in ("tanh", "abs", "floor")  # others may stand for the exponential
                return replace(a, parts=None if a.parts else a.parts, const=None, score=a.score and kept)
        known = all(a.parts is not None and not a.parts for a in args)
        return PLAIN if known else UNKNOWN

    def _exponential(self, a: Flow) -> None:
        """A maximum that is subtracted must be the larger one, and of the scores as they are masked."""
        if a.factor or not a.parts or SUM in a.parts:
            return
        over = [key for key, n in a.parts.items() if n > 0]
        for key in (key for key, n in a.parts.items() if n < 0):
            if a.score and len(a.masked) > self._masks.get(key, len(a.masked)):
                self.on_misuse("late mask", a.masked[-1])
            below = self._below.get(key)
            if not a.score and len(a.parts) == 2 and below is not None and not below.issuperset(over):
                self.on_misuse("not running", None)

    def add(self, a: Flow, b: Flow, sign: int = 1) -> Flow:
        if a.const is not None or b.const is not None:
            if a.const is not None and b.const is not None:
                total = a.const + sign * b.const
                return constant(total if total == total else 0.0)
            kept = replace(a if b.const is not None else b, const=None, probability=False)
            if b.const is None and sign < 0 and not b.factor:
                return replace(kept, parts=summed({}, b.parts, -1))
            return kept
        if a.factor and b.factor:
            if a.peak or b.peak:
                self.on_misuse("peak", None)
            if sign < 0 and a.parts == b.parts and a.unnormalised > 0:
                self.on_misuse("subtracted", None)
            if a.parts is not None and b.parts is not None and a.parts != b.parts:
                if a.unnormalised == b.unnormalised and a.unnormalised > 0:
                    self.on_mismatch(a, b)
                    return b
                return a if a.unnormalised > b.unnormalised else b  # a sink beside the sum
            return a if a.parts is not None else b
        if a.factor or b.factor:
            self._mixed(a, b, "mixed")
            return Flow(None, True)
        degree, shift = self._degrees(a, b)
        score = a.score or b.score
        parts, masked = summed(a.parts, b.parts, sign), a.masked or b.masked
        return Flow(
            parts, score=score, degree=degree, shift=shift, scaled=a.scaled or b.scaled, masked=masked
        )

    def _mixed(self, a: Flow, b: Flow, how: str) -> None:
        """A factor meets a logarithm where only two of a kind may meet."""
        x, y = (a, b) if a.factor else (b, a)
        if x.parts and not y.factor and (y.parts or y.score):
            self.on_misuse(how, None)

    def _degrees(self, a: Flow, b: Flow) -> tuple[Degree | None, Degree | None]:
        if a.score == b.score:
            return (a.degree if a.degree == b.degree else None), (a.shift if a.shift == b.shift else None)
        main, other = (a, b) if a.score else (b, a)
        return main.degree, other.degree if other.parts else main.shift

    def multiply(self, a: Flow, b: Flow, sign: int = 1) -> Flow:
        """a * b, or a / b where `sign` is -1."""
        if a.const == 0 or (b.const == 0 and sign > 0):
            return constant(0)
        degree = shifted(a.degree, b.degree, sign)
        shift = shifted(a.shift, b.degree, sign) if a.shift is not None else shifted(b.shift, a.degree)
        raised = b.degree is not None and b.degree[0] * sign > 0 and not b.scaled
        raised = raised or (a.degree is not None and a.degree[0] > 0 and not a.scaled)
        scaled = a.scaled + b.scaled + ((self.pos,) if raised else ())
        if a.const is not None and b.const is not None and (b.const or sign > 0):
            value = a.const * b.const if sign > 0 else a.const / b.const
            return replace(constant(value), degree=degree)
        parts: Parts | None
        if a.factor or b.factor:
            logarithm = any(x.parts and not x.factor for x in (a, b))
            vectors = [x.parts for x in (a, b) if x.parts and not x.factor and not x.score]
            if vectors:
                divides = sign < 0 and len(vectors[0]) == 1
                self.on_misuse("divided" if divides else "difference", None)
            parts = None if logarithm else summed(a.parts, b.parts, sign)
            return Flow(parts, True, a.probability or b.probability, degree=NO_DEGREE)
        parts = None if (a.parts and b.parts) or a.parts is None or b.parts is None else a.parts or b.parts
        if sign < 0 and b.parts:
            parts = None
        score = a.score or b.score
        if a.parts and b.parts and not score:
            self.on_misuse("maxima", None)
        masked = a.masked or b.masked
        return Flow(parts, score=score, degree=degree, shift=shift, scaled=scaled, masked=masked)

    def _power(self, a: Flow, exponent: float) -> Flow:
        degree = (a.degree[0] * exponent, a.degree[1] * exponent) if a.degree is not None else None
        if a.const is not None and a.const > 0:
            return replace(constant(a.const**exponent), degree=degree)
        return Flow(None if a.parts else a.parts, a.factor, score=a.score, degree=degree)

    def _extreme(self, a: Flow, b: Flow) -> Flow:
        if a.const is not None and b.const is not None:
            return constant(max(a.const, b.const))
        if b.const is not None:
            return replace(a, const=None)
        if a.const is not None:
            # the first maximum of a loop is one of its own, however it started
            return b if b.score or b.factor or not b.parts else replace(b, parts=self.fresh(b))
        if a.factor or b.factor or a.score or b.score:
            self._mixed(a, b, "maximum")
            return a if a.parts == b.parts and a.degree == b.degree else UNKNOWN
        return Flow(self.fresh(a, b), degree=a.degree if a.degree == b.degree else None)

    def _either(self, a: Flow, b: Flow) -> Flow:
        if a.const is not None and b.const is not None:
            return PLAIN
        if a.const is not None or b.const is not None:
            kept, number = (a, b.const) if b.const is not None else (b, a.const)
            hides = number is not None and number <= LOWEST and kept.score and not kept.factor
            return replace(kept, masked=(*kept.masked, self.pos)) if hides else kept
        return self.join(a, b)

    def reduce(self, fn: str, what: Flow, start: Flow | None) -> Flow:
        """A row's maximum or sum, combined with `start`."""
        if fn == "max":
            if what.factor:
                return Flow(None, True, peak=True) if what.probability else UNKNOWN
            degree = what.degree
            below: tuple[Flow, ...] = ()
            if start is not None and start.const is None:
                self._mixed(start, what, "maximum")
                degree = degree if start.degree == degree else None
                below = (start,)
            return Flow(self.fresh(*below, masks=len(what.masked)), degree=degree)
        row = (
            replace(what, probability=False)
            if what.factor
            else Flow({} if what.parts is not None else None, degree=what.degree)
        )
        return self.add(start, row) if start is not None else replace(row, const=None)

    def gemm(self, a: Flow, b: Flow) -> Flow:
        if a.factor or b.factor:
            return Flow(summed(a.parts, b.parts), True, degree=NO_DEGREE)
        known = a.parts is not None and b.parts is not None
        degree = shifted(a.degree, b.degree)
        return Flow({} if known else None, score=True, degree=degree, scaled=a.scaled + b.scaled)

    def join(self, a: Flow, b: Flow) -> Flow:
        """What holds on both ways; a number that a state starts from gives way to the state."""
        if a == b:
            return a
        for x, y in ((a, b), (b, a)):
            if x.const in (0, -math.inf) and y.const is None:
                return y
        return Flow(
            self._met(a.parts, b.parts),
            a.factor or b.factor,
            a.probability and b.probability,
            a.score or b.score,
            joined(a.degree, b.degree),
            a.shift if a.shift == b.shift else None,
            scaled=a.scaled,
            masked=min(a.masked, b.masked, key=len),
        )

    def _met(self, a: Parts | None, b: Parts | None) -> Parts | None:
        """Parts relative to one maximum or another are relative to the one of the way that was taken."""
        if a is None or b is None or a == b:
            return a if a == b else None
        ones, others = ([key for key in x if key != SUM] for x in (a, b))
        if len(ones) != 1 or len(others) != 1:
            return None
        (one,), (other,) = ones, others
        if a[one] != b[other] or a.get(SUM) != b.get(SUM):
            return None
        if (one, other) not in self._met_as:
            self._met_as[one, other] = next(iter(self.fresh(UNKNOWN)))
        return {**({SUM: a[SUM]} if SUM in a else {}), self._met_as[one, other]: a[one]}
