"""The README's leaderboard is the one that the published records give. `UPDATE_README=1 pytest` writes it anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

from reports import load_run, text
from reports.plots import looks, panel_svg, panels
from reports.samples import best_of_samples
from reports.site.board import Rank, entries, rank

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PLOT = ROOT / "docs" / "mha_causal-h100.svg"
BOARD = re.compile(r"(<!-- board (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(run: str) -> str:
    """As Markdown: the ranking of a run, over all its cells."""
    lines = [
        "| contender | over the best human | ahead beyond noise | best | of peak |",
        "|---|---|---|---|---|",
    ]
    lines += [_line(r) for r in rank(entries(load_run(ROOT / "reports" / "published" / run)))]
    return "\n".join(lines) + "\n"


def _line(r: Rank) -> str:
    assert r.geomean is not None and r.whole and not r.failed and r.best_tflops and r.best_percent
    name = f"{r.contender} (human)" if r.kind == "baseline" else f"**{r.contender}**"
    rate = f"{text.rate(r.best_tflops, r.target)} {text.unit(r.target)}"
    figure = text.with_interval(r.geomean)
    return f"| {name} | {figure} | {r.faster} of {r.cells} | {rate} | {r.best_percent:.1f} % |"


def plot() -> str:
    """One panel of the same run, on white: pages that show it may be dark."""
    run = README.read_text(encoding="utf-8").split("<!-- board ")[1].split(" ")[0]
    dataset = best_of_samples(load_run(ROOT / "reports" / "published" / run))
    panel = next(p for p in panels(dataset, "h100", "mha_causal") if "d128" in p.title)
    svg = panel_svg(panel, looks(dataset))
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', svg, count=1)


def test_the_leaderboard_is_that_of_the_records() -> None:
    said = README.read_text(encoding="utf-8")
    made = BOARD.sub(lambda m: m[1] + table(m[2]) + m[4], said)
    if os.environ.get("UPDATE_README"):
        README.write_text(made, encoding="utf-8")
        PLOT.write_text(plot(), encoding="utf-8")
    assert BOARD.search(made) and README.read_text(encoding="utf-8") == made
    assert _points(PLOT.read_text(encoding="utf-8")) == _points(plot())


def _points(svg: str) -> list[str]:
    """What is said in a plot, and how many lines are drawn: versions of matplotlib differ in the rest."""
    return [*re.findall(r"<text[^>]*>([^<]*)</text>", svg), str(svg.count("<use "))]
