"""The figures of the Hopper page are those of the published run. `UPDATE_GOLDEN=1 pytest` writes them anew."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from statistics import geometric_mean

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hopper.md"
RUN = ROOT / "reports" / "published" / "h100-2026-11-26-hopper"
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
