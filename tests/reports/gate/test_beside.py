"""A kernel beside its old self: paired round by round, of one session only, and by one clock."""

from __future__ import annotations

import pytest

from harness.measure.statistics import bootstrap_median, paired_ratios
from harness.records import Block, CandidateRecord, Measurement, Ratio, Result, Summary
from harness.verdicts import Verdict
from reports.gate.beside import old_self, parted, speed_over
from tests.gates import ratio

NOISE = ratio(1.0, 0.01)
TIMES = [(1.0, 1.1), (2.0, 2.2), (1.5, 1.4), (1.2, 1.2), (3.0, 3.1), (1.0, 1.0), (1.0, 1.05)]


def measurement(times=TIMES, slower: float = 1.0, clock: str = "wall", noise: Ratio = NOISE) -> Measurement:
    """Blocks of rounds; the anchor took 1 ms in each."""
    blocks = [
        Block(round=n, started_s=0.0, iterations=1, median_ms=ms * slower)
        for n, pair in enumerate(times)
        for ms in pair
    ]
    i = bootstrap_median(
        paired_ratios([(a * slower, b * slower) for a, b in times], [(1.0, 1.0)] * len(times))
    )
    own = Ratio(anchor="sdpa-flash", median=i.median, low=i.low, high=i.high, pairs=i.n, stopped="time_cap")
    return Measurement(
        clock=clock, captured=False, device_time=Summary(median_ms=1.2, p10_ms=1.0, p90_ms=3.0, samples=14),
        ratio=own, noise=noise, blocks=tuple(blocks), tflops=1.0, gbytes_per_s=1.0,
    )  # fmt: skip


def result(measured: Measurement | None, verdict: Verdict = Verdict.OK, reason: str = "") -> Result:
    record = CandidateRecord.model_construct(name="mine@reference", sha256="a" * 64)
    return Result.model_construct(candidate=record, verdict=verdict, reason=reason, measurement=measured)


def test_what_a_round_did_to_both_is_not_in_their_ratio():
    """From round to round the machine is up to three times as slow, which the ratio over the anchor shows."""
    new, old = measurement(slower=1.1), measurement()
    assert new.ratio.high / new.ratio.low > 1.3
    found = speed_over(new, old, "old")
    assert (found.median, found.low, found.high) == pytest.approx((1 / 1.1,) * 3)
    assert (found.anchor, found.pairs) == ("old", len(TIMES))


def test_by_kernel_records_it_is_the_quotient_of_the_ratios_over_the_anchor():
    new, old = measurement(slower=1.1, clock="kernel_records"), measurement(clock="kernel_records")
    found = speed_over(new, old, "old")
    assert found.median == pytest.approx(1 / 1.1)
    assert found.low < new.ratio.low / new.ratio.median * found.median  # both intervals are in it


def test_a_round_that_one_of_them_did_not_end_does_not_count():
    new, old = measurement(slower=1.1), measurement()
    cut = old.model_copy(update={"blocks": old.blocks[:-1]})
    assert speed_over(new, cut, "old").pairs == len(TIMES) - 1


def test_of_two_sessions_no_ratio_is_made():
    new, old = result(measurement(slower=1.1)), result(measurement(noise=ratio(1.0, 0.02)))
    assert parted(new, old)
    found = old_self(new, old)
    assert (found.speed, found.time_ms) == (None, None)
    assert "did not share a session" in found.reason
    assert not parted(new, result(measurement()))
    assert old_self(new, result(measurement())).speed.median == pytest.approx(1 / 1.1)


@pytest.mark.parametrize(
    ("old", "says"),
    [
        (result(None, Verdict.TIMEOUT, "too long"), "timeout: too long"),
        (result(measurement(), Verdict.IMPOSSIBLE, "faster than can be"), "impossible: faster"),
        (result(measurement(clock="graph_events")), "timed by graph_events, the kernel of now by wall"),
    ],
)
def test_an_old_self_that_cannot_be_compared_says_why(old, says):
    new = result(measurement())
    assert not parted(new, old)
    found = old_self(new, old)
    assert found.speed is None and found.sha256 == "a" * 64
    assert says in found.reason
