"""Claims about intervals, paired ratios and rates, on synthetic samples with a known truth."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.measure.statistics import (
    SINGLE_PAIR_HALF_WIDTH,
    Change,
    Interval,
    StatisticsError,
    bootstrap_median,
    classify,
    clustered_bootstrap_geomean,
    fast_p,
    geomean,
    noise_floor,
    paired_ratios,
    pass_at_k,
    precise_enough,
    quantiles,
)

BLOCK_NOISE = 0.003  # of a block's median, as seen on an H100
TIMES = st.floats(1e-3, 1e3)
PAIRS = st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=20)


def device_speed(
    rng: np.random.Generator, blocks: int, *, drift: bool = True, steps: float = 0.0
) -> NDArray[np.float64]:
    """Factor on the time of each consecutive block: slow drift of 1-12 %, clock steps of 3 %, block noise."""
    at = np.arange(blocks)
    factor = np.exp(rng.normal(0, BLOCK_NOISE, blocks))
    if drift:
        swing, period = rng.uniform(0.01, 0.12), rng.uniform(60, 600)
        factor *= 1 + swing / 2 * np.sin(2 * np.pi * (at / period + rng.random()))
    if steps:
        step = np.where(rng.random(blocks) < steps, rng.choice([-0.03, 0.03], blocks), 0.0)
        factor *= 1 + np.clip(step.cumsum(), -0.06, 0.06)
    return factor


def interleaved(
    rng: np.random.Generator, rounds: int, ratio: float, *, drift: bool = True, steps: float = 0.0
) -> NDArray[np.float64]:
    """Ratios of rounds A B D D B A; B runs `ratio` times as fast as the anchor A."""
    blocks = device_speed(rng, 6 * rounds, drift=drift, steps=steps).reshape(rounds, 6)
    anchor, own = blocks[:, [0, 5]], blocks[:, [1, 4]] / ratio
    return paired_ratios([(a, b) for a, b in own], [(a, b) for a, b in anchor])


def coverage(rounds: int, runs: int, *, drift: bool, steps: float) -> float:
    rng = np.random.default_rng(rounds)
    found = (bootstrap_median(interleaved(rng, rounds, 1.3, drift=drift, steps=steps)) for _ in range(runs))
    return sum(i.low <= 1.3 <= i.high for i in found) / runs


@pytest.mark.parametrize(("drift", "steps"), [(False, 0.0), (True, 0.0), (True, 0.01)])
@pytest.mark.parametrize("rounds", [2, 3, 4, 5, 6, 7, 8, 13, 20, 40])
def test_interval_covers_the_true_ratio_at_its_nominal_rate(rounds: int, drift: bool, steps: float) -> None:
    # 600 runs at 95 %: standard error 0.9 %. 0.925 fails an honest interval once in 400.
    assert coverage(rounds, 600, drift=drift, steps=steps) >= 0.925


def test_interval_is_not_bought_by_width() -> None:
    assert coverage(20, 1500, drift=True, steps=0.0) <= 0.98


def test_stopping_at_the_first_precise_interval_keeps_coverage() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        ratios = interleaved(rng, 60, 1.3)
        seen = (bootstrap_median(ratios[:n]) for n in range(10, 61))
        last = next((i for i in seen if precise_enough(i)), bootstrap_median(ratios))
        hits += last.low <= 1.3 <= last.high
    assert hits / 400 >= 0.92


def test_one_percent_regression_is_found_interleaved_but_not_in_sequence() -> None:
    rng = np.random.default_rng(11)
    rounds, true = 30, 1 / 1.01
    found = honest = sequential = 0
    for _ in range(100):
        interval = bootstrap_median(interleaved(rng, rounds, true))
        found += interval.high < 1
        same = bootstrap_median(interleaved(rng, rounds, 1.0))
        honest += same.low <= 1 <= same.high
        times = device_speed(rng, 4 * rounds)
        anchor, own = np.split(times, 2)
        estimate = float(np.median(anchor) / np.median(own / true))
        sequential += abs(estimate - true) < 0.005
    assert found >= 95
    assert honest >= 90
    assert sequential <= 60


def test_interval_is_fast_enough_to_be_asked_after_every_round() -> None:
    values = interleaved(np.random.default_rng(0), 50, 1.0)
    best = math.inf
    for seed in range(20):  # fresh seeds: the cached ranks are not what is timed
        start = time.perf_counter()
        bootstrap_median(values, resamples=1000, seed=seed + 1000)
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3


@given(st.lists(TIMES, min_size=1, max_size=40))
def test_interval_contains_the_median_and_is_reproducible(values: list[float]) -> None:
    interval = bootstrap_median(values, resamples=200)
    assert 0 < interval.low <= interval.median <= interval.high < math.inf
    assert interval.median == pytest.approx(float(np.median(values)))
    assert interval == bootstrap_median(values, resamples=200)
    assert interval.n == len(values)


def test_a_single_pair_never_claims_precision() -> None:
    interval = bootstrap_median([1.2])
    assert interval.high / 1.2 == pytest.approx(1 + SINGLE_PAIR_HALF_WIDTH)
    assert 1.2 / interval.low == pytest.approx(1 + SINGLE_PAIR_HALF_WIDTH)
    assert not precise_enough(interval)


@pytest.mark.parametrize(
    ("values", "t"), [((1, 2), 12.706), ((1, 1, 3), 4.303), ((1, 1, 1, 3), 3.182), ((1, 1, 1, 2, 3), 2.776)]
)
def test_few_pairs_get_the_t_interval_of_their_logs(values: tuple[float, ...], t: float) -> None:
    logs = np.log(values)
    arm = t * logs.std(ddof=1) / math.sqrt(len(values))
    interval = bootstrap_median(values)
    assert math.log(interval.high) == pytest.approx(logs.mean() + arm, rel=1e-3)
    assert math.log(interval.low) == pytest.approx(logs.mean() - arm, rel=1e-3)


def test_higher_confidence_is_wider() -> None:
    values = interleaved(np.random.default_rng(5), 20, 1.0)
    widths = [bootstrap_median(values, confidence=c).half_width for c in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths) and len(set(widths)) == 3


@pytest.mark.parametrize("bad", [[], [1.0, 0.0], [1.0, -1.0], [math.nan], [math.inf]])
def test_samples_that_are_no_times_are_refused(bad: list[float]) -> None:
    for summarise in (quantiles, bootstrap_median, geomean):
        with pytest.raises(StatisticsError):
            summarise(bad)


def test_quantiles_by_hand() -> None:
    found = quantiles(range(1, 12))
    assert (found.median, found.p10, found.p90, found.n) == (6, 2, 10, 11)


@given(st.integers(2, 6), st.integers(1, 8), st.floats(-0.05, 0.05), st.data())
def test_linear_drift_cancels_whatever_the_order(
    contenders: int, rounds: int, slope: float, data: st.DataObject
) -> None:
    true = data.draw(st.lists(st.floats(0.1, 10), min_size=contenders, max_size=contenders))
    length = 2 * contenders
    blocks: list[list[tuple[float, float]]] = [[] for _ in true]
    for _ in range(rounds):
        # drift relative to the round's start, linear within it, any value from round to round
        level = data.draw(st.floats(0.5, 2))
        for c, base in enumerate(true):
            forwards, backwards = c, length - 1 - c
            blocks[c].append((base * (level + slope * forwards), base * (level + slope * backwards)))
    if min(min(pair) for track in blocks for pair in track) <= 0:
        return
    for c in range(contenders):
        assert paired_ratios(blocks[c], blocks[0]) == pytest.approx(true[0] / true[c], rel=1e-9)


@given(st.data())
def test_ratio_is_antisymmetric(data: st.DataObject) -> None:
    own = data.draw(PAIRS)
    anchor = data.draw(st.lists(st.tuples(TIMES, TIMES), min_size=len(own), max_size=len(own)))
    assert paired_ratios(own, anchor) * paired_ratios(anchor, own) == pytest.approx(1)
    assert paired_ratios(own, own) == pytest.approx(1)


def test_faster_than_the_anchor_is_above_one() -> None:
    assert paired_ratios([(1.0, 1.0)], [(2.0, 2.0)])[0] == 2


def test_blocks_of_different_rounds_are_refused() -> None:
    with pytest.raises(StatisticsError, match="same rounds"):
        paired_ratios([(1.0, 1.0)], [(1.0, 1.0), (1.0, 1.0)])


@pytest.mark.parametrize(
    ("low", "high", "noise", "change"),
    [
        (1.02, 1.04, 0.01, Change.FASTER),
        (0.96, 0.98, 0.01, Change.SLOWER),
        (0.995, 1.005, 0.01, Change.SAME),
        (1.005, 1.02, 0.01, Change.UNCLEAR),
        (0.97, 1.03, 0.01, Change.UNCLEAR),
        (1.001, 1.002, 0.0, Change.FASTER),
        (0.999, 1.001, 0.0, Change.UNCLEAR),
        (1.0, 1.0, 0.0, Change.SAME),
    ],
)
def test_change_is_judged_against_the_noise_floor(
    low: float, high: float, noise: float, change: Change
) -> None:
    assert classify(Interval((low + high) / 2, low, high, 10), noise) is change


@given(st.floats(0.5, 2), st.floats(1, 1.1), st.floats(0, 0.1))
def test_exchanging_the_sides_exchanges_faster_and_slower(low: float, width: float, noise: float) -> None:
    forward = classify(Interval(low, low, low * width, 10), noise)
    back = classify(Interval(1 / low, 1 / (low * width), 1 / low, 10), noise)
    mirror = {Change.FASTER: Change.SLOWER, Change.SLOWER: Change.FASTER}
    edges = (1 + noise, 1 / (1 + noise))
    if any(math.isclose(end, edge, rel_tol=1e-12) for end in (low, low * width) for edge in edges):
        return
    assert back is mirror.get(forward, forward)


def test_negative_noise_is_refused() -> None:
    with pytest.raises(StatisticsError, match="noise floor"):
        classify(Interval(1, 1, 1, 1), -0.1)


def test_noise_floor_is_the_farther_end_of_the_duplicate() -> None:
    assert noise_floor(Interval(1.0, 0.999, 1.002, 20)) == pytest.approx(0.002)
    assert noise_floor(Interval(1.0, 1 / 1.005, 1.002, 20)) == pytest.approx(0.005)
    assert noise_floor(Interval(1.0, 1.0, 1.0, 20)) == 0


@given(st.lists(TIMES, min_size=1, max_size=20), st.floats(1e-2, 1e2))
def test_geomean_scales_and_inverts(values: list[float], factor: float) -> None:
    mean = geomean(values)
    assert geomean([v * factor for v in values]) == pytest.approx(mean * factor)
    assert geomean([1 / v for v in values]) == pytest.approx(1 / mean)
    assert min(values) * (1 - 1e-9) <= mean <= max(values) * (1 + 1e-9)


def test_clustered_interval_is_wider_than_one_that_takes_cells_as_independent() -> None:
    rng = np.random.default_rng(2)
    tasks = {f"task{t}": list(rng.normal(0, 0.3) + rng.normal(0, 0.02, 30)) for t in range(8)}
    cells = {f"cell{n}": [x] for n, x in enumerate(itertools.chain(*tasks.values()))}
    clustered, independent = clustered_bootstrap_geomean(tasks), clustered_bootstrap_geomean(cells)
    assert clustered.geomean == pytest.approx(independent.geomean)
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)
    assert clustered.clusters == 8


@given(st.dictionaries(st.text(max_size=3), st.lists(st.floats(-3, 3), min_size=1, max_size=5), min_size=1))
def test_clustered_geomean_is_the_geomean_of_all_cells(logs: dict[str, list[float]]) -> None:
    found = clustered_bootstrap_geomean(logs, resamples=50)
    assert found.geomean == pytest.approx(geomean([math.exp(x) for cells in logs.values() for x in cells]))
    assert found.low <= found.geomean <= found.high


def test_clustered_geomean_refuses_empty_clusters_and_infinite_logs() -> None:
    bad_ones: list[dict[str, list[float]]] = [{}, {"a": []}, {"a": [0.0], "b": [-math.inf]}]
    for bad in bad_ones:
        with pytest.raises(StatisticsError):
            clustered_bootstrap_geomean(bad)


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(StatisticsError, match="pass@"):
        pass_at_k(n, c, k)


def test_fast_p_keeps_failures_in_the_denominator() -> None:
    speedups, correct = [2.0, 1.0, 3.0, None], [True, True, False, True]
    assert fast_p(speedups, correct, 0) == 0.5
    assert fast_p(speedups, correct, 1) == 0.25  # strictly faster
    assert fast_p(speedups, correct, 2) == 0
    with pytest.raises(StatisticsError):
        fast_p([], [], 1)
    with pytest.raises(StatisticsError):
        fast_p([1.0], [], 1)
