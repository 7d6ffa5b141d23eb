"""Owns what is known of a value on its way through a softmax: its power of scale, its maximum.

A score or a vector of maxima is a logarithm: differences of maxima add up. What `exp` gives is a
factor: products add up. In both, `parts` says how often each maximum (by a number) occurs, and under
`SUM` how often the value still has to be divided by the softmax's sum. So `exp(S - m1)` is
{SUM: 1, 1: -1}, `exp(m1 - m2)` is {1: 1, 2: -1}, their product {SUM: 1, 2: -1}, and two terms of a
sum must agree. Nothing here knows of names or of the order of statements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from harness.tl import ir
from harness.tl.syntax import NOWHERE, Pos

SUM = 0  # the key of `parts` for what is not divided by the sum yet
LOWEST = -1e4  # a start of the maximum at or below this serves as -inf
Parts = Mapping[int, int]
Degree = tuple[float, float]  # powers of scale and of log2(e)
NO_DEGREE: Degree = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Flow:
    """A value. None: not known. `score`: a matrix of products of queries and keys, before exp."""

    parts: Parts | None = None
    factor: bool = False  # what exp gave, not a logarithm
    probability: bool = False  # what exp made of scores, at most multiplied since
    score: bool = False
    degree: Degree | None = None
    shift: Degree | None = None  # degree of the maximum subtracted from the scores
    const: float | None = None  # the same number everywhere
    origin: Pos = NOWHERE  # where that number was given
    scaled: tuple[Pos, ...] = ()  # where a power of scale was multiplied

    @property
    def unnormalised(self) -> int:
        return self.parts.get(SUM, 0) if self.parts is not None else 0


PLAIN = Flow({}, degree=NO_DEGREE)
UNKNOWN = Flow()


def constant(value: float, origin: Pos = NOWHERE) -> Flow:
    power = 0.0
    if math.isclose(value, math.log2(math.e), rel_tol=1e-3):
        power = 1.0
    elif math.isclose(value, math.log(2), rel_tol=1e-3):
        power = -1.0
    return Flow({}, degree=(0.0, power), const=float(value), origin=origin)


def _sum(a: Parts | None, b: Parts | None, sign: int = 1) -> Parts | None:
    if a is None or b is None:
        return None
    if not b:
        return a
    total = {key: a.get(key, 0) + sign * b.get(key, 0) for key in {*a, *b}}
    return {key: n for key, n in total.items() if n}


def _shifted(a: Degree | None, b: Degree | None, times: float = 1) -> Degree | None:
    return (a[0] + times * b[0], a[1] + times * b[1]) if a is not None and b is not None else None


@dataclass
class Flows:
    """The flow of expressions. `on_function` sees what enters exp and others.

    `on_mismatch` sees two terms of a sum that do not agree, `on_logarithm` a product that lacks an exp.
    """

    tiles: dict[ir.Tile, Flow]
    on_function: Callable[[str, Flow], None]
    on_mismatch: Callable[[Flow, Flow], None]
    on_logarithm: Callable[[], None]
    pos: Pos = NOWHERE
    _count: int = 0
    _met_as: dict[tuple[int, int], int] = field(default_factory=dict)

    def fresh(self) -> Parts:
        """A maximum not met before."""
        self._count += 1
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
                if a.factor or a.parts is None:
                    return Flow(None, True)
                parts = _sum(a.parts, {SUM: 1}) if a.score else a.parts
                return Flow(parts, True, a.score, degree=NO_DEGREE)
            case (("log" | "log2"), [a]):
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

    def add(self, a: Flow, b: Flow, sign: int = 1) -> Flow:
        if a.const is not None or b.const is not None:
            if a.const is not None and b.const is not None:
                total = a.const + sign * b.const
                return constant(total if total == total else 0.0)
            kept = replace(a if b.const is not None else b, const=None, probability=False)
            if b.const is None and sign < 0 and not b.factor:
                return replace(kept, parts=_sum({}, b.parts, -1))
            return kept
        if a.factor and b.factor:
            if a.parts is not None and b.parts is not None and a.parts != b.parts:
                if a.unnormalised == b.unnormalised and a.unnormalised > 0:
                    self.on_mismatch(a, b)
                    return b
                return a if a.unnormalised > b.unnormalised else b  # a sink beside the sum
            return a if a.parts is not None else b
        if a.factor or b.factor:
            return Flow(None, True)
        degree, shift = self._degrees(a, b)
        score = a.score or b.score
        parts = _sum(a.parts, b.parts, sign)
        return Flow(parts, score=score, degree=degree, shift=shift, scaled=a.scaled or b.scaled)

    def _degrees(self, a: Flow, b: Flow) -> tuple[Degree | None, Degree | None]:
        if a.score == b.score:
            return (a.degree if a.degree == b.degree else None), (a.shift if a.shift == b.shift else None)
        main, other = (a, b) if a.score else (b, a)
        return main.degree, other.degree if other.parts else main.shift

    def multiply(self, a: Flow, b: Flow, sign: int = 1) -> Flow:
        """a * b, or a / b where `sign` is -1."""
        if a.const == 0 or (b.const == 0 and sign > 0):
            return constant(0)
        degree = _shifted(a.degree, b.degree, sign)
        shift = _shifted(a.shift, b.degree, sign) if a.shift is not None else _shifted(b.shift, a.degree)
        raised = b.degree is not None and b.degree[0] * sign > 0 and not b.scaled
        raised = raised or (a.degree is not None and a.degree[0] > 0 and not a.scaled)
        scaled = a.scaled + b.scaled + ((self.pos,) if raised else ())
        if a.const is not None and b.const is not None and (b.const or sign > 0):
            value = a.const * b.const if sign > 0 else a.const / b.const
            return replace(constant(value), degree=degree)
        parts: Parts | None
        if a.factor or b.factor:
            logarithm = any(x.parts and not x.factor for x in (a, b))
            if any(x.parts and len(x.parts) > 1 and not x.factor and not x.score for x in (a, b)):
                self.on_logarithm()
            parts = None if logarithm else _sum(a.parts, b.parts, sign)
            return Flow(parts, True, a.probability or b.probability, degree=NO_DEGREE)
        parts = None if (a.parts and b.parts) or a.parts is None or b.parts is None else a.parts or b.parts
        if sign < 0 and b.parts:
            parts = None
        return Flow(parts, score=a.score or b.score, degree=degree, shift=shift, scaled=scaled)

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
            return b if b.score or b.factor or not b.parts else replace(b, parts=self.fresh())
        if a.factor or b.factor or a.score or b.score:
            return a if a.parts == b.parts and a.degree == b.degree else UNKNOWN
        return Flow(self.fresh(), degree=a.degree if a.degree == b.degree else None)

    def _either(self, a: Flow, b: Flow) -> Flow:
        if a.const is not None and b.const is not None:
            return PLAIN
        if a.const is not None or b.const is not None:
            return a if b.const is not None else b
        return self.join(a, b)

    def reduce(self, fn: str, what: Flow, start: Flow | None) -> Flow:
        """A row's maximum or sum, combined with `start`."""
        if fn == "max":
            degree = what.degree
            if start is not None and start.const is None and start.degree != degree:
                degree = None
            return Flow(self.fresh(), degree=degree) if not what.factor else UNKNOWN
        row = (
            replace(what, probability=False)
            if what.factor
            else Flow({} if what.parts is not None else None, degree=what.degree)
        )
        return self.add(start, row) if start is not None else replace(row, const=None)

    def gemm(self, a: Flow, b: Flow) -> Flow:
        if a.factor or b.factor:
            return Flow(_sum(a.parts, b.parts), True, degree=NO_DEGREE)
        known = a.parts is not None and b.parts is not None
        degree = _shifted(a.degree, b.degree)
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
            _joined(a.degree, b.degree),
            a.shift if a.shift == b.shift else None,
            scaled=a.scaled,
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
            self._met_as[one, other] = next(iter(self.fresh()))
        return {**({SUM: a[SUM]} if SUM in a else {}), self._met_as[one, other]: a[one]}


def _joined(a: Degree | None, b: Degree | None) -> Degree | None:
    """Of two ways the one that scales too often; else only what they agree on."""
    if a is None or b is None or a == b:
        return a if a == b else None
    return max(a, b) if max(a, b)[0] > 1 else None
