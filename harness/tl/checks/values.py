"""Owns what is known of a value on its way through a softmax: its power of scale, its maximum.

A score or a vector of maxima is a logarithm: differences of maxima add up. What `exp` gives is a
factor: products add up. In both, `parts` says how often each maximum (by a number) occurs, and under
`SUM` how often the value still has to be divided by the softmax's sum. So `exp(S - m1)` is
{SUM: 1, 1: -1}, `exp(m1 - m2)` is {1: 1, 2: -1}, their product {SUM: 1, 2: -1}, and two terms of a
sum must agree. Nothing here knows of names or of the order of statements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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
    masked: tuple[Pos, ...] = ()  # where -inf was put among the scores
    peak: bool = False  # the largest of a row of probabilities, which is no sum

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


def summed(a: Parts | None, b: Parts | None, sign: int = 1) -> Parts | None:
    if a is None or b is None:
        return None
    if not b:
        return a
    total = {key: a.get(key, 0) + sign * b.get(key, 0) for key in {*a, *b}}
    return {key: n for key, n in total.items() if n}


def shifted(a: Degree | None, b: Degree | None, times: float = 1) -> Degree | None:
    return (a[0] + times * b[0], a[1] + times * b[1]) if a is not None and b is not None else None


def joined(a: Degree | None, b: Degree | None) -> Degree | None:
    """Of two ways the one that scales too often; else only what they agree on."""
    if a is None or b is None or a == b:
        return a if a == b else None
    return max(a, b) if max(a, b)[0] > 1 else None
