"""Speedups compose with their intervals; failures stay in the denominators."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records import Ratio, Result
from harness.verdicts import Stage, Verdict
from reports.conditions import noise_floor, time_spent
from reports.dataset import Cell, group_cells, label_rows, load_run
from reports.figures import (
    FAILED_SPEEDUP,
    Estimate,
    Standing,
    best_baseline,
    compose,
    fastest,
    geomean,
    geomean_estimate,
    headline,
    product,
    read_standing,
    speedup,
)
from reports.funnel import failures, funnel
from tests.reports import synthetic

W = synthetic.workload(4096)


def measured(name: str, kind: str, tflops: float, over: Ratio, device: str = "") -> Result:
    env = synthetic.environment(device=device) if device else None
    m = synthetic.measurement(W, name, "h100", tflops, over)
    return synthetic.result("mha", W, synthetic.candidate(name, kind), Verdict.OK, m, env=env)


def cell_of(*results: Result) -> Cell:
    (cell,) = group_cells(label_rows(enumerate(results, start=1)))
    return cell


def test_with_a_common_anchor_ratios_divide_and_intervals_add_in_quadrature() -> None:
    cell = cell_of(
        measured("anchor", "baseline", 400, synthetic.ratio("anchor", 1.0)),
        measured(
            "best",
            "baseline",
            500,
            Ratio(anchor="anchor", median=1.25, low=1.2, high=1.3, pairs=9, stopped="precise"),
        ),
        measured(
            "mine",
            "candidate",
            550,
            Ratio(anchor="anchor", median=1.4, low=1.37, high=1.45, pairs=9, stopped="precise"),
        ),
    )
    found = speedup(cell, cell.candidates[0])
    assert found is not None and found.baseline.contender == "best" and found.paired
    assert found.estimate.median == pytest.approx(1.4 / 1.25)
    up = math.hypot(math.log(1.45 / 1.4), math.log(1.25 / 1.2))  # ours high, theirs low
    down = math.hypot(math.log(1.4 / 1.37), math.log(1.3 / 1.25))
    assert found.estimate.high == pytest.approx(1.4 / 1.25 * math.exp(up))
    assert found.estimate.low == pytest.approx(1.4 / 1.25 * math.exp(-down))


def test_over_the_anchor_itself_the_paired_ratio_stands_as_measured() -> None:
    own = Ratio(anchor="anchor", median=1.0004, low=0.99, high=1.01, pairs=9, stopped="precise")
    mine = Ratio(anchor="anchor", median=0.8, low=0.79, high=0.82, pairs=9, stopped="precise")
    cell = cell_of(measured("anchor", "baseline", 400, own), measured("mine", "candidate", 320, mine))
    found = speedup(cell, cell.candidates[0])
    assert found is not None
    e = found.estimate
    assert (e.median, e.low, e.high) == pytest.approx((0.8, 0.79, 0.82))


def test_different_anchors_compose_through_the_record_that_links_them() -> None:
    cell = cell_of(
        measured("a", "baseline", 400, synthetic.ratio("a", 1.0)),
        measured("b", "baseline", 600, synthetic.ratio("a", 1.5)),
        measured("c", "baseline", 300, synthetic.ratio("b", 0.5)),
        measured("mine", "candidate", 440, synthetic.ratio("a", 1.1)),
    )
    rows = {r.contender: r for r in cell.rows}
    composed = compose(cell, rows["mine"], rows["c"])
    assert composed is not None
    assert composed[0].median == pytest.approx(1.1 / 1.5 / 0.5)
    assert composed[1]


def test_two_candidates_compare_through_their_anchors() -> None:
    cell = cell_of(
        measured("a", "baseline", 400, synthetic.ratio("a", 1.0)),
        measured("b", "baseline", 600, synthetic.ratio("a", 1.5)),
        measured("mine", "candidate", 440, synthetic.ratio("a", 1.1)),
        measured("yours", "candidate", 480, synthetic.ratio("b", 0.8)),
        measured("theirs", "candidate", 200, synthetic.ratio("a", 0.5)),
    )
    rows = {r.contender: r for r in cell.rows}
    near, far = compose(cell, rows["mine"], rows["theirs"]), compose(cell, rows["mine"], rows["yours"])
    assert near is not None and near[1] and near[0].median == pytest.approx(1.1 / 0.5)
    assert far is not None and far[1] and far[0].median == pytest.approx(1.1 / (0.8 * 1.5))
    back = compose(cell, rows["yours"], rows["mine"])
    assert back is not None
    assert (back[0].low, back[0].high) == pytest.approx((1 / far[0].high, 1 / far[0].low))
    best = fastest(cell, cell.candidates)
    assert best is not None and best.contender == "yours"


def test_without_a_link_device_times_are_divided_and_flagged() -> None:
    cell = cell_of(
        measured("a", "baseline", 400, synthetic.ratio("x", 1.3)),
        measured("mine", "candidate", 500, synthetic.ratio("y", 0.9)),
    )
    found = speedup(cell, cell.candidates[0])
    assert found is not None
    assert not found.paired and found.how == "not paired"
    assert found.estimate.median == pytest.approx(500 / 400)
    assert found.estimate.low < 1.25 * 0.985 and found.estimate.high > 1.25 * 1.01


def test_ratios_of_different_environments_are_not_paired() -> None:
    cell = cell_of(
        measured("a", "baseline", 400, synthetic.ratio("a", 1.0)),
        measured("b", "baseline", 440, synthetic.ratio("a", 1.1)),
        measured("mine", "candidate", 500, synthetic.ratio("a", 1.2), device="another H100"),
    )
    found = speedup(cell, cell.candidates[0])
    assert found is not None and not found.paired
    assert found.estimate.median == pytest.approx(500 / 440)


def test_a_candidate_is_paired_with_its_own_anchor_wherever_that_was_timed_alone() -> None:
    """On a machine that is 3 % faster the quotient of device times would say 1.13."""
    cell = cell_of(
        measured("a", "baseline", 400, synthetic.ratio("a", 1.0)),
        measured("mine", "candidate", 452, synthetic.ratio("a", 1.1), device="another H100"),
    )
    found = speedup(cell, cell.candidates[0])
    assert found is not None and found.paired
    assert found.estimate.median == pytest.approx(1.1)
    back = compose(cell, cell.baselines[0], cell.candidates[0])
    assert back is not None and back[1] and back[0].median == pytest.approx(1 / 1.1)


def test_a_record_of_another_environment_links_nothing() -> None:
    cell = cell_of(
        measured("a", "baseline", 400, synthetic.ratio("a", 1.0)),
        measured("b", "baseline", 600, synthetic.ratio("a", 1.5), device="another H100"),
        measured("c", "baseline", 300, synthetic.ratio("b", 0.5)),
        measured("mine", "candidate", 440, synthetic.ratio("a", 1.1)),
    )
    rows = {r.contender: r for r in cell.rows}
    composed = compose(cell, rows["mine"], rows["c"])
    assert composed is not None and not composed[1]


def test_a_library_behind_a_candidate_earns_no_speedup_however_fast_it_was() -> None:
    over = synthetic.ratio("a", 1.5)
    fast = synthetic.result(
        "mha",
        W,
        synthetic.candidate("mine"),
        Verdict.LIBRARY_DISPATCH,
        synthetic.measurement(W, "mine", "h100", 600, over),
    )
    cell = cell_of(measured("a", "baseline", 400, synthetic.ratio("a", 1.0)), fast)
    assert speedup(cell, cell.candidates[0]) is None
    assert headline("mine", "mha", [cell]).measured == 0


def test_the_best_baseline_is_the_one_with_the_best_paired_ratio_not_the_luckiest_time() -> None:
    cell = cell_of(
        measured("a", "baseline", 410, synthetic.ratio("a", 1.0)),  # a boosted session: time looks better
        measured("b", "baseline", 400, synthetic.ratio("a", 1.05)),
    )
    best = best_baseline(cell)
    assert best is not None and best.contender == "b"


ratios = st.floats(0.05, 20)
widths = st.floats(0, 0.2)


@given(st.lists(st.tuples(ratios, widths, widths), min_size=1, max_size=6))
def test_intervals_contain_their_median_and_composition_never_narrows(
    parts: list[tuple[float, float, float]],
) -> None:
    estimates = [Estimate(m, m * (1 - lo), m * (1 + hi)) for m, lo, hi in parts]
    whole = product(estimates)
    assert whole.low <= whole.median * (1 + 1e-12) and whole.median <= whole.high * (1 + 1e-12)
    widest = max(e.high / e.median for e in estimates)
    assert whole.high / whole.median >= widest * (1 - 1e-12)
    mean = geomean_estimate(estimates)
    assert mean.median == pytest.approx(geomean(e.median for e in estimates))


@given(st.lists(ratios, min_size=1), ratios)
def test_geomean_scales_and_inverts(values: list[float], factor: float) -> None:
    assert geomean(v * factor for v in values) == pytest.approx(factor * geomean(values))
    assert geomean(1 / v for v in values) == pytest.approx(1 / geomean(values))


def test_geomean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        geomean([])


def test_standing_needs_the_whole_interval_beyond_the_noise() -> None:
    assert read_standing(Estimate(1.01, 1.008, 1.012), 0.002) is Standing.FASTER
    assert read_standing(Estimate(1.01, 1.008, 1.012), 0.03) is not Standing.FASTER
    assert read_standing(Estimate(0.98, 0.97, 0.99), 0.002) is Standing.SLOWER
    assert read_standing(Estimate(1.001, 0.997, 1.004), 0.002) is Standing.SAME
    assert read_standing(Estimate(1.02, 0.98, 1.05), 0.002) is Standing.UNCLEAR


def test_failures_stay_in_the_denominator(tmp_path: Path) -> None:
    run = load_run(synthetic.tiny_run(tmp_path / "run"))
    broken = headline("broken", "mha_causal", run.cells)
    assert (broken.measured, broken.cells) == (1, 2)
    assert broken.geomean is not None
    assert broken.geomean.median == pytest.approx(300 / 600)
    assert broken.geomean_failures_counted == pytest.approx(math.sqrt(0.5 * FAILED_SPEEDUP))
    mine = headline("mine", "mha_causal", run.cells)
    assert mine.geomean is not None
    assert mine.geomean.median == pytest.approx(math.sqrt(300 / 400 * 630 / 600))
    assert mine.faster == 1


def test_infra_and_proven_and_library_dispatch_are_told_apart() -> None:
    base = measured("a", "baseline", 400, synthetic.ratio("a", 1.0))
    verdicts = (Verdict.INFRA, Verdict.PROVEN, Verdict.LIBRARY_DISPATCH)
    others = [synthetic.result("mha", W, synthetic.candidate(v.value), v, None) for v in verdicts]
    cell = cell_of(base, *others)
    infra, proven, dispatch = (headline(v.value, "mha", [cell]) for v in verdicts)
    assert (infra.cells, infra.not_counted) == (0, 1)
    assert (proven.cells, proven.proven) == (0, 1)
    assert (dispatch.cells, dispatch.measured) == (1, 0)
    assert dispatch.geomean_failures_counted == pytest.approx(FAILED_SPEEDUP)


def test_the_funnel_only_narrows_and_counts_every_counted_trial(tmp_path: Path) -> None:
    run = load_run(synthetic.h100_run(tmp_path / "run"))
    for kind in ("candidate", "baseline"):
        for row in funnel(run, kind):
            counts = [row.trials, *row.reached.values()]
            assert counts == sorted(counts, reverse=True)
    tma, warp = funnel(run, "candidate")
    assert (tma.trials, tma.reached[Stage.RAN], tma.reached[Stage.CORRECT]) == (48, 48, 36)
    assert (warp.reached[Stage.GENERATED], warp.reached[Stage.BUILT], warp.reached[Stage.RAN]) == (48, 36, 24)
    skipped = next(f for f in funnel(run, "baseline") if f.contender.label == "flash-attn")
    assert (skipped.trials, skipped.apart) == (0, {Verdict.SKIPPED: 48})


def test_every_failure_is_reported_with_its_reason(tmp_path: Path) -> None:
    run = load_run(synthetic.h100_run(tmp_path / "run"))
    failed = [r for r in run.rows if r.result.verdict not in (Verdict.OK, Verdict.SKIPPED)]
    assert sum(len(e.rows) for e in failures(run)) == len(failed) == 36
    assert all(e.reason for e in failures(run))


def test_noise_shares_are_of_the_duplicate_ratios(tmp_path: Path) -> None:
    run = load_run(synthetic.tiny_run(tmp_path / "run"))
    deviations = [abs(r.measured.noise.median - 1) for r in run.rows if r.measured and r.measured.noise]
    (noise,) = noise_floor(run)
    assert noise.sessions == len(deviations) == 7
    assert noise.within_02 == sum(d <= 0.002 for d in deviations) / 7
    assert noise.worst_deviation == max(deviations)


def test_time_that_no_stage_accounts_for_is_shown_as_other(tmp_path: Path) -> None:
    spent = time_spent(load_run(synthetic.tiny_run(tmp_path / "run")))
    assert spent is not None
    assert sum(spent.stages_s.values()) == pytest.approx(spent.wall_s)
    assert spent.stages_s["other"] == pytest.approx(15.5)
