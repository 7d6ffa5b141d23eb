"""The site: every entry traceable, targets apart, all links there, nothing of others replaced."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.verdicts import Verdict
from reports import RunError, load_run
from reports.figures import FAILED_SPEEDUP, headline
from reports.site.board import COLUMNS, Entry, entries, rank
from reports.site.code import coloured
from reports.site.pages import mathml, task_path
from reports.site.publish import MARKER, SiteError, publish
from tasks import discover
from tests.reports import synthetic, synthetic_trials


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        synthetic.tiny_run(folder / "tiny"),
        synthetic.cpu_run(folder / "cpu"),
        synthetic_trials.generation_run(folder / "made"),
    ]


@pytest.fixture(scope="module")
def site(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "site"
    assert publish(runs, out, discover()) == out / "index.html"
    return out


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)


def links(page: Path) -> _Links:
    found = _Links()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def test_every_link_leads_to_a_file_of_the_site_and_to_a_place_in_it(site: Path) -> None:
    pages = {page: links(page) for page in site.rglob("*.html")}
    assert len(pages) > 10
    for page, found in pages.items():
        assert len(found.ids) == len(set(found.ids)), f"{page}: an id twice"
        for link in found.links:
            if link.startswith("data:"):
                continue
            parts = urlsplit(link)
            assert not parts.scheme and not parts.netloc, f"{page} loads or links {link} from elsewhere"
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file() and target.is_relative_to(site.resolve()), f"{page}: {link} leads nowhere"
            if parts.fragment and target.suffix == ".html":
                assert parts.fragment in pages[target if target in pages else page].ids, f"{page}: {link}"


def test_the_board_has_an_entry_for_every_result_and_each_leads_to_its_record(
    site: Path, runs: list[Path]
) -> None:
    board = json.loads((site / "data" / "board.json").read_text())
    assert tuple(board["columns"]) == COLUMNS
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in board["rows"]]
    of_tiny = [r for r in rows if r["run"] == "tiny"]
    assert len(of_tiny) == len(load_run(runs[0]).rows)
    for row in rows:
        page, _, anchor = row["link"].partition("#")
        assert anchor in links(site / page).ids
        if row["kernel"]:
            assert (site / row["kernel"]).is_file()
    with (site / "data" / "board.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [r["record"] for r in table] == [r["record"] for r in rows]
    script = (site / "data" / "board.js").read_text()
    assert json.loads(script.removeprefix("window.BOARD = ").rstrip(";\n")) == board


def test_the_rank_of_a_contender_is_the_headline_of_its_report(runs: list[Path]) -> None:
    dataset = load_run(runs[0])
    ranked = {r.contender: r for r in rank(entries(dataset))}
    for name in ("mine", "broken"):
        told = headline(name, "overall", dataset.cells)
        found = ranked[name]
        assert told.geomean is not None and found.geomean is not None
        assert found.geomean.median == pytest.approx(told.geomean.median)
        assert (found.geomean.low, found.geomean.high) == pytest.approx((told.geomean.low, told.geomean.high))
        assert found.counted == pytest.approx(told.geomean_failures_counted)
        assert (found.measured, found.cells, found.faster) == (told.measured, told.cells, told.faster)
    assert ranked["broken"].failed == 1
    assert "flash-attn" not in ranked  # skipped everywhere


BLANK = Entry(
    run="r", target="h100", device="d", task="t", workload="w", label="", dtype="fp16", mask="full", dim=64,
    dim_v=64, batch=1, heads=1, kv_heads=1, seq_q=1, seq_k=1, contender="a", kind="candidate", track="own kernel",
    method="vanilla", backend="cuda", model="", verdict="ok", reason="", time_ms=1.0, tflops=1.0,
    percent_of_peak=None, speedup=1.0, low=0.9, high=1.1, noise=0.01, standing="", paired=True, best_human="h",
    record="x:1", link="", kernel="",
)  # fmt: skip

SPEEDS = st.lists(st.one_of(st.none(), st.floats(0.02, 50)), min_size=1, max_size=6)


@given(st.dictionaries(st.sampled_from("abcd"), SPEEDS, min_size=1))
def test_who_was_tried_everywhere_stands_first_and_failing_never_helps(
    speeds: dict[str, list[float | None]],
) -> None:
    made = [
        replace(BLANK, contender=name, workload=str(n), speedup=s, low=s and s * 0.9, high=s and s * 1.1,
                verdict="ok" if s else "crash")
        for name, found in speeds.items()
        for n, s in enumerate(found)
    ]  # fmt: skip
    ranked = rank(made)
    assert {r.contender for r in ranked} == set(speeds)
    whole = [r.whole for r in ranked]
    assert whole == sorted(whole, reverse=True)
    for group in (True, False):
        counted = [r.counted or 0 for r in ranked if r.whole is group]
        assert counted == sorted(counted, reverse=True)
    cells = max(map(len, speeds.values()))
    for r in ranked:
        of = speeds[r.contender]
        known = [s for s in of if s]
        assert (r.measured, r.failed, r.cells) == (len(known), len(of) - len(known), cells)
        logs = [math.log(s or FAILED_SPEEDUP) for s in of]
        assert r.counted == pytest.approx(math.exp(sum(logs) / len(logs)))


def test_cells_of_one_run_are_no_cells_of_another() -> None:
    made = [
        replace(BLANK, run=run, workload=str(n)) for run, count in (("r", 1), ("s", 3)) for n in range(count)
    ]
    assert {(r.run, r.cells, r.whole) for r in rank(made)} == {("r", 1, True), ("s", 3, True)}


def test_the_pages_of_a_models_kernel_show_program_kernel_and_story(site: Path) -> None:
    pages = [p.read_text(encoding="utf-8") for p in (site / "kernels").glob("*.html")]
    through_tl = [p for p in pages if "TL sketch" in p or "TL program" in p]
    assert through_tl
    for page in through_tl:
        assert "From program to kernel" in page and "How it came to be" in page
    sha = re.search(r"<dd class=\"hash\">([0-9a-f]{64})", through_tl[0])
    assert sha is not None
    records = json.loads((site / "kernels" / f"{sha[1][:12]}.json").read_text())
    assert records["kernel"] == sha[1] and records["records"]
    assert all(r["result"]["candidate"]["sha256"] == sha[1] for r in records["records"])


def test_targets_are_never_in_one_table(site: Path) -> None:
    page = (site / "tasks" / "mha_causal.html").read_text(encoding="utf-8")
    sections = re.split(r"<h2>On ", page)[1:]
    assert {s[:4].rstrip("<") for s in sections} == {"h100", "cpu"}
    for section in sections:
        assert ("GFLOP/s" in section) == section.startswith("cpu")
        assert ("numba-tiled" in section) == section.startswith("cpu")


def test_what_a_kernel_says_of_itself_is_text_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = synthetic.tiny_run(tmp_path / "evil")
    for file in (run / "artifacts").rglob("kernel.py"):
        file.write_text(f"# {evil}\n")
    publish([run], tmp_path / "site", {}, title=evil)
    for page in (tmp_path / "site").rglob("*.html"):
        assert evil not in page.read_text(encoding="utf-8"), page
    assert (
        evil not in coloured("x.py", evil)
        and evil not in coloured("x.tl", evil)
        and evil not in coloured("?", evil)
    )


def test_two_slashes_divide_in_brackets_and_begin_a_comment_outside() -> None:
    said = coloured("x.tl", "Allocate K in global (n, d) with offset (b, h // group) // of its group\nend\n")
    assert re.findall(r'<span class="c1">([^<]*)</span>', said) == ["// of its group"]
    assert '<span class="n">group</span>' in said and '<span class="k">end</span>' in said


def test_a_folder_of_something_else_is_not_replaced_and_a_site_is(tmp_path: Path, runs: list[Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(SiteError, match="is no site of attnbench"):
        publish(runs[:1], other, {})
    assert (other / "thesis.tex").read_text() == "years of work"
    out = tmp_path / "site"
    publish(runs[:1], out, {})
    (out / "stale.html").write_text("old")
    publish(runs[:1], out, {})
    assert (out / MARKER).exists() and not (out / "stale.html").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_fails_leaves_the_site_that_stood_there(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "site"
    publish(runs[:1], out, {})
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.site.publish.shutil.copyfile", full)
    with pytest.raises(SiteError, match="No space left"):
        publish(runs[:1], out, {})
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_runs_of_one_name_and_folders_that_are_no_runs_are_refused(tmp_path: Path, runs: list[Path]) -> None:
    twin = synthetic.tiny_run(tmp_path / "elsewhere" / "tiny")
    with pytest.raises(SiteError, match="both called tiny"):
        publish([runs[0], twin], tmp_path / "site", {})
    with pytest.raises(RunError, match="has no results"):
        publish([tmp_path], tmp_path / "site", {})
    assert not (tmp_path / "site").exists()


def test_a_run_without_results_and_tasks_that_are_not_known_have_pages_too(
    tmp_path: Path, runs: list[Path]
) -> None:
    empty = synthetic.write_run(tmp_path / "empty", [synthetic.result(
        "own/../task", synthetic.workload(512), synthetic.candidate("mine"), Verdict.CRASH, None
    )])  # fmt: skip
    publish([empty], tmp_path / "site", {})
    assert (tmp_path / "site" / task_path("own/../task")).is_file()
    assert "was not given" in (tmp_path / "site" / task_path("own/../task")).read_text()


def test_formulas_of_all_tasks_can_be_drawn() -> None:
    for task in discover().values():
        assert mathml(task.math).startswith("<math"), task.name
    assert mathml("\\frac{") == ""


def test_the_same_records_give_the_same_site(tmp_path: Path, runs: list[Path]) -> None:
    for name in ("a", "b"):
        publish(runs[:1], tmp_path / name, {})
    files = [
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if p.is_file()) for n in "ab"
    ]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
