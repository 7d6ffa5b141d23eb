"""A run's directory is read whole, or says which line it left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports.dataset import RunError, label_rows, load_run
from tests.reports import synthetic


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    run = load_run(synthetic.h100_run(tmp_path / "run"))
    assert len(run.rows) == 2 * 24 * 9
    assert len(run.cells) == 48
    assert [c.label for c in run.candidates] == ["triton-tma", "warp-specialised"]
    assert len(run.baselines) == 7
    assert run.skipped == ()


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = load_run(synthetic.h100_run(tmp_path / "run", torn=True))
    assert len(run.rows) == 2 * 24 * 9 - 1
    (skipped,) = run.skipped
    assert skipped.line == 2 * 24 * 9
    assert "torn" in skipped.why


def test_a_foreign_line_in_the_middle_is_left_out_and_line_numbers_stay(tmp_path: Path) -> None:
    folder = synthetic.tiny_run(tmp_path / "run")
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines()
    newer = json.loads(lines[1]) | {"schema_version": 99}
    path.write_text("\n".join([lines[0], json.dumps(newer), "", *lines[2:]]) + "\n")
    run = load_run(folder)
    (skipped,) = run.skipped
    assert (skipped.file, skipped.line) == ("results.jsonl", 2)
    assert "99" in skipped.why
    assert [r.line for r in run.rows][:2] == [1, 4]


def test_a_result_recorded_again_counts_once_with_the_later_line(tmp_path: Path) -> None:
    w = synthetic.workload(1024)
    who = synthetic.candidate("mine")
    first = synthetic.result("mha", w, who, Verdict.INFRA, None)
    again = synthetic.result("mha", w, who, Verdict.TIMEOUT, None)
    run = load_run(synthetic.write_run(tmp_path / "run", [first, again]))
    assert [(r.line, r.result.verdict) for r in run.rows] == [(2, Verdict.TIMEOUT)]


def test_a_directory_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results\.jsonl"):
        load_run(tmp_path)


def test_an_empty_run_is_read(tmp_path: Path) -> None:
    run = load_run(synthetic.write_run(tmp_path / "run", []))
    assert run.rows == () and run.cells == ()


def test_candidates_that_share_a_name_in_a_cell_are_told_apart() -> None:
    w = synthetic.workload(1024)
    one, other = synthetic.candidate("mine"), synthetic.candidate("mine")
    other = other.model_copy(update={"sha256": synthetic.sha("other")})
    rows = label_rows(
        enumerate((synthetic.result("mha", w, c, Verdict.TIMEOUT, None) for c in (one, other)), start=1)
    )
    assert len({r.contender for r in rows}) == 2


def test_samples_of_the_same_content_are_told_apart() -> None:
    w, who = synthetic.workload(1024), synthetic.candidate("mine")
    rows = label_rows(
        enumerate((synthetic.result("mha", w, who, Verdict.TIMEOUT, None, sample=n) for n in (0, 1)), start=1)
    )
    assert len({r.contender for r in rows}) == 2


def test_a_candidate_named_like_a_baseline_is_not_taken_for_it() -> None:
    w = synthetic.workload(1024)
    both = [synthetic.candidate("cudnn", kind) for kind in ("baseline", "candidate")]
    both[1] = both[1].model_copy(update={"sha256": synthetic.sha("impostor")})
    found = (synthetic.result("mha", w, c, Verdict.TIMEOUT, None) for c in both)
    rows = label_rows(enumerate(found, start=1))
    assert [r.contender for r in rows] == ["cudnn", "cudnn (candidate)"]
