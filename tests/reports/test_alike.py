"""Versions of the harness that decide the same numbers: which, what a report says of them, and that they do."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from harness.measure.judge import contradicts, graph_slack_ms
from harness.verdicts import Verdict
from reports import alike
from reports.comparable import comparable
from reports.dataset import load_run
from reports.surroundings import warnings
from tests.reports import synthetic

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
MOST_SLOTS = 16  # of a cell: the least slack
ONE, *OTHERS = alike.ALIKE[0].versions


def of(sources: str):
    return synthetic.environment().model_copy(update={"sources": sources})


def test_a_version_is_a_hash_and_stands_in_one_place_with_a_reason() -> None:
    every = [v for a in alike.ALIKE for v in a.versions]
    assert len(every) == len(set(every))
    assert all(re.fullmatch("[0-9a-f]{12}", v) for v in every)
    assert all(len(a.versions) > 1 and a.why for a in alike.ALIKE)


def test_only_what_is_named_is_alike() -> None:
    for a, b in combinations((ONE, *OTHERS), 2):
        assert comparable(of(a), of(b)) is None
    assert "harness sources" in str(comparable(of(ONE), of("0123456789ab")))
    assert "harness sources" in str(comparable(of("0123456789ab"), of(OTHERS[0])))
    assert "harness sources" in str(comparable(of(ONE), of("")))
    assert alike.told([ONE]) == alike.told([ONE, "0123456789ab"]) == []
    (said,) = alike.told([OTHERS[0], ONE, ONE])
    assert said.startswith(f"Harness sources {ONE}, {OTHERS[0]} count as one version: ")


def spans() -> list[Path]:
    return [
        run for run in sorted(PUBLISHED.glob("*"))
        if (run / "environment.json").exists()
        and alike.told(e.sources for e in load_run(run).environments.values())
    ]  # fmt: skip


@pytest.mark.parametrize("run", spans(), ids=lambda run: run.name)
def test_no_recorded_verdict_of_a_run_that_spans_some_would_be_another(run: Path) -> None:
    dataset = load_run(run)
    assert any("count as one version" in said for said in warnings(dataset))
    assert not dataset.left_out
    seen = 0
    for row in dataset.rows:
        measured, proof = row.result.measurement, row.result.verification
        assert proof is None or "judge_clock" not in proof.detectors, "by which rule?"
        if row.result.verdict is Verdict.OK and measured is not None and measured.judge_slope_ms is not None:
            seen += 1
            slack = graph_slack_ms(MOST_SLOTS)
            assert measured.captured, "a rule of its own, which is stricter"
            assert not contradicts(measured.device_time.median_ms, measured.judge_slope_ms, slack)
    assert seen
