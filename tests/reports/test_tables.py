"""The terminal's tables fit the terminal and lose no figure that matters."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from reports.dataset import load_run
from reports.tables import choose_columns, terminal_table
from tests.reports import synthetic


def printed(run: Path, width: int) -> list[str]:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    console.print(terminal_table(load_run(run)))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.h100_run(tmp_path_factory.mktemp("runs") / "large")


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_lines_fit_and_nothing_is_cut(run: Path, width: int) -> None:
    lines = printed(run, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    text = "\n".join(lines)
    for said in ("wrong_numerics", "build_error", "timeout", "skipped", "noise floor", "36 of 48", "vs best"):
        assert said in text


def test_each_line_of_a_table_marks_one_best_baseline(run: Path) -> None:
    rows = [line for line in printed(run, 120) if line.split() and line.split()[0] in ("512", "1k", "16k")]
    assert len(rows) == 2 * 4 * 3
    assert all(line.count("*") == 1 for line in rows)


def test_best_baselines_are_the_last_to_go(run: Path) -> None:
    data = load_run(run)
    cells = data.cells_of("h100", "mha")
    baselines = [c.label for c in data.baselines]
    candidates = [c.label for c in data.candidates]
    narrow = choose_columns(cells, baselines, candidates, 70)
    assert set(narrow.baselines) == {"cudnn", "flash-attn-4"}
    assert narrow.candidates == tuple(candidates)
    assert {"naive", "flex", "sdpa-flash"} <= set(narrow.dropped)
    wide = choose_columns(cells, baselines, candidates, 200)
    assert wide.dropped == () and wide.candidate_rates


def test_what_has_no_room_is_named(run: Path) -> None:
    assert "no room here, see the report: " in "\n".join(printed(run, 80))


def test_a_cpu_table_is_in_gflops(tmp_path: Path) -> None:
    text = "\n".join(printed(synthetic.cpu_run(tmp_path / "cpu"), 80))
    assert "GFLOP/s" in text and "123.4*" in text and "proven" in text
