"""LLM-TL over the direct way, in three variants that say what they leave out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports.dataset import load_run
from reports.duels import BEST, COUNTED, PAIRED, Duel, duels
from reports.figures import FAILED_SPEEDUP
from reports.generation import attempts
from tests.reports.synthetic_trials import PLAN, Plan, generation_run

WRONG, INFRA = Verdict.WRONG_NUMERICS, Verdict.INFRA


def fought(folder: Path, plan: Plan = PLAN) -> dict[str, Duel]:
    return {d.ours.method: d for d in duels(attempts(load_run(generation_run(folder / "run", plan))))}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Duel]:
    return fought(tmp_path_factory.mktemp("runs"))


def test_every_way_through_tl_meets_vanilla_of_the_same_model(found: dict[str, Duel]) -> None:
    assert set(found) == {"tl", "tl-one-stage", "tl-compiled"}
    assert all(d.theirs.method == "vanilla" and d.theirs.model == d.ours.model for d in found.values())
    assert [v.name for v in found["tl"].variants] == [BEST, PAIRED, COUNTED]


def test_best_of_samples_covers_cells_in_which_both_have_a_kernel(found: dict[str, Duel]) -> None:
    best = found["tl"].best  # vanilla is never correct on the second task
    assert [r.estimate.median for r in best.ratios] == pytest.approx([510 / 260, 600 / 260])
    assert best.cells == 2 and len(found["tl"].cells) == 4
    assert best.highest is not None and best.highest.estimate.median == pytest.approx(600 / 260)
    assert best.geomean is not None
    assert best.geomean.geomean == pytest.approx(math.sqrt(510 * 600) / 260)
    assert all(r.paired for r in best.ratios)


def test_paired_samples_pair_by_number_where_both_are_correct(tmp_path: Path) -> None:
    plan: Plan = {
        ("mha", "vanilla"): [(100, 100), (400, 400), WRONG],
        ("mha", "tl"): [(300, 200), (200, 800), (500, 500)],
    }
    d = fought(tmp_path, plan)["tl"]
    assert [r.sample for r in d.paired.ratios] == [0, 1, 0, 1]
    assert [r.estimate.median for r in d.paired.ratios] == pytest.approx([3.0, 0.5, 2.0, 2.0])
    assert d.paired.cells == 2
    assert d.paired.geomean is not None
    assert d.paired.geomean.geomean == pytest.approx((3.0 * 0.5 * 2.0 * 2.0) ** 0.25)
    # best of samples takes luck where it finds it
    assert [r.estimate.median for r in d.best.ratios] == pytest.approx([500 / 400, 800 / 400])


def test_without_a_pair_there_is_no_number(found: dict[str, Duel]) -> None:
    paired = found["tl-one-stage"].paired
    assert (paired.cells, paired.geomean, paired.highest) == (0, None, None)


def test_counted_failures_stand_in_at_a_tenth_of_the_best_human(found: dict[str, Duel]) -> None:
    counted = found["tl"].counted
    stand_in = 1.12 / FAILED_SPEEDUP
    assert [r.estimate.median for r in counted.ratios] == pytest.approx(
        [510 / 260, 600 / 260, stand_in, stand_in]
    )
    assert (counted.cells, counted.ours_failed, counted.theirs_failed) == (4, 0, 2)
    assert counted.highest is not None and counted.highest.theirs is None
    assert counted.geomean is not None
    assert counted.geomean.geomean == pytest.approx((510 / 260 * 600 / 260 * stand_in**2) ** 0.25)


def test_counted_failures_cut_both_ways_and_two_give_one(tmp_path: Path) -> None:
    plan: Plan = {
        ("mha", "vanilla"): [(250, Verdict.TIMEOUT)],
        ("mha", "tl"): [WRONG],
    }
    counted = fought(tmp_path, plan)["tl"].counted
    assert [r.estimate.median for r in counted.ratios] == pytest.approx([FAILED_SPEEDUP / 0.5, 1.0])
    assert (counted.ours_failed, counted.theirs_failed) == (2, 1)


def test_what_the_machine_spoilt_is_no_failure(tmp_path: Path) -> None:
    d = fought(tmp_path, {("mha", "vanilla"): [INFRA], ("mha", "tl"): [(250, 250)]})["tl"]
    assert d.cells == () and all(v.cells == 0 for v in d.variants)


def test_a_library_in_disguise_is_no_kernel(tmp_path: Path) -> None:
    plan: Plan = {
        ("mha", "vanilla"): [(Verdict.LIBRARY_DISPATCH, 250)],
        ("mha", "tl"): [(250, 250)],
    }
    d = fought(tmp_path, plan)["tl"]
    assert d.best.cells == 1
    assert d.counted.theirs_failed == 1


def test_no_duel_without_vanilla(tmp_path: Path) -> None:
    assert fought(tmp_path, {("mha", "tl"): [(250, 250)]}) == {}


def test_the_model_that_thinks_is_compared_where_another_translates(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plan: Plan = {("mha", "vanilla"): [(250, 250)], ("mha", "tl"): [(500, 250)]}
    data = load_run(generation_run(folder, plan, models=("claude", "claude -> coder", "other -> coder")))
    pairs = [(d.ours.model, d.theirs.model) for d in duels(attempts(data)) if d.best.cells]
    assert pairs == [("claude", "claude"), ("claude -> coder", "claude")]
