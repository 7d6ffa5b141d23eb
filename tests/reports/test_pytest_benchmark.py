"""A run as JSON of pytest-benchmark: its own command reads it, its own statistics agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_benchmark.stats import Stats

from harness.verdicts import Verdict
from reports.dataset import load_run
from reports.pytest_benchmark import Rounds, pytest_benchmark_text
from tests.reports import synthetic

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"


def compared(*files: Path, options: tuple[str, ...] = ()) -> str:
    """What `pytest-benchmark compare` prints; what it cannot load is a warning and no failure, so look."""
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *map(str, files), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=files[0].parent, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Failed to load" not in done.stdout + done.stderr
    return done.stdout


def written(run: Path, file: Path) -> dict[str, Any]:
    file.write_text(pytest_benchmark_text(load_run(run)))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


@given(st.lists(st.floats(1e-6, 10, allow_nan=False), min_size=1, max_size=60))
def test_the_statistics_are_those_of_pytest_benchmark(times: list[float]) -> None:
    theirs = Stats()
    for time in times:
        theirs.update(time)
    ours = Rounds(tuple(times), 3).stats()
    for name, value in theirs.as_dict().items():
        assert ours[name] == (value if isinstance(value, str) else pytest.approx(value)), name


def test_compare_reads_a_published_run(tmp_path: Path) -> None:
    file = tmp_path / "paper.json"
    data = written(PUBLISHED / "h100-2026-11-23-paper", file)
    said = compared(file)
    assert len(data["benchmarks"]) == 198 and len(data["attnbench"]["not_timed"]) == 27
    assert said.count("benchmark 'h100 ") == 25, "a group for each cell"
    assert "mha[b1-h16-n16384-d128-fp16-flash-attn-4]" in said


def test_two_runs_stand_beside_each_other(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        written(synthetic.tiny_run(tmp_path / file.stem), file)
    said = compared(*files, options=("--group-by=fullname",))
    assert said.count("2 tests") == 7, "each contender of a cell beside itself"


def test_a_run_without_measured_rows_has_no_benchmarks_and_is_read(tmp_path: Path) -> None:
    lines = synthetic.results(
        "mha_causal",
        [synthetic.workload(1024)],
        {"cudnn": ("baseline", lambda w: 400.0), "mine": ("candidate", lambda w: Verdict.CRASH)},
    )
    failed = [r for r in lines if r.candidate.name == "mine"]
    file = tmp_path / "x.json"
    data = written(synthetic.write_run(tmp_path / "run", failed), file)
    assert data["benchmarks"] == []
    (left,) = data["attnbench"]["not_timed"]
    assert left["verdict"] == "crash" and left["reason"] == synthetic.REASONS[Verdict.CRASH]
    compared(file)


def test_only_results_that_are_ok_are_benchmarks(tmp_path: Path) -> None:
    """A time that is kept of a kernel that does not count is no benchmark of it."""
    lines = [r.result for r in load_run(synthetic.tiny_run(tmp_path / "plain")).rows]
    dispatched = [
        r.model_copy(update={"verdict": Verdict.LIBRARY_DISPATCH, "reason": "it calls cuDNN"})
        if r.candidate.name == "mine"
        else r
        for r in lines
    ]
    data = written(synthetic.write_run(tmp_path / "run", dispatched), tmp_path / "x.json")
    assert not [b for b in data["benchmarks"] if b["params"]["contender"] == "mine"]
    assert sum(x["verdict"] == "library_dispatch" for x in data["attnbench"]["not_timed"]) == 2


def test_the_records_own_median_is_beside_the_rounds(tmp_path: Path) -> None:
    dataset = load_run(synthetic.tiny_run(tmp_path / "run"))
    data = written(tmp_path / "run", tmp_path / "x.json")
    by_record = {b["extra_info"]["record"]: b for b in data["benchmarks"]}
    for row in dataset.rows:
        if row.measured is None:
            continue
        b = by_record[row.result.id]
        assert b["extra_info"]["device_time_median_ms"] == row.measured.device_time.median_ms
        assert b["stats"]["rounds"] == len(row.measured.blocks)
        assert b["stats"]["data"] == [x.median_ms / 1000 for x in row.measured.blocks]
    assert data["machine_info"]["device"] == "NVIDIA H100 80GB HBM3"


def test_without_blocks_the_median_is_one_round(tmp_path: Path) -> None:
    lines = [r.result for r in load_run(synthetic.tiny_run(tmp_path / "plain")).rows]
    r = next(r for r in lines if r.measurement)
    assert r.measurement is not None
    bare = r.model_copy(update={"measurement": r.measurement.model_copy(update={"blocks": ()})})
    data = written(synthetic.write_run(tmp_path / "run", [bare]), tmp_path / "x.json")
    stats = data["benchmarks"][0]["stats"]
    assert (stats["rounds"], stats["min"], stats["max"]) == (1, stats["median"], stats["median"])
    assert stats["median"] == pytest.approx(r.measurement.device_time.median_ms / 1000)
    compared(tmp_path / "x.json")
