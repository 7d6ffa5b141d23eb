"""The report of a run with models: every format, readable widths, stories that cannot break the page."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from harness.verdicts import Verdict
from reports import load_run, render, terminal_table
from reports import stories as stories_module
from reports.generated import Generated
from reports.page import anchor, cards
from reports.samples import best_of_samples
from reports.stories import TEXT_LIMIT, cut, stories
from reports.stories import anchor as story_anchor
from reports.surroundings import all_sections
from tests.reports import synthetic, synthetic_trials
from tests.reports.synthetic_trials import PLAN, generation_run
from tests.reports.test_report import _Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = generation_run(tmp_path_factory.mktemp("runs") / "run")
    render(folder)
    return folder


def written(run: Path, name: str) -> str:
    return (run / "report" / name).read_text(encoding="utf-8")


def printed(run: Path, width: int) -> list[str]:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    console.print(terminal_table(load_run(run)))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_a_run_without_models_says_nothing_of_them(tmp_path: Path) -> None:
    folder = synthetic.tiny_run(tmp_path / "tiny")
    render(folder)
    page = written(folder, "report.html")
    assert "Generation" not in page and "stories" not in page and "best of" not in page
    assert "generation" not in json.loads(written(folder, "report.json"))


def test_same_records_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = {p.name: p.read_bytes() for p in render(run, tmp_path / "a")}
    second = {p.name: p.read_bytes() for p in render(run, tmp_path / "b")}
    assert first == second


def test_sections_come_after_the_comparisons_and_before_the_funnel(run: Path) -> None:
    slugs = [s.slug for s in all_sections(load_run(run))]
    own = [n for n, slug in enumerate(slugs) if slug.startswith("generation")]
    assert own == list(range(own[0], own[-1] + 1)) and len(own) == 7
    assert slugs[own[0] - 1].startswith("task-") and slugs[own[-1] + 1] == "funnel"


# --- the page ---


def test_page_fetches_nothing_and_its_links_lead_somewhere(run: Path) -> None:
    text = written(run, "report.html")
    page = _Page()
    page.feed(text)
    assert page.fetched == []
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert page.fragments <= set(page.ids)


def test_every_trial_has_its_story_and_every_record_of_it_leads_there(run: Path) -> None:
    data = load_run(run)
    page = _Page()
    page.feed(written(run, "report.html"))
    wanted = {story_anchor(e.trial) for e in data.endings}
    assert wanted <= set(page.ids) and wanted <= page.fragments
    text = written(run, "report.html")
    for row in (r for r in data.rows if r.generated):
        detail = text[text.index(f'<dl id="{anchor(row)}">') :]
        assert f'href="#{story_anchor(row.result.candidate.trial)}"' in detail[: detail.index("</details>")]


def test_prompts_answers_and_programs_cannot_become_markup(run: Path) -> None:
    text = written(run, "report.html")
    for said in ("prompt", "a program", "invented"):
        assert f"&lt;{said} &amp; only for tests&gt;" in text
        assert f"<{said}" not in text


def test_no_table_entry_is_blank(run: Path) -> None:
    entries = re.findall(r"<td[^>]*>(.*?)</td>", written(run, "report.html"))
    assert entries and all(re.sub("<[^>]+>", "", e).strip() for e in entries)


def test_one_card_and_one_column_pair_for_each_method_and_model(run: Path) -> None:
    data = load_run(run)
    assert len(cards(best_of_samples(data))) == 4
    section = next(s for s in all_sections(data) if s.slug == "task-mha-causal")
    titles = [c.title for c in section.tables[0].columns]
    assert sum("vs best" in t for t in titles) == 4
    assert not any("claude-0" in t for t in titles)
    assert any("fastest of n samples" in p for p in section.paragraphs)


def test_figures_of_the_best_sample_keep_their_links(run: Path) -> None:
    section = next(s for s in all_sections(load_run(run)) if s.slug == "task-mha-causal")
    lines = [line for line in section.tables[0].lines if not isinstance(line, str)]
    assert all(entry.row is not None for line in lines for entry in line[2:] if entry.style != "muted")


def test_a_conversation_is_told_once(run: Path) -> None:
    told = stories(Generated(load_run(run)))
    story = next(s for s in told if s.title == "tl, claude, sample 1, mha_causal")
    asked = [step.asked for step in story.steps if step.asked]
    assert [a.before for a in asked] == [0, 2, 4, 6]
    assert [len(a.prompt) for a in asked] == [1, 1, 1, 1]
    assert any(synthetic_trials.DISAGREES in step.said for step in story.steps)


def test_long_texts_are_cut_with_a_mark() -> None:
    assert cut("a" * TEXT_LIMIT) == "a" * TEXT_LIMIT
    assert cut("a" * (TEXT_LIMIT + 7)).endswith("[... cut here: 7 more characters]")


def test_past_its_room_the_page_names_a_trial_and_the_files(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Generated(load_run(run))
    whole = stories(of)
    size = sum(step.size for step in whole[0].steps)
    monkeypatch.setattr(stories_module, "PAGE_LIMIT", size)
    few = stories(of)
    assert few[0] == whole[0]
    assert not any(s.steps for s in few[1:])
    assert all(
        "trials.jsonl and transcripts.jsonl" in s.left_out for s in few[1:] if s.title != whole[0].title
    )
    assert [s.trial for s in few] == [s.trial for s in whole]


def test_a_lost_answer_is_said(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run", {("mha", "vanilla"): [(250, 250)]})
    (folder / "transcripts.jsonl").unlink()
    (story,) = stories(Generated(load_run(folder)))
    assert "is not in transcripts.jsonl" in story.steps[0].said
    render(folder)


# --- other formats ---


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.csv", "report.json"])
def test_every_verdict_and_reason_is_in_every_format(run: Path, name: str) -> None:
    text = unescape(written(run, name))
    failed = {v for samples in PLAN.values() for v in samples if isinstance(v, Verdict)}
    assert len(failed) == 6
    for verdict in (*failed, Verdict.LIBRARY_DISPATCH):
        assert verdict.value in text and synthetic.REASONS[verdict] in text


def test_csv_says_who_made_each_kernel(run: Path) -> None:
    lines = list(csv.DictReader(StringIO(written(run, "report.csv"))))
    for line, row in zip(sorted(lines, key=lambda x: int(x["line"])), load_run(run).rows, strict=True):
        c = row.result.candidate
        made = (c.model, str(c.sample), c.trial) if c.trial else ("", "", "")
        assert (line["model"], line["sample"], line["trial"]) == made


def test_json_holds_every_derived_figure_with_its_records(run: Path) -> None:
    data = json.loads(written(run, "report.json"))
    assert {h["candidate"] for h in data["headline"]} == {
        f"{m}, claude (best of 3)" for m in ("vanilla", "tl-one-stage", "tl", "tl-compiled")
    }
    made = data["generation"]
    assert len(made["trials"]) == 21
    records = {r.result.id for r in load_run(run).rows}
    cells = [c for t in made["trials"] for c in t["cells"]]
    assert len(cells) == 42 and all(c["record"]["record"] in records for c in cells)
    tl = next(s for s in made["scores"] if s["method"] == "tl" and s["scope"] == "overall")
    assert tl["fast_p"]["1.0"] == 0.4 and tl["infra"] == 1
    assert [p["value"] for p in tl["pass_at"]] == pytest.approx([5 / 6, 1.0, None])
    duel = next(d for d in made["over_vanilla"] if d["of"]["method"] == "tl")
    assert [v["cells"] for v in duel["variants"]] == [2, 2, 4]
    assert {"ablation", "programs", "costs", "paid_by_the_run", "paper", "unfinished_trials"} <= set(made)


def test_markdown_and_latex_use_the_same_names(run: Path) -> None:
    for name in ("report.md", "table.tex"):
        assert "tl, claude (best of 3)" in written(run, name)
    assert "no correct kernel" not in written(run, "report.md")  # every method has one


def test_what_there_is_not_is_said_in_words(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run", {("mha", "tl"): [Verdict.CRASH]}, models=("unpriced",))
    render(folder)
    text = written(folder, "report.md")
    for said in ("no correct kernel", "no price known", "n < 3", "none measured", "not measured here"):
        assert said in text


def test_trials_that_did_not_end_are_warned_of(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run", unfinished=True)
    render(folder)
    text = written(folder, "report.md")
    assert "1 trial of models began and did not end" in text
    assert "1 trial began and did not end" in text


def test_a_run_that_only_asked_still_gives_a_report(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run")
    (folder / "results.jsonl").write_text("")
    page = render(folder)[0].read_text(encoding="utf-8")
    assert "Generation: how far trials came" in page and "not measured yet" in page
    assert any("trials of models" in line for line in printed(folder, 80))


# --- the terminal ---


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_lines_fit_and_nothing_is_cut(run: Path, width: int) -> None:
    lines = printed(run, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    for said in (
        "tl, claude (best of 3): 1.113x",
        "pass@1",
        "paired samples 2.128x",
        "flash-",
        "infra",
        "no_code",
    ):
        assert said in text


@pytest.mark.parametrize("models", [("claude",), ("claude", "b", "c")])
def test_at_80_columns_the_best_baseline_stays_beside_the_methods(
    tmp_path: Path, models: tuple[str, ...]
) -> None:
    lines = printed(generation_run(tmp_path / "run", models=models), 80)
    shown = [line for line in lines if line.split()[:1] in (["1k"], ["4k"])]
    assert len(shown) == 4 and all("500.0*" in line for line in shown)
    assert max(map(len, lines)) <= 80
