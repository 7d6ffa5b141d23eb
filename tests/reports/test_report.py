"""The written report: same bytes from same records, nothing fetched, nothing blank, every figure traceable.

Golden files are rewritten by `UPDATE_GOLDEN=1 pytest tests/reports`; read the difference.
"""

from __future__ import annotations

import csv
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports import RunError, load_run, render
from reports.page import anchor
from reports.sections import UNTRIED_NOTE, headline_section
from reports.surroundings import warnings
from tests.reports import synthetic

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = synthetic.h100_run(tmp_path_factory.mktemp("runs") / "large")
    render(run)
    return run


@pytest.mark.parametrize("name", ["report.md", "report.csv", "table.tex"])
def test_report_of_a_tiny_run_is_the_golden_one(tmp_path: Path, name: str) -> None:
    run = synthetic.tiny_run(tmp_path / "tiny")
    render(run)
    written = (run / "report" / name).read_text(encoding="utf-8")
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(written, encoding="utf-8")
    assert written == golden.read_text(encoding="utf-8")


def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    run = synthetic.tiny_run(tmp_path / "tiny")
    first = {p.name: p.read_bytes() for p in render(run, tmp_path / "a")}
    second = {p.name: p.read_bytes() for p in render(run, tmp_path / "b")}
    assert first == second
    assert {"report.html", "report.md", "report.csv", "report.json", "table.tex"} <= set(first)
    assert any(name.endswith(".svg") for name in first)


class _Page(HTMLParser):
    """Collects ids, fragment links and anything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fragments: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            elif name in ("href", "src", "xlink:href", "srcset", "data") and value:
                if value.startswith("#"):
                    self.fragments.add(value[1:])
                else:
                    self.fetched.append(value)
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)


def test_page_fetches_nothing_and_its_links_lead_somewhere(large: Path) -> None:
    text = (large / "report" / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.fetched == []
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert page.fragments <= set(page.ids)


def test_every_record_has_its_details_and_a_link_to_them(large: Path) -> None:
    page = _Page()
    page.feed((large / "report" / "report.html").read_text(encoding="utf-8"))
    wanted = {anchor(row) for row in load_run(large).rows}
    assert wanted <= set(page.ids)
    assert wanted <= page.fragments


def test_source_text_of_a_candidate_cannot_become_markup(large: Path) -> None:
    text = (large / "report" / "report.html").read_text(encoding="utf-8")
    assert "&lt;invented &amp; only for tests&gt;" in text
    assert "<invented" not in text


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.csv", "report.json"])
def test_every_verdict_and_reason_is_in_every_format(large: Path, name: str) -> None:
    text = (large / "report" / name).read_text(encoding="utf-8")
    for verdict in (Verdict.SKIPPED, Verdict.BUILD_ERROR, Verdict.TIMEOUT, Verdict.WRONG_NUMERICS):
        assert verdict.value in text
        assert synthetic.REASONS[verdict] in text


def test_no_table_entry_is_blank(large: Path) -> None:
    text = (large / "report" / "report.html").read_text(encoding="utf-8")
    entries = re.findall(r"<td[^>]*>(.*?)</td>", text)
    assert entries and all(re.sub("<[^>]+>", "", e).strip() for e in entries)


def test_csv_has_a_line_a_result_and_agrees_with_json(large: Path) -> None:
    with (large / "report" / "report.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = load_run(large).rows
    assert len(lines) == len(rows)
    assert {(line["record"], int(line["line"])) for line in lines} == {(r.result.id, r.line) for r in rows}
    data = json.loads((large / "report" / "report.json").read_text(encoding="utf-8"))
    against_best = {
        s["records"][0]["record"]: s["median"]
        for cell in data["cells"]
        for s in cell["speedups"]
        if s["over_is_best"]
    }
    from_csv = {
        line["record"]: float(line["speedup_vs_best_baseline"])
        for line in lines
        if line["kind"] == "candidate" and line["speedup_vs_best_baseline"]
    }
    assert from_csv == pytest.approx(against_best, abs=1e-6)


def test_a_cpu_run_is_read_in_gflops_and_what_is_only_proven_says_so(tmp_path: Path) -> None:
    run = synthetic.cpu_run(tmp_path / "cpu")
    render(run)
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "GFLOP/s" in text and "TFLOP/s" not in text
    assert "123.4" in text
    assert "proven" in text and "this machine has no GPU" in text


def test_an_empty_and_a_torn_run_still_give_a_report(tmp_path: Path) -> None:
    empty = render(synthetic.write_run(tmp_path / "empty", [], summaries=[]))
    assert "No candidate" in empty[0].read_text(encoding="utf-8")
    torn = synthetic.tiny_run(tmp_path / "torn")
    path = torn / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert "torn last line" in render(torn)[0].read_text(encoding="utf-8")


def test_no_run_no_report_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_latex_is_balanced_and_escaped(large: Path) -> None:
    text = (large / "report" / "table.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{") == text.count(r"\end{") == 4
    assert not re.search(r"(?<!\\)_", text)
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {6}


def test_a_noisy_machine_is_said_before_any_figure(tmp_path: Path) -> None:
    quiet, noisy = synthetic.tiny_run(tmp_path / "quiet"), tmp_path / "noisy"
    off = synthetic.ratio("cudnn", 1.04)
    lines = [r for row in load_run(quiet).rows for r in [row.result]]
    loud = [
        r.model_copy(update={"measurement": r.measurement.model_copy(update={"noise": off})})
        if r.measurement and r.measurement.noise
        else r
        for r in lines
    ]
    synthetic.write_run(noisy, [r.bare for r in loud])
    assert not [w for w in warnings(load_run(quiet)) if "noisy" in w]
    (said,) = [w for w in warnings(load_run(noisy)) if "noisy" in w]
    assert "4.0 %" in said


def test_a_candidate_has_no_row_of_a_task_that_it_was_not_tried_in(tmp_path: Path) -> None:
    """But what it lacks is counted in its last row; and one that was tried nowhere else keeps that row."""
    w = synthetic.workload(4096)
    told = []
    for task, mine in (("mha", ("one", "both")), ("mha_causal", ("both",))):
        told.append(synthetic.result(task, w, synthetic.candidate("sdpa", "baseline"), Verdict.OK,
                                     synthetic.measurement(w, "sdpa", "h100", 400, synthetic.ratio("sdpa", 1.0))))  # fmt: skip
        for name in mine:
            m = synthetic.measurement(w, name, "h100", 500, synthetic.ratio("sdpa", 1.25))
            told.append(synthetic.result(task, w, synthetic.candidate(name), Verdict.OK, m))
    run = synthetic.write_run(tmp_path / "run", told)
    (table,) = headline_section(load_run(run)).tables
    rows = [[*(e.text for e in line[:3]), line[-1].text] for line in table.lines if not isinstance(line, str)]
    assert rows == [
        ["one", "mha", "1/1", "none"], ["one", "overall", "1/1", "1 not tried"],
        ["both", "mha", "1/1", "none"], ["both", "mha_causal", "1/1", "none"], ["both", "overall", "2/2", "none"],
    ]  # fmt: skip
    assert UNTRIED_NOTE in headline_section(load_run(run)).paragraphs
