"""Owns the study's few figures: medians of samples that took turns, their ratio with its spread, a straight line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def middle(times: Sequence[float]) -> float:
    return statistics.median(times)


def ratio(over: Sequence[float], own: Sequence[float]) -> float:
    """How much faster one's own is, above 1; the median of the rounds' ratios, since a round's clock is one."""
    return statistics.median(a / b for a, b in zip(over, own, strict=True))


def spread(over: Sequence[float], own: Sequence[float]) -> float:
    """Half of what the middle half of the rounds' ratios spans."""
    quarters = statistics.quantiles([a / b for a, b in zip(over, own, strict=True)], n=4)
    return (quarters[2] - quarters[0]) / 2


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where the straight line of least squares begins, and its slope."""
    xs, ys = zip(*points, strict=True)
    found = statistics.linear_regression(xs, ys)
    return found.intercept, found.slope
