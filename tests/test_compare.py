"""The command `attnbench compare`: for people, for scripts, and one sentence for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports.changes import compare
from reports.changes.formats import json_text, markdown
from reports.dataset import load_run
from tests.command import attnbench
from tests.reports import synthetic


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    before = synthetic.tiny_run(tmp_path / "before")
    lines = [r.result for r in load_run(before).rows]
    broken = [
        synthetic.result(r.task, r.workload, r.candidate, Verdict.CRASH, None)
        if r.candidate.name == "mine"
        else r
        for r in lines
    ]
    return before, synthetic.write_run(tmp_path / "after", broken)


def test_for_people(runs: tuple[Path, Path]) -> None:
    found = attnbench("compare", *map(str, runs))
    assert (found.returncode, found.stderr) == (0, ""), "a change is no failure of the command"
    assert found.stdout.index("RIGHT -> WRONG") < found.stdout.index("Speedups")
    assert synthetic.REASONS[Verdict.CRASH] in " ".join(found.stdout.split())


def test_for_scripts_and_pages(runs: tuple[Path, Path]) -> None:
    same = compare(*(load_run(r) for r in runs))
    assert attnbench("compare", *map(str, runs), "--json").stdout == json_text(same)
    assert attnbench("compare", *map(str, runs), "--markdown").stdout == markdown(same)
    assert attnbench("compare", *map(str, runs), "--markdown", "--json").returncode == 2


def test_a_run_with_itself(runs: tuple[Path, Path]) -> None:
    said = attnbench("compare", str(runs[0]), str(runs[0])).stdout
    assert "The same in all 10 results." in said
    assert said.count("No change beyond the noise") == 2
    assert "Nothing that is recorded." in said


@pytest.mark.parametrize("side", [0, 1])
def test_what_is_no_run_is_said(side: int, runs: tuple[Path, Path], tmp_path: Path) -> None:
    asked = [str(r) for r in runs]
    asked[side] = str(tmp_path / "nowhere")
    found = attnbench("compare", *asked)
    assert found.returncode == 2 and "nowhere has no results.jsonl" in found.stderr


def test_torn_and_empty_runs_are_compared_as_far_as_they_go(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with (runs[1] / "results.jsonl").open("a") as file:
        file.write('{"schema_version": 2, "ta')
    found = attnbench("compare", *map(str, runs))
    assert found.returncode == 0 and "1 unreadable line" in found.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "results.jsonl").write_text("")
    for asked in ((runs[0], empty), (empty, runs[0]), (empty, empty)):
        for option in ([], ["--json"], ["--markdown"]):
            found = attnbench("compare", *map(str, asked), *option)
            assert found.returncode == 0, found.stderr
    assert (
        json.loads(attnbench("compare", str(runs[0]), str(empty), "--json").stdout)["matched"]["cells"] == 0
    )


def test_names_with_marks_of_the_terminal_are_printed_as_they_are(tmp_path: Path) -> None:
    lines = [r.result for r in load_run(synthetic.tiny_run(tmp_path / "plain")).rows]
    odd = [
        r.model_copy(update={"candidate": r.candidate.model_copy(update={"name": "[red]mine[/]|x"})})
        if r.candidate.name == "mine"
        else r
        for r in lines
    ]
    failed = [
        synthetic.result(r.task, r.workload, r.candidate, Verdict.CRASH, None)
        if "mine" in r.candidate.name
        else r
        for r in odd
    ]
    a, b = synthetic.write_run(tmp_path / "a", odd), synthetic.write_run(tmp_path / "b", failed)
    assert "[red]mine[/]|x" in attnbench("compare", str(a), str(b)).stdout
    assert "[red]mine[/]\\|x" in attnbench("compare", str(a), str(b), "--markdown").stdout
