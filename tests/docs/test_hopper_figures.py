"""The figures of the Hopper page are those of the published run. `UPDATE_GOLDEN=1 pytest` writes them anew."""

from __future__ import annotations

import csv
import json
import os
import re
import tomllib
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tests.tl.study.anew import ANEW, RECORDED, best
from tests.tl.study.cells import BASE
from tests.tl.study.figures import ratio
from tests.tl.study.searching import FOUND, gap

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hopper.md"
RUN = ROOT / "reports" / "published" / "h100-2026-11-26-hopper"
STUDIES = ROOT / "reports" / "studies"
GENERATION = ROOT / "reports" / "published" / "h100-2026-11-27-gluon-generation"
MODELS = ROOT / "reports" / "published" / "h100-2026-11-27-hopper-models"
TASKS = ("gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
OF_MODELS = re.compile(r"(<!-- model figures: begin -->\n)(.*?)(<!-- model figures: end -->)", re.DOTALL)
FIGURES = re.compile(r"(<!-- hopper figures: begin -->\n)(.*?)(<!-- hopper figures: end -->)", re.DOTALL)
PARTS = (
    ("all 24", {}),
    *(
        (f"{words}, {'head dimension ' if first else ''}{dim}", {"task": task, "dim": dim})
        for words, task in (("causal", "mha_causal"), ("full", "mha"))
        for dim in ("128", "64")
        for first in [words == "causal" and dim == "128"]
    ),
)


def cells(**asked: str) -> list[float]:
    """Over the best human, where query and key lengths are equal."""
    with (RUN / "report" / "report.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] == "candidate" and r["seq_q"] == r["seq_k"]]
    return [
        float(r["speedup_vs_best_baseline"])
        for r in rows
        if all(r[key] == value for key, value in asked.items())
    ]


def table() -> str:
    lines = ["| cells | fp16 | bf16 |", "|---|--:|--:|"]
    kinds = [(words, geometric_mean, asked) for words, asked in PARTS]
    for words, of, asked in [*kinds, ("least", min, {}), ("most", max, {})]:
        lines.append(
            f"| {words} | {' | '.join(f'{of(cells(dtype=d, **asked)):.3f}' for d in ('fp16', 'bf16'))} |"
        )
    return "\n".join(lines) + "\n"


def of_models() -> str:
    with (MODELS / "report" / "report.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] == "candidate" and r["speedup_vs_best_baseline"]]
    lines = ["| task | cells | mean | least | most |", "|---|--:|--:|--:|--:|"]
    for task in TASKS:
        over = [float(r["speedup_vs_best_baseline"]) for r in rows if r["task"] == task]
        figures = " | ".join(f"{x:.3f}" for x in (geometric_mean(over), min(over), max(over)))
        lines.append(f"| `{task}` | {len(over)} | {figures} |")
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_run_on_models_shapes_says() -> None:
    said = PAGE.read_text(encoding="utf-8")
    made = OF_MODELS.sub(lambda m: m[1] + of_models() + m[3], said)
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(made, encoding="utf-8")
    assert OF_MODELS.search(made) and PAGE.read_text(encoding="utf-8") == made
    ahead = re.findall(r"\| \d\.\d{3} \| (\d\.\d{3}) \| \d\.\d{3} \|", of_models())
    assert len(ahead) == len(TASKS) and all(float(x) > 1 for x in ahead) and "Ahead in all 27 cells" in said


def test_the_page_says_what_the_run_says() -> None:
    assert {d: len(cells(dtype=d)) for d in ("fp16", "bf16")} == {"fp16": 24, "bf16": 24}
    said = PAGE.read_text(encoding="utf-8")
    made = FIGURES.sub(lambda m: m[1] + table() + m[3], said)
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(made, encoding="utf-8")
    assert FIGURES.search(made) and PAGE.read_text(encoding="utf-8") == made


def test_what_other_pages_say_in_words_is_so() -> None:
    everything = cells()
    mean, ahead = f"{geometric_mean(everything):.3f}", sum(x > 1 for x in everything)
    for page in ("README.md", "docs/results.md", "docs/hopper.md", "docs/reproduce-the-paper.md"):
        assert mean in (ROOT / page).read_text(encoding="utf-8"), (page, mean)
    assert f"in {ahead} of the 48 cells" in PAGE.read_text(encoding="utf-8")


# --- studies ----------------------------------------------------------------------------------------


def cells_of(study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((STUDIES / study).read_text(encoding="utf-8"))["cells"]
    return found


def test_the_page_says_what_the_searches_found() -> None:
    said, gaps = PAGE.read_text(encoding="utf-8"), []
    for dim in (128, 64):
        for name, entry in cells_of(f"h100-2026-11-27/search-{dim}.json").items():
            length, own = name.split(" ")[0].split(":")[1:]
            if int(own) != dim:
                continue
            apart, timed, samples = gap(entry), entry["evaluations"], entry["samples_ms"]
            assert apart is not None
            gaps.append((apart, timed / entry["size"]))
            faster = ratio(samples[BASE], samples[FOUND])
            share = f"{timed} ({100 * timed / entry['size']:.1f} %)"
            row = f"| {length}, {dim} | {entry['size']} | {share} | {round(100 * apart, 1) + 0:.1f} % | {faster:.3f} |"
            assert row in said.splitlines(), row
    assert len(gaps) == 6 and all(apart <= 0.02 and share <= 0.15 for apart, share in gaps)
    assert f"six of six cells, with at most {100 * max(share for _, share in gaps):.1f} %" in said


def test_the_page_says_what_programs_compiled_anew_took() -> None:
    said = PAGE.read_text(encoding="utf-8")
    over: dict[tuple[bool, str, bool], dict[str, list[float]]] = {}
    branches = {
        (told["task"], told["name"]): "\n    if j" in (folder / "program.tl").read_text(encoding="utf-8")
        for folder in GENERATION.glob("artifacts/*") if (folder / "program.tl").exists()
        for told in [tomllib.loads((folder / "candidate.toml").read_text(encoding="utf-8"))]
    }  # fmt: skip
    for cell, entry in cells_of("h200-2026-11-27/anew.json").items():
        task, key = cell.split(" ")
        dim, samples = "64" if "-d64-" in key else "128", entry["samples_ms"]
        assert len(entry["programs"]) == 6 and not entry["problems"]
        for name in entry["programs"]:
            kind = (branches[task, name], dim, dim == "64" and "compiled" in name)
            by = over.setdefault(kind, {RECORDED: [], ANEW: []})
            for how, found in by.items():
                found.append(ratio(samples[best(samples)], samples[f"{name} {how}"]))
    assert len(over) == 6
    for (_, dim, _), by in over.items():
        shown = [f"{geometric_mean(x):.3f} ({min(x):.3f} to {max(x):.3f})" for x in by.values()]
        assert f"| {dim} | {len(by[ANEW])} | {' | '.join(shown)} |" in said, (dim, shown)


def test_the_page_says_what_a_chunk_took() -> None:
    said = PAGE.read_text(encoding="utf-8")
    found = cells_of("h200-2026-11-27/anew-chunk.json").values()
    gains, over = [], []
    for entry in found:
        (name,), samples = entry["programs"], entry["samples_ms"]
        gains.append(ratio(samples[f"{name} {RECORDED}"], samples[f"{name} {ANEW}"]))
        over.append(ratio(samples[best(samples)], samples[f"{name} {ANEW}"]))
    assert f"{gains[0]:.2f} as fast in fp16 and {gains[1]:.2f} in bf16" in said
    assert {f"{x:.2f}" for x in over} == {"1.02"} and "1.02 of the best human" in said
