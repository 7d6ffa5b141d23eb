"""Owns what samples say: medians, paired ratios, intervals, rates; pure functions, no clock, no records.

Every function is deterministic (explicit seeds). Ratios are anchor time over own time, so
above 1 is faster than the anchor. Relative figures are fractions: 0.002 is 0.2 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Below this many pairs order statistics cannot reach 95 % (the range of 5 covers 93.75 %), so the
# t-interval of the log ratios is used instead.
FEWEST_FOR_BOOTSTRAP = 6

# Half-width of the interval around a single ratio: one pair says nothing about its own noise, and the
# worst ratio of a kernel against itself seen without interleaving on an H100 was 0.878.
SINGLE_PAIR_HALF_WIDTH = 0.15

TARGET_HALF_WIDTH = 0.002


class StatisticsError(ValueError):
    """Samples that cannot be summarised; the text says which and why."""


@dataclass(frozen=True)
class Quantiles:
    """Order statistics of samples, in milliseconds; percentiles interpolate linearly."""

    median: float
    p10: float
    p90: float
    n: int


@dataclass(frozen=True)
class Interval:
    """A median with the interval that contains it; `n` values stand behind it."""

    median: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """The longer arm over the median: a fraction."""
        return max(self.high - self.median, self.median - self.low) / self.median


@dataclass(frozen=True)
class GeomeanInterval:
    """A geometric mean with the interval that contains it."""

    geomean: float
    low: float
    high: float
    clusters: int


class Change(StrEnum):
    """What a ratio's interval says beside the session's noise."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNCLEAR = "unclear"


def quantiles(samples_ms: ArrayLike) -> Quantiles:
    """Median, 10th and 90th percentile of times in ms; raises StatisticsError for none or bad ones."""
    samples = _positive(samples_ms, "samples")
    p10, median, p90 = np.quantile(samples, (0.1, 0.5, 0.9))
    return Quantiles(float(median), float(p10), float(p90), samples.size)


def paired_ratios(
    self_blocks: Sequence[tuple[float, float]], anchor_blocks: Sequence[tuple[float, float]]
) -> FloatArray:
    """One anchor/self ratio per mirrored round, shape (rounds,).

    A round visits all contenders forwards and then backwards (A B D D B A), so each has two
    block medians (ms) whose mean lies at the same point in time for all of them: a drift
    that is linear over the round cancels exactly, whatever the contenders' positions.
    """
    own, anchor = _positive(self_blocks, "blocks"), _positive(anchor_blocks, "anchor blocks")
    if own.shape != anchor.shape or own.ndim != 2 or own.shape[1] != 2:
        raise StatisticsError(
            f"blocks of shape {own.shape} and {anchor.shape}: both must be (rounds, 2), of the same rounds"
        )
    return np.asarray(anchor.mean(axis=1) / own.mean(axis=1), dtype=np.float64)


