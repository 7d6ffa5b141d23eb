"""What kernels cost, failures included, what was wrong with programs, and methods side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports import text
from reports.ablation import contrasts
from reports.costs import Cost, costs, paid
from reports.dataset import Dataset, load_run
from reports.generation import attempts
from reports.programs import INTERPRETER, Programs, findings, programs
from tests.reports.synthetic_trials import generation_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_run(generation_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def spent(data: Dataset) -> dict[str, Cost]:
    return {c.maker.method: c for c in costs(attempts(data))}


def test_totals_hold_every_trial_that_was_paid_for(spent: dict[str, Cost]) -> None:
    tl = spent["tl"]  # six trials, one of them spoilt by the machine
    assert (tl.trials, tl.correct) == (6, 4)
    assert (tl.tokens_in, tl.tokens_out) == (12_000, 6_000)
    assert tl.usd == pytest.approx(0.12) and tl.unpriced == 0
    assert tl.wall_s == 720
    assert tl.estimated and not spent["vanilla"].estimated


def test_the_median_to_the_first_correct_kernel_is_over_those_that_came_to_one(
    spent: dict[str, Cost],
) -> None:
    assert spent["tl"].first_correct_s == pytest.approx(45)  # 30, 60, 30, 90
    assert spent["vanilla"].first_correct_s == 30


def test_unknown_latencies_and_prices_are_said(spent: dict[str, Cost]) -> None:
    assert spent["vanilla"].latency_unknown == 6 and spent["vanilla"].first_correct_least
    assert spent["tl"].latency_unknown == 0 and not spent["tl"].first_correct_least
    assert spent["tl-compiled"].unpriced == 6 and not spent["tl-compiled"].priced


def test_without_a_correct_kernel_there_is_no_first_one(tmp_path: Path) -> None:
    (none,) = costs(
        attempts(load_run(generation_run(tmp_path / "run", {("mha", "vanilla"): [Verdict.CRASH]})))
    )
    assert none.first_correct_s is None and none.correct == 0


def test_the_run_is_charged_once_for_each_exchange(data: Dataset) -> None:
    p = paid(data)
    reported = [e for e in data.exchanges if e.tokens_in is not None]
    assert p.exchanges == len(data.exchanges)
    assert p.uncounted == len(data.exchanges) - len(reported)
    assert (p.tokens_in, p.tokens_out) == (400 * len(reported), 200 * len(reported))


def test_money_is_written_without_inventing_any() -> None:
    assert text.usd(0.0, unpriced=3, of=3) == "no price known"
    assert text.usd(0.125, unpriced=1, of=3) == "at least 0.12"
    assert text.usd(12.5, unpriced=0, of=3) == "12.50"
    assert text.usd(0.0, unpriced=0, of=1) == "0.00"  # a model of one's own may cost nothing
    assert text.tokens(12345, True) == "~12,345"
    assert text.minutes(90, True) == "at least 1.5"


# --- programs ---


@pytest.fixture(scope="module")
def written(data: Dataset) -> dict[str, Programs]:
    return {p.maker.method: p for p in programs(data, attempts(data))}


def test_programs_are_right_at_first_or_after_feedback_or_never(written: dict[str, Programs]) -> None:
    one = written["tl-one-stage"]
    assert (one.trials, one.at_first, one.after_feedback, one.never) == (3, 1, 1, 1)
    tl = written["tl"]  # one trial has a sketch and no program, one was never answered
    assert (tl.trials, tl.without) == (4, 2)
    assert (tl.at_first, tl.after_feedback, tl.never) == (3, 1, 0)
    assert "vanilla" not in written


def test_findings_count_programs_by_code_most_frequent_first(written: dict[str, Programs]) -> None:
    assert list(written["tl-one-stage"].findings.items()) == [("TL201", 2), ("TL401", 2)]
    assert written["tl-compiled"].findings == {"TL201": 1, INTERPRETER: 1}
    assert written["tl-one-stage"].found(("TL401", "TL403")) == 2


def test_what_is_said_without_a_code_is_the_interpreter() -> None:
    assert findings("line 3: error TL401: a\nline 9: warning TL702: b\nline 12: error TL401: c") == {
        "TL401",
        "TL702",
    }
    assert findings("The interpreter's result differs") == {INTERPRETER}
    assert findings("") == set()


# --- ablation ---


def test_methods_stand_side_by_side_on_the_tasks_they_have(data: Dataset) -> None:
    mha, mla = contrasts(data, attempts(data))  # no task has all methods twice, so nothing is over all
    assert set(mha.by_method) == {"vanilla", "tl", "tl-compiled", "tl-one-stage"}
    assert set(mla.by_method) == {"vanilla", "tl", "tl-compiled"}
    (score,) = mha.by_method["tl"]
    assert (score.correct, score.trials) == (2, 2)


def test_over_several_tasks_only_those_that_all_methods_have_count(tmp_path: Path) -> None:
    plan = {
        (task, method): [(250, 250)]
        for task, methods in (("a", ("vanilla", "tl")), ("b", ("vanilla", "tl")), ("c", ("tl",)))
        for method in methods
    }
    data = load_run(generation_run(tmp_path / "run", plan))
    found = contrasts(data, attempts(data))
    assert [c.scope for c in found] == ["a", "b", "the 2 tasks of all methods"]
    assert [s.trials for s in found[-1].by_method["tl"]] == [2]


def test_one_method_alone_is_no_ablation(tmp_path: Path) -> None:
    data = load_run(generation_run(tmp_path / "run", {("a", "vanilla"): [(250, 250)]}))
    assert contrasts(data, attempts(data)) == []
