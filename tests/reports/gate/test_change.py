"""By how much a case changed: identities, the band, and what the rule is worth in simulated weather."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.statistics import Change
from reports.gate.change import RULE, look, quotient, together
from reports.gate.decision import Outcome, weigh
from tests.gates import Weather, case, pair_session, ratio, session

speeds = st.floats(0.05, 20)
widths = st.floats(1e-4, 0.5)


def change(new, stored):
    return quotient(together([new]), together([stored]))


@given(speeds, speeds, widths, widths)
def test_the_change_is_the_quotient_and_both_intervals_are_in_it(new, stored, a, b):
    found = change(ratio(new, a), ratio(stored, b))
    assert found.median == pytest.approx(new / stored)
    arm = math.hypot(math.log1p(a), math.log1p(b))
    assert math.log(found.high / found.median) == pytest.approx(arm)
    assert math.log(found.median / found.low) == pytest.approx(arm)


@given(speeds, speeds, widths, widths)
def test_looking_from_the_other_side_is_the_inverse(new, stored, a, b):
    one, other = change(ratio(new, a), ratio(stored, b)), change(ratio(stored, b), ratio(new, a))
    assert one.low == pytest.approx(1 / other.high)
    assert one.high == pytest.approx(1 / other.low)


def test_the_arms_that_point_the_same_way_are_taken_together():
    new = ratio(1.0, 0.01).model_copy(update={"high": 1.2})
    stored = ratio(1.0, 0.01).model_copy(update={"low": 1 / 1.1})
    found = change(new, stored)
    assert math.log(found.high) == pytest.approx(math.hypot(math.log(1.2), math.log(1.1)))
    assert math.log(found.low) == pytest.approx(-math.hypot(math.log(1.01), math.log(1.01)))


@given(speeds, widths, st.floats(0.1, 10))
def test_a_day_on_which_everything_is_slower_changes_nothing(speed, width, day):
    """Times are ten times as long, ratios the same."""
    found = look(case(speed, width, time_ms=2.0), [case(speed, width, time_ms=2.0 * day)])
    assert found.speed.median == pytest.approx(1)


def test_the_band_is_five_percent_or_twice_the_noise_floor_of_the_noisier_session():
    assert look(case(noise=0.01), [case(noise=0.01)]).band == RULE.least == 0.05
    for stored, new in ((0.03, 0.04), (0.04, 0.03)):
        assert look(case(noise=stored), [case(noise=new)]).band == pytest.approx(2 * 0.04)


@pytest.mark.parametrize(
    ("slower_by", "half_width", "noise", "expected"),
    [
        (1.00, 0.01, 0.01, Change.SAME),
        (1.03, 0.01, 0.01, Change.SAME),  # 3 % is no change here
        (1.10, 0.01, 0.01, Change.SLOWER),
        (1.10, 0.06, 0.01, Change.UNCLEAR),  # the interval reaches the band
        (1.10, 0.01, 0.05, Change.UNCLEAR),  # twice the noise is 14 %: it might be either
        (1.00, 0.01, 0.05, Change.UNCLEAR),  # nothing could have been seen
        (1.60, 0.01, 0.05, Change.SLOWER),  # but this is beyond any noise
        (0.90, 0.01, 0.01, Change.FASTER),
    ],
)
def test_what_a_look_says(slower_by, half_width, noise, expected):
    assert look(case(0.8, half_width, noise), [case(0.8 / slower_by, half_width, noise)]).change is expected


@given(st.lists(st.tuples(speeds, widths), min_size=1, max_size=4))
def test_runs_together_are_the_mean_of_their_logarithms_and_as_sure_as_they_agree(runs):
    found = together([ratio(speed, width) for speed, width in runs])
    logs = np.log([speed for speed, _ in runs])
    assert math.log(found.median) == pytest.approx(logs.mean(), abs=1e-9)
    arm = math.log(found.high / found.median)
    assert arm >= math.hypot(*(math.log1p(width) for _, width in runs)) / len(runs) - 1e-9
    if len(runs) > 1:
        assert arm >= 1.96 * logs.std(ddof=1) / math.sqrt(len(runs)) - 1e-9


def test_four_runs_that_agree_are_twice_as_sure_as_one():
    found = together([ratio(0.8, 0.04)] * 4)
    assert math.log(found.high / found.median) == pytest.approx(math.log1p(0.04) / 2)
    assert look(case(noise=0.01), [case(noise=0.04)] * 4).noise_floor == pytest.approx(0.02, rel=0.01)


S, F, E = case(1 / 1.1), case(1.1), case()
WIDE = case(1 / 1.1, half_width=0.075)  # a tenth slower, and not to be told alone
BLIND = case(noise=0.3)


@pytest.mark.parametrize(
    ("runs", "outcome", "needed"),
    [
        ([E], Outcome.SAME, 1),
        ([S], Outcome.AGAIN, 1),
        ([S, S], Outcome.SLOWER, 2),
        ([S, E], Outcome.SAME, 2),  # the second run does not agree
        ([S, F], Outcome.AGAIN, 2),
        ([S, S, E], Outcome.SLOWER, 2),  # settled before
        ([E, S, S], Outcome.SAME, 1),  # what cleared a case is not taken back
        ([WIDE], Outcome.AGAIN, 1),
        ([WIDE, WIDE, WIDE], Outcome.SLOWER, 3),  # together they are sure
        ([F, F], Outcome.FASTER, 2),
        ([case(0.7), case(0.96), case(0.96)], Outcome.AGAIN, 3),  # one run alone convicts nobody
        ([BLIND] * 3, Outcome.AGAIN, 3),
        ([BLIND] * 4, Outcome.UNCLEAR, 4),
    ],
)
def test_runs_must_agree(runs, outcome, needed):
    found = weigh(case(), runs)
    assert (found.outcome, len(found.looks)) == (outcome, needed)


def test_without_a_run_there_is_nothing_to_weigh():
    with pytest.raises(ValueError, match="without a run"):
        weigh(case(), [])


QUIET = Weather(jitter=0.005, walk=0.0005, drift=0.02)
LOADED = Weather(jitter=0.04, walk=0.005, drift=0.15, interrupted=0.05)
HOSTED = Weather(jitter=0.02, walk=0.002, drift=0.3, interrupted=0.1, held_up=5, process=0.008)
ROUNDS = 80


def outcomes(weather: Weather, slowdown: float, comparisons: int, seed: int) -> list[Outcome]:
    """A reference is measured on one day, the kernel on another, when the machine has another speed."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(comparisons):
        stored = session(rng, weather, 1.3, day=1.0, rounds=ROUNDS)
        day, runs, outcome = rng.uniform(0.7, 1.4), [], Outcome.AGAIN
        while outcome is Outcome.AGAIN:
            runs.append(session(rng, weather, 1.3 * slowdown, day, rounds=ROUNDS))
            outcome = weigh(stored, runs).outcome
        found.append(outcome)
    return found