def bootstrap_median(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The median of positive `values` and its confidence interval.

    From 6 values on: the smoothed bootstrap, which resamples the linearly interpolated
    empirical distribution. The plain one resamples the values themselves and its interval
    can only end on one of them: its coverage jumps between 0.88 (n = 7) and 0.97, where this
    one stays within 0.945-0.975 (Hutson 1999, fractional order statistics). The rank of the
    median of n draws is Beta((n+1)/2, (n+1)/2) distributed, so no resample is ever built.

    2 to 5 values: the t-interval of the logarithms, widened where it misses the median.
    1 value: the value +-15 % (SINGLE_PAIR_HALF_WIDTH), a convention rather than an estimate.
    """
    data = np.sort(_positive(values, "values").ravel())
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence {confidence} must lie between 0 and 1")
    n, median = data.size, float(np.median(data))
    if n == 1:
        factor = 1 + SINGLE_PAIR_HALF_WIDTH
        return Interval(median, median / factor, median * factor, 1)
    if n < FEWEST_FOR_BOOTSTRAP:
        logs = np.log(data)
        arm = _student_t(confidence, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
        low, high = math.exp(float(logs.mean()) - arm), math.exp(float(logs.mean()) + arm)
    else:
        ranks = _median_rank_bounds(n, confidence, resamples, seed)
        low, high = (float(x) for x in np.interp(ranks, np.arange(1, n + 1), data))
    return Interval(median, min(low, median), max(high, median), n)


@lru_cache(maxsize=1024)
def _median_rank_bounds(n: int, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """1-based fractional ranks between which the median of n resampled values falls."""
    uniform = np.random.default_rng(seed).beta((n + 1) / 2, (n + 1) / 2, size=resamples)
    low, high = np.quantile(uniform, ((1 - confidence) / 2, (1 + confidence) / 2)) * (n + 1)
    return float(low), float(high)


def _student_t(confidence: float, df: int) -> float:
    """Two-sided Student t quantile for 1 to 4 degrees of freedom, by bisection of the closed forms."""

    def inside(t: float) -> float:  # P(|T| < t)
        angle = math.atan(t / math.sqrt(df))
        sine, cosine = math.sin(angle), math.cos(angle)
        if df == 1:
            return 2 / math.pi * angle
        if df == 2:
            return sine
        if df == 3:
            return 2 / math.pi * (angle + sine * cosine)
        return sine * (1 + cosine**2 / 2)

    low, high = 0.0, 1.0
    while inside(high) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return high


def precise_enough(interval: Interval, half_width: float = TARGET_HALF_WIDTH) -> bool:
    """Whether both arms of the interval lie within `half_width` of the median.

    Stopping at the first narrow interval favours those that are narrow by luck, so a
    session asks for a fewest number of rounds as well: in simulation at 0.3 % block noise
    and slow drift, intervals at the stop cover 95 % with 10 rounds or more, 94 % with 6,
    92 % with 4.
    """
    return interval.half_width <= half_width


def noise_floor(duplicate: Interval) -> float:
    """The fraction by which the anchor differed from its own duplicate: the interval end farthest from 1."""
    return max(duplicate.high, 1 / duplicate.low) - 1


def classify(interval: Interval, noise_floor: float) -> Change:
    """What a ratio's interval says beside noise of +-`noise_floor` (a fraction, 0 or more).

    The band of noise is [1 / (1 + noise_floor), 1 + noise_floor], symmetric in ratios.
    FASTER: the whole interval lies above the band; SLOWER: below it; SAME: inside it;
    UNCLEAR: it crosses an edge, so more samples could decide either way.
    """
    if noise_floor < 0 or not math.isfinite(noise_floor):
        raise StatisticsError(f"noise floor {noise_floor} must be a fraction, 0 or more")
    upper = 1 + noise_floor
    lower = 1 / upper
    if interval.low > upper:
        return Change.FASTER
    if interval.high < lower:
        return Change.SLOWER
    if lower <= interval.low and interval.high <= upper:
        return Change.SAME
    return Change.UNCLEAR


def geomean(values: ArrayLike) -> float:
    """Geometric mean of positive values, computed in log space."""
    return math.exp(float(np.log(_positive(values, "values")).mean()))


def clustered_bootstrap_geomean(
    log_ratios: Mapping[str, Sequence[float]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> GeomeanInterval:
    """Geometric mean over all cells, with an interval that resamples whole clusters (tasks).

    `log_ratios` holds natural logarithms of ratios by cluster. Cells of one task move
    together, so resampling cells as if they were independent would flatter the interval.
    Each cell weighs the same. With a single cluster its cells are resampled, and the
    interval then speaks of that task only.
    """
    clusters = [np.asarray(cells, dtype=np.float64) for cells in log_ratios.values()]
    if not clusters or any(cells.size == 0 for cells in clusters):
        raise StatisticsError("geomean over clusters needs at least one ratio in each cluster")
    if not all(np.isfinite(cells).all() for cells in clusters):
        raise StatisticsError("logarithms of ratios must be finite; count failures outside the mean")
    units = clusters if len(clusters) > 1 else [np.array([x]) for x in clusters[0]]
    sums = np.array([cells.sum() for cells in units])
    sizes = np.array([cells.size for cells in units])
    draws = np.random.default_rng(seed).integers(len(units), size=(resamples, len(units)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    centre = float(sums.sum() / sizes.sum())
    low, high = np.quantile(means, ((1 - confidence) / 2, (1 + confidence) / 2))
    return GeomeanInterval(
        math.exp(centre), math.exp(min(float(low), centre)), math.exp(max(float(high), centre)), len(clusters)
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that one of k samples is right, from c right of n (Chen et al. 2021, eq. 1)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise StatisticsError(f"pass@{k} from {c} right of {n}: needs right <= samples and 1 <= k <= samples")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def fast_p(speedups: Sequence[float | None], correct: Sequence[bool], p: float) -> float:
    """Share of all tasks that are correct and more than p times as fast (KernelBench's fast_p).

    `speedups` is None where nothing was measured; such a task counts in the denominator only.
    """
    if not speedups or len(speedups) != len(correct):
        raise StatisticsError(f"fast_p needs one of each per task, not {len(speedups)} and {len(correct)}")
    hits = sum(ok and s is not None and s > p for s, ok in zip(speedups, correct, strict=True))
    return hits / len(speedups)


def _positive(values: ArrayLike, what: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise StatisticsError(f"no {what} to summarise")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise StatisticsError(f"{what} must be positive and finite")
    return array
