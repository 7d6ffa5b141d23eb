"""Owns masks as limits on columns: the first or the last that a row keeps, linear in the row.

A tile's columns lie in registers at known places, so a comparison with a limit of the row costs one
instruction; comparing positions element by element builds them first (+300 instructions a tile on an H100).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.tl import ir
from harness.tl.lower.peel import NotLinear, atoms, expression, poly, slack_of

Side = Literal["until", "since"]


@dataclass(frozen=True, slots=True)
class Limit:
    """Row r keeps its columns until (or since) number `at + slope * r`, that one included."""

    side: Side
    at: ir.Expr
    slope: int


def limits(cond: ir.Expr) -> tuple[Limit, ...] | None:
    """The condition as limits that must all hold; None where it is not of that form."""
    try:
        found = [_limit(atom) for atom in atoms(cond)]
    except NotLinear:
        return None
    return tuple(found)


def _limit(atom: ir.Expr) -> Limit:
    rest = slack_of(atom)
    slopes = {0: 0, 1: 0}
    for place in [s for product in rest for s in product if isinstance(s, ir.Place)]:
        factor = rest.pop((place,), 0)
        if any(place in product for product in rest):
            raise NotLinear
        slopes[place.axis] += factor
        for product, coefficient in poly(place.base).items():
            rest[product] = rest.get(product, 0) + factor * coefficient
    rest = {product: coefficient for product, coefficient in rest.items() if coefficient}
    if slopes[1] == -1:  # column <= slope * row + rest
        return Limit("until", expression(rest), slopes[0])
    if slopes[1] == 1:  # column >= -slope * row - rest
        return Limit("since", expression({p: -c for p, c in rest.items()}), -slopes[0])
    raise NotLinear
