"""Trials are counted once, failures stay in every denominator, and no rate is made up."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.verdicts import FUNNEL, Stage, Verdict
from reports.dataset import Dataset, load_run
from reports.figures import FAILED_SPEEDUP
from reports.generation import OVERALL, Attempt, Score, attempts, pace, passes, scores, wilson
from tests.reports.synthetic_trials import PLAN, Plan, generation_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_run(generation_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def tried(data: Dataset) -> tuple[Attempt, ...]:
    return attempts(data)


@pytest.fixture(scope="module")
def found(data: Dataset, tried: tuple[Attempt, ...]) -> dict[tuple[str, str], Score]:
    return {(s.maker.method, s.scope): s for s in scores(data, tried)}


def made(tmp_path: Path, plan: Plan) -> tuple[Attempt, ...]:
    return attempts(load_run(generation_run(tmp_path / "run", plan)))


# --- how far trials came ---


def test_each_trial_completes_the_stages_before_its_verdict(tried: tuple[Attempt, ...]) -> None:
    stages = {(a.task, a.maker.method, a.ending.assignment.sample): a.stage for a in tried}
    mha = {key[1:]: stage for key, stage in stages.items() if key[0] == "mha_causal"}
    assert mha[("vanilla", 0)] is Stage.MEASURED
    assert mha[("vanilla", 1)] is Stage.RAN  # wrong numerics
    assert mha[("vanilla", 2)] is Stage.PLANNED  # no code
    assert mha[("tl", 1)] is Stage.CLEAN  # correct, but a cell timed out
    assert mha[("tl-compiled", 1)] is Stage.CORRECT  # a library in disguise
    assert mha[("tl-compiled", 2)] is Stage.GENERATED  # did not build
    assert mha[("tl-one-stage", 0)] is Stage.BUILT  # crashed
    assert len(stages) == 21


def test_the_funnel_counts_trials_and_leaves_infra_apart(found: dict[tuple[str, str], Score]) -> None:
    tl = found[("tl", OVERALL)]
    assert (tl.trials, tl.infra) == (5, 1)
    assert [tl.reached[s] for s in FUNNEL] == [4, 4, 4, 4, 4, 3]
    compiled = found[("tl-compiled", OVERALL)]
    assert [compiled.reached[s] for s in FUNNEL] == [6, 5, 5, 3, 2, 2]
    assert compiled.failed == {Verdict.BUILD_ERROR: 1, Verdict.WRONG_NUMERICS: 2}


def test_whatever_the_judge_objected_to_a_trial_without_a_kernel_is_not_correct(tmp_path: Path) -> None:
    (attempt,) = made(tmp_path, {("mha", "vanilla"): [Verdict.INTEGRITY]})
    assert attempt.stage is Stage.RAN and not attempt.correct


def test_a_trial_whose_cells_are_not_all_there_is_not_measured(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run", {("mha", "vanilla"): [(260, 260)]})
    path = folder / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), encoding="utf-8")
    (attempt,) = attempts(load_run(folder))
    assert attempt.stage is Stage.CLEAN
    assert (pace([attempt]).pairs, pace([attempt]).apart) == (1, 1)


def test_a_machine_that_spoils_one_cell_does_not_spoil_the_trial(tmp_path: Path) -> None:
    (attempt,) = made(tmp_path, {("mha", "vanilla"): [(260, Verdict.INFRA)]})
    assert attempt.stage is Stage.MEASURED
    assert (pace([attempt]).pairs, pace([attempt]).measured, pace([attempt]).apart) == (1, 1, 1)


def test_a_run_that_only_asked_has_a_funnel_and_no_speed(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run")
    (folder / "results.jsonl").write_text("")
    data = load_run(folder)
    whole = {s.maker.method: s for s in scores(data, attempts(data)) if s.scope == OVERALL}
    assert whole["vanilla"].correct == 1
    assert whole["vanilla"].pace.pairs == 0
    assert whole["vanilla"].pace.fast == {}
    assert whole["vanilla"].pace.failures_counted is None


# --- pass@k ---


def test_pass_at_k_is_per_task_from_all_samples_then_averaged(found: dict[tuple[str, str], Score]) -> None:
    one, three, five = found[("vanilla", OVERALL)].correct_at  # 1 of 3, 0 of 3
    assert one.value == pytest.approx((1 / 3 + 0) / 2)
    assert three.value == pytest.approx((1 + 0) / 2)
    assert five.value is None and five.too_few == 2


def test_too_few_samples_give_no_number_and_infra_is_no_sample(found: dict[tuple[str, str], Score]) -> None:
    one, three, _ = found[("tl", "mha_causal")].correct_at  # 2 of 2: the third was spoilt
    assert one.value == 1
    assert three.value is None
    _, three, _ = found[("tl", OVERALL)].correct_at
    assert (three.value, three.tasks, three.too_few) == (1.0, 1, 1)


def test_a_library_in_disguise_passes_as_correct_but_not_as_clean(
    found: dict[tuple[str, str], Score],
) -> None:
    compiled = found[("tl-compiled", "mha_causal")]
    assert compiled.correct_at[0].value == pytest.approx(2 / 3)
    assert compiled.clean_at[0].value == pytest.approx(1 / 3)


def test_a_kernel_that_was_not_timed_is_correct_and_in_no_rate_of_clean_ones(tmp_path: Path) -> None:
    run = generation_run(tmp_path / "run")
    lines = (run / "results.jsonl").read_text().splitlines(keepends=True)
    gone = "tl-compiled-claude-1"  # a library in disguise, as timing it showed
    kept = [line for line in lines if not (gone in line and "mha_causal" in line)]
    assert len(kept) < len(lines)
    (run / "results.jsonl").write_text("".join(kept))
    data = load_run(run)
    (compiled,) = (
        s for s in scores(data, attempts(data)) if (s.maker.method, s.scope) == ("tl-compiled", "mha_causal")
    )
    assert compiled.untimed == 1
    assert compiled.correct_at[0].value == pytest.approx(2 / 3)
    assert compiled.clean_at[0].value == pytest.approx(1 / 2)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_that_hold_a_correct_one(n: int, draw: st.DataObject) -> None:
    c, k = draw.draw(st.integers(0, n)), draw.draw(st.integers(1, n))
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert passes([(n, c)], k).value == pytest.approx(sum(map(any, choices)) / len(choices))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda t: (max(t), min(t)))))
def test_no_task_with_too_few_samples_is_in_the_average(counts: list[tuple[int, int]]) -> None:
    p = passes(counts, 3)
    enough = [c for n, c in counts if n >= 3]
    assert p.tasks == len(enough) and p.tasks + p.too_few == len(counts)
    assert (p.value is None) == (not enough)


# --- fast_p and speed ---


def test_fast_p_keeps_failures_in_the_denominator(found: dict[tuple[str, str], Score]) -> None:
    # tl: 1.02 1.2 | 0.9 timeout | 1.12 1.12 | no code, no code | 0.62 0.62; the spoilt trial is out
    tl = found[("tl", OVERALL)].pace
    assert (tl.pairs, tl.measured) == (10, 7)
    assert tl.fast == {0.5: 0.7, 0.8: 0.5, 1.0: 0.4, 1.1: 0.3}
    # tl-compiled: 0.82 1.12 | dispatch twice | build error twice || 0.51 twice | wrong four times
    assert found[("tl-compiled", OVERALL)].pace.fast == pytest.approx(
        {0.5: 4 / 12, 0.8: 2 / 12, 1.0: 1 / 12, 1.1: 1 / 12}
    )


def test_the_geomean_over_the_best_human_without_and_with_failures(
    found: dict[tuple[str, str], Score],
) -> None:
    tl = found[("tl", OVERALL)].pace
    logs = [math.log(v) for v in (1.02, 1.2, 0.9, 1.12, 1.12, 0.62, 0.62)]
    assert tl.geomean is not None and tl.failures_counted is not None
    assert tl.geomean.geomean == pytest.approx(math.exp(sum(logs) / 7))
    assert tl.geomean.clusters == 4  # trials, not cells
    assert tl.failures_counted.geomean == pytest.approx(
        math.exp((sum(logs) + 3 * math.log(FAILED_SPEEDUP)) / 10)
    )
    assert tl.failures_counted.low < tl.failures_counted.geomean < tl.failures_counted.high


def test_nothing_measured_has_no_geomean_but_its_failures(found: dict[tuple[str, str], Score]) -> None:
    mla = found[("vanilla", "mla_prefill")].pace
    assert mla.geomean is None and mla.failures_counted is not None
    assert mla.failures_counted.geomean == pytest.approx(FAILED_SPEEDUP)
    assert set(mla.fast.values()) == {0.0}


rates = st.one_of(
    st.sampled_from([Verdict.NO_CODE, Verdict.CRASH, Verdict.WRONG_NUMERICS, Verdict.INFRA]),
    st.tuples(st.floats(50, 900), st.floats(50, 900)),
)


@given(samples=st.lists(rates, min_size=1, max_size=4))
def test_another_failure_never_helps(tmp_path_factory: pytest.TempPathFactory, samples: list[object]) -> None:
    folder = tmp_path_factory.mktemp("runs")
    plan: Plan = {("mha", "vanilla"): [*samples, Verdict.CRASH]}  # type: ignore[list-item]
    worse = made(folder, plan)
    better = worse[:-1]
    if not any(a.counted for a in better):
        return
    before, after = pace(better), pace(worse)
    assert all(after.fast[p] <= before.fast[p] for p in before.fast)
    assert before.failures_counted is not None and after.failures_counted is not None
    assert after.failures_counted.geomean <= before.failures_counted.geomean * (1 + 1e-12)


@given(st.integers(1, 50), st.data())
def test_the_interval_of_a_share_contains_it_and_stays_between_0_and_1(n: int, draw: st.DataObject) -> None:
    c = draw.draw(st.integers(0, n))
    low, high = wilson(c, n)
    assert 0 <= low <= c / n + 1e-12 and c / n - 1e-12 <= high <= 1
    assert high - low > wilson(c * 4, n * 4)[1] - wilson(c * 4, n * 4)[0]


def test_every_maker_and_task_of_the_run_has_a_score(found: dict[tuple[str, str], Score]) -> None:
    assert {(m, t) for t, m in PLAN} <= set(found)
    assert sum(s.trials + s.infra for (_, scope), s in found.items() if scope == OVERALL) == 21
