"""The story of a run is read whole, or the report says which line it left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports.dataset import Dataset, load_run
from reports.generation import unfinished
from tests.reports import synthetic
from tests.reports.synthetic_trials import generation_run, trial


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return generation_run(tmp_path / "run")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def append(path: Path, *texts: str) -> Dataset:
    path.write_text("\n".join([*lines(path), *texts]) + "\n", encoding="utf-8")
    return load_run(path.parent)


def test_every_trial_step_and_exchange_is_read(run: Path) -> None:
    data = load_run(run)
    assert len(data.endings) == 21
    assert len(data.steps) + len(data.endings) == len(lines(run / "trials.jsonl"))
    assert len(data.exchanges) == len(lines(run / "transcripts.jsonl"))
    assert data.skipped == ()
    assert unfinished(data) == 0


def test_a_run_without_models_has_no_story(tmp_path: Path) -> None:
    data = load_run(synthetic.tiny_run(tmp_path / "tiny"))
    assert (data.endings, data.steps, data.exchanges) == ((), (), ())
    assert not any(r.generated for r in data.rows)


def test_the_later_ending_of_a_trial_counts(run: Path) -> None:
    first = trial("mha_causal", "vanilla", "claude", 1, Verdict.WRONG_NUMERICS).ending
    again = trial("mha_causal", "vanilla", "claude", 1, Verdict.CRASH).ending
    data = append(run / "trials.jsonl", again.model_dump_json())
    assert first.trial == again.trial
    assert [e.verdict for e in data.endings if e.trial == again.trial] == [Verdict.CRASH]
    assert len(data.endings) == 21


def test_an_exchange_that_is_told_twice_counts_once(run: Path) -> None:
    path = run / "transcripts.jsonl"
    before = load_run(run).exchanges
    assert append(path, lines(path)[0]).exchanges == before


@pytest.mark.parametrize("name", ["trials.jsonl", "transcripts.jsonl"])
def test_lines_that_cannot_be_read_are_left_out_and_said(run: Path, name: str) -> None:
    path = run / name
    known = len(lines(path))
    newer = json.dumps(json.loads(lines(path)[0]) | {"story_version": 99})
    other = lines(run / ("transcripts.jsonl" if name == "trials.jsonl" else "trials.jsonl"))[0]
    data = append(path, newer, "not json", other)
    assert [(s.file, s.line) for s in data.skipped] == [(name, known + n) for n in (1, 2, 3)]
    assert "99" in data.skipped[0].why
    assert "belong" in data.skipped[2].why
    assert len(data.endings) == 21


def test_a_torn_last_line_is_left_out_and_said(run: Path) -> None:
    path = run / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    data = load_run(run)
    (skipped,) = data.skipped
    assert skipped.file == "trials.jsonl" and "torn" in skipped.why
    assert len(data.endings) == 20


def test_a_trial_that_began_and_did_not_end_is_counted_apart(tmp_path: Path) -> None:
    data = load_run(generation_run(tmp_path / "cut", unfinished=True))
    assert len(data.endings) == 20
    assert unfinished(data) == 1