@pytest.mark.parametrize("weather", [QUIET, LOADED, HOSTED], ids=["quiet", "loaded", "hosted"])
def test_of_200_comparisons_of_a_kernel_with_itself_at_most_2_are_alarms(weather):
    found = outcomes(weather, 1.0, 200, seed=1)
    assert found.count(Outcome.SLOWER) <= 2
    assert found.count(Outcome.FASTER) <= 2
    assert found.count(Outcome.SAME) >= 190


@pytest.mark.parametrize("weather", [QUIET, LOADED, HOSTED], ids=["quiet", "loaded", "hosted"])
def test_of_100_slowdowns_by_a_tenth_at_least_95_are_caught(weather):
    assert outcomes(weather, 1.1, 100, seed=2).count(Outcome.SLOWER) >= 95


TILTED = [replace(weather, tilt=0.2) for weather in (QUIET, LOADED, HOSTED)]


def outcomes_beside(weather: Weather, slowdown: float, comparisons: int, seed: int) -> list[Outcome]:
    """Old and new share each session; what is stored is of a day that nobody remembers."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(comparisons):
        stored, runs, outcome = case(rng.uniform(0.5, 2), noise=0.2, sha256=case().sha256), [], Outcome.AGAIN
        while outcome is Outcome.AGAIN:
            runs.append(pair_session(rng, weather, slowdown, rounds=ROUNDS))
            outcome = weigh(stored, runs).outcome
        found.append(outcome)
    return found


@pytest.mark.parametrize("weather", TILTED, ids=["quiet", "loaded", "hosted"])
def test_of_200_comparisons_side_by_side_at_most_2_are_alarms_though_anchor_and_kernel_differ(weather):
    found = outcomes_beside(weather, 1.0, 200, seed=4)
    assert found.count(Outcome.SLOWER) <= 2
    assert found.count(Outcome.FASTER) <= 2
    assert found.count(Outcome.SAME) >= 190


@pytest.mark.parametrize("weather", TILTED, ids=["quiet", "loaded", "hosted"])
def test_of_100_slowdowns_side_by_side_at_least_95_are_caught_though_anchor_and_kernel_differ(weather):
    assert outcomes_beside(weather, 1.1, 100, seed=5).count(Outcome.SLOWER) >= 95


def test_where_the_noise_would_hide_it_nobody_is_convicted_and_nobody_cleared():
    storm = Weather(jitter=0.3, walk=0.02, interrupted=0.3)
    found = outcomes(storm, 1.0, 40, seed=3)
    assert found.count(Outcome.UNCLEAR) >= 30
    assert Outcome.SLOWER not in found
