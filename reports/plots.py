"""Owns the plots: throughput against sequence length as deterministic SVG, one panel a shape family."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from harness.records import Measurement
from reports import text
from reports.dataset import Cell, Dataset

# Ink and grid have colours of their own so that a page can put its theme's colours in their place.
INK = "#111213"
GRID = "#c9cacb"
# Okabe and Ito's palette, ordered by contrast on white and on black (https://jfly.uni-koeln.de/color/).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SIZE = (5.2, 3.7)  # inches; text of 9 pt stays readable at the width of a paper's column
_LEGEND_LINES, _LEGEND_LINE = 3, 0.19  # that fit in it, and the inches that each further one adds
_STYLE: Any = {  # Any: the type of a style's keys differs between versions of matplotlib
    "svg.fonttype": "none",
    "svg.hashsalt": "attnbench",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 1.5,
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a contender, the same in every panel of a run."""

    color: str
    marker: str
    line: str


@dataclass(frozen=True)
class Panel:
    """Cells that differ in length only."""

    target: str
    task: str
    title: str
    cells: tuple[Cell, ...]

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.target} {self.title}".lower()).strip("-")


def looks(dataset: Dataset) -> dict[str, Look]:
    """A look for each contender: candidates solid, baselines dashed; colours cycle with new markers."""
    ordered = [*dataset.candidates, *dataset.baselines]
    return {
        c.label: Look(
            PALETTE[n % len(PALETTE)],
            MARKERS[(n + n // len(PALETTE)) % len(MARKERS)],
            "-" if c.kind == "candidate" else "--",
        )
        for n, c in enumerate(ordered)
    }


def panels(dataset: Dataset, target: str, task: str) -> list[Panel]:
    """Panels of one task that have at least one measured figure, in table order."""
    found = []
    cells = dataset.cells_of(target, task)
    for shared, members in groupby(cells, key=lambda c: text.family(c.workload)):
        measured = tuple(c for c in members if any(r.measured for r in c.rows))
        if measured:
            found.append(Panel(target, task, f"{task}: {shared}", measured))
    return found


def panel_svg(panel: Panel, look: dict[str, Look]) -> str:
    """One panel as SVG text: lines over log2 length, or bars where there is only one length.

    Left axis: throughput, bars from p90 to p10 of the device time. Right axis: % of dense peak,
    where the target has one. The same input gives the same text.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        contenders = [name for name in look if any(_measured(c, name) for c in panel.cells)]
        positions = [c.workload.seq_k for c in panel.cells]
        if len(set(positions)) == len(positions) > 1:
            _draw_lines(axes, panel, contenders, look)
            columns = _legend_columns(panel, contenders)
            lines = -(-len(contenders) // columns)
            figure.set_figheight(_SIZE[1] + _LEGEND_LINE * max(0, lines - _LEGEND_LINES))
            figure.legend(loc="outside lower center", ncols=columns)
        else:
            _draw_bars(axes, panel, contenders, look)
        absent = _absent(panel, contenders)
        if absent:
            said = textwrap.fill(f"not measured: {', '.join(absent)}", 72)
            axes.set_xlabel(f"{axes.get_xlabel()}\n{said}")
        axes.set_title(panel.title, loc="left", wrap=True)
        stream = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _own_ids(stream.getvalue(), panel.slug)


def _legend_columns(panel: Panel, names: Sequence[str]) -> int:
    """Three fit under a panel; of the long names of generated kernels two, of the longest one."""
    longest = max(map(len, names))
    generated = any(r.generated for c in panel.cells for r in c.rows)
    return min(3 if not generated else 2 if longest <= 34 else 1, len(names))


def _measured(cell: Cell, contender: str) -> Measurement | None:
    row = cell.row(contender)
    return row.measured if row else None


def _absent(panel: Panel, shown: Sequence[str]) -> list[str]:
    """Contenders without a point in this panel and the verdicts that stand in its place."""
    verdicts: dict[str, set[str]] = {}
    for row in (r for cell in panel.cells for r in cell.rows if r.contender not in shown):
        verdicts.setdefault(row.contender, set()).add(text.verdict(row))
    return [f"{name} ({', '.join(sorted(said))})" for name, said in verdicts.items()]


def _spread(m: Measurement, target: str) -> tuple[float, float, float]:
    """Throughput at the median, and how far the slow (p90) and the fast (p10) samples are from it."""
    middle = text.in_unit(m.tflops, target)
    time = m.device_time
    return (
        middle,
        max(0.0, middle * (1 - time.median_ms / time.p90_ms)),
        max(0.0, middle * (time.median_ms / time.p10_ms - 1)),
    )


def _draw_lines(axes: Axes, panel: Panel, contenders: Sequence[str], look: dict[str, Look]) -> None:
    for name in contenders:
        points = [(c.workload.seq_k, m) for c in panel.cells if (m := _measured(c, name))]
        spreads = [_spread(m, panel.target) for _, m in points]
        own = look[name]
        axes.errorbar(
            [x for x, _ in points],
            [s[0] for s in spreads],
            yerr=[[s[1] for s in spreads], [s[2] for s in spreads]],
            color=own.color,
            marker=own.marker,
            linestyle=own.line,
            elinewidth=0.9,
            label=name,
        )
    lengths = sorted({c.workload.seq_k for c in panel.cells})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(lengths, [text.length(n) for n in lengths])
    same = all(c.workload.seq_q == c.workload.seq_k for c in panel.cells)
    axes.set_xlabel("sequence length" if same else "keys (sequence length of k and v)")
    axes.set_ylabel(text.unit(panel.target))
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y")
    peak = _peak(panel)
    if peak is not None:
        right = axes.twinx()
        right.set_ylim(0, 100 * axes.get_ylim()[1] / peak)
        right.set_ylabel("% of dense peak")
    else:
        axes.spines["right"].set_visible(False)


def _draw_bars(axes: Axes, panel: Panel, contenders: Sequence[str], look: dict[str, Look]) -> None:
    names, rates, values, below, above, colors = [], [], [], [], [], []
    for cell in panel.cells:
        length = f" {text.lengths(cell.workload)}, b{cell.workload.batch}" if len(panel.cells) > 1 else ""
        for name in contenders:
            m = _measured(cell, name)
            if m is not None:
                middle, slow, fast = _spread(m, panel.target)
                names.append(name + length)
                rates.append(text.rate(m.tflops, panel.target))
                values.append(middle)
                below.append(slow)
                above.append(fast)
                colors.append(look[name].color)
    at = range(len(values))
    axes.barh(at, values, xerr=[below, above], color=colors, height=0.62, ecolor=INK)
    for y, said, value, fast in zip(at, rates, values, above, strict=True):
        axes.annotate(
            said, (value + fast, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    one = len(panel.cells) == 1
    length = f", length {text.lengths(panel.cells[0].workload)}" if one else ""
    axes.set_xlabel(text.unit(panel.target) + length)
    axes.spines["right"].set_visible(False)


def _peak(panel: Panel) -> float | None:
    """The target's dense peak in the panel's unit, from any record that gives a percentage of it."""
    for cell in panel.cells:
        for row in cell.rows:
            m = row.measured
            if m is not None and m.percent_of_peak:
                return text.in_unit(100 * m.tflops / m.percent_of_peak, panel.target)
    return None


def _own_ids(svg: str, prefix: str) -> str:
    """Ids unique to this panel, so that several can stand in one page; no document type to look up."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    return svg


def for_page(svg: str) -> str:
    """The same SVG taking ink and grid from the page's theme, and its width from its box."""
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--rule)")
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    return re.sub(r'\sxmlns(?::xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
