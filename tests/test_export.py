"""The command `attnbench export`: every format, and one sentence for what cannot be written."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest

from harness.exchange_cli import Name
from harness.verdicts import Verdict
from reports.dataset import load_run
from reports.export import COLUMNS, csv_text, json_text
from reports.formats import FORMATS
from reports.parquet import _REAL, _WHOLE, _YES_NO
from tests.command import attnbench, attnbench_process
from tests.reports import synthetic


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return synthetic.tiny_run(tmp_path / "tiny")


def test_the_command_line_knows_the_formats() -> None:
    assert [n.value for n in Name] == list(FORMATS)


@pytest.mark.parametrize("name", ["csv", "json", "pytest-benchmark"])
def test_one_text_goes_to_standard_output(name: str, run: Path) -> None:
    found = attnbench("export", str(run), "--format", name)
    assert (found.returncode, found.stderr) == (0, "")
    dataset = load_run(run)
    if name == "csv":
        assert found.stdout == csv_text(dataset)
        assert len(list(csv.DictReader(io.StringIO(found.stdout)))) == len(dataset.rows)
    else:
        assert json.loads(found.stdout)
    if name == "json":
        assert found.stdout == json_text(dataset)


def test_a_file_is_written_under_the_name_that_is_given(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mine.csv"
    found = attnbench("export", str(run), "--format", "csv", "--out", str(out))
    assert found.returncode == 0 and found.stdout.strip() == str(out)
    assert out.read_text() == csv_text(load_run(run))
    assert out.stat().st_mode & 0o444 == 0o444 & ~os.umask(os.umask(0)), "readable as any new file"
    assert [p.name for p in out.parent.iterdir()] == ["mine.csv"]


def test_a_folder_that_exists_takes_a_file_in(run: Path, tmp_path: Path) -> None:
    assert attnbench("export", str(run), "--format", "csv", "--out", str(tmp_path)).returncode == 0
    assert (tmp_path / "results.csv").is_file()


def test_several_formats_share_a_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    asked = [a for f in ("csv", "flashinfer", "json", "pytest-benchmark", "csv") for a in ("--format", f)]
    found = attnbench("export", str(run), *asked, "--out", str(out))
    assert found.returncode == 0, found.stderr
    assert {p.name for p in out.iterdir()} == {
        "results.csv",
        "flashinfer",
        "report.json",
        "pytest-benchmark.json",
    }
    assert list((out / "flashinfer" / "traces").rglob("*.jsonl"))
    assert "attnbench_left_out.jsonl" in found.stdout


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (["--format", "flashinfer"], 2, "flashinfer is no text for a terminal: name a new path with --out"),
        (["--format", "csv", "--format", "json"], 2, "several formats are no text"),
        (["--format", "parquet"], 2, "parquet is no text"),
        (["--format", "csv", "--out", "taken.csv"], 2, "taken.csv exists and is not written over"),
        (["--format", "csv", "--out", "taken.csv/x.csv"], 4, "cannot write taken.csv/x.csv"),
        (["--format", "csv", "--format", "json", "--out", "taken.csv"], 2, "taken.csv is a file; several"),
        (["--format", "flashinfer", "--out", "full"], 2, "full exists and is not written over"),
        (["--format", "flashinfer", "--out", "taken.csv"], 2, "taken.csv exists"),
        (["--format", "csv", "--out", "dangling"], 2, "dangling exists"),
        (["--format", "csv", "--out", "/proc/nowhere/x.csv"], 4, "cannot write /proc/nowhere/x.csv"),
        (["--format", "flashinfer", "--out", "/proc/nowhere"], 4, "cannot write /proc/nowhere"),
        (["--format", "csv", "--out", "x" * 300], 4, "File name too long"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_said_in_one_sentence(
    asked: list[str], code: int, says: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken.csv").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    found = attnbench("export", str(run), *asked, cwd=tmp_path)
    assert found.returncode == code, found.stderr + found.stdout
    assert says in found.stderr and "Traceback" not in found.stderr
    assert (tmp_path / "taken.csv").read_text() == "mine"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing half-written stays"


def test_a_write_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for name in ("csv", "flashinfer"):
        found = attnbench("export", str(run), "--format", name, "--out", str(tmp_path / "x"))
        assert found.returncode == 4 and "No space left" in found.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"tiny"}


@pytest.mark.parametrize("name", list(FORMATS))
def test_what_is_no_run_is_said(name: str, tmp_path: Path) -> None:
    found = attnbench("export", str(tmp_path), "--format", name, "--out", str(tmp_path / "x"))
    assert found.returncode == 2 and "has no results.jsonl" in found.stderr


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "parquet"])
def test_torn_and_foreign_lines_are_named_and_the_rest_is_there(name: str, tmp_path: Path) -> None:
    run = synthetic.write_run(
        tmp_path / "run", [r.result for r in load_run(synthetic.tiny_run(tmp_path / "t")).rows]
    )
    with (run / "results.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"schema_version": 99}\n[1]\n{"schema_version": 2, "task": "mha')
    found = attnbench("export", str(run), "--format", name, "--out", str(tmp_path / "x"))
    assert found.returncode == 0
    for line in (11, 12, 13, 14):
        assert f"line {line} of results.jsonl" in found.stderr
    assert "torn last line" in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "parquet"])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_without_measured_rows_is_exported(name: str, rows: int, tmp_path: Path) -> None:
    w = synthetic.workload(1024)
    failed = synthetic.result("mha_causal", w, synthetic.candidate("mine"), Verdict.NO_CODE, None)
    run = tmp_path / "run"
    if rows:
        synthetic.write_run(run, [failed])
    else:
        run.mkdir()
        (run / "results.jsonl").write_text("")
    found = attnbench("export", str(run), "--format", name, "--out", str(tmp_path / "x"))
    assert found.returncode == 0, found.stderr


def test_csv_does_not_wait_for_torch(run: Path) -> None:
    script = "import sys; from harness.cli import app\ntry: app(sys.argv[1:])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", script, "export", str(run), "--format", "csv"], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert attnbench_process("export", "--help").returncode == 0


def test_without_pyarrow_the_way_to_it_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    found = attnbench("export", str(run), "--format", "parquet", "--out", str(tmp_path / "x.parquet"))
    assert found.returncode == 3
    assert "pip install 'attnbench[parquet]'" in found.stderr
    assert not (tmp_path / "x.parquet").exists()


def test_parquet_holds_what_the_csv_holds(run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: the extra `parquet`")
    out = tmp_path / "x.parquet"
    assert attnbench("export", str(run), "--format", "parquet", "--out", str(out)).returncode == 0
    rows = parquet.read_table(out).to_pylist()
    lines = list(csv.DictReader(io.StringIO(csv_text(load_run(run)))))
    assert [[("" if v is None else str(v)) for v in row.values()] for row in rows] == [
        list(x.values()) for x in lines
    ]


def test_the_types_of_parquet_are_about_columns_that_exist() -> None:
    assert set(COLUMNS) >= _WHOLE | _YES_NO | _REAL
