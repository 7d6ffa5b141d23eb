"""Owns table.tex: the main comparison as booktabs tables, one per task, ready to \\input into a paper."""

from __future__ import annotations

import string
from itertools import groupby

from reports import text
from reports.dataset import Cell, Dataset
from reports.figures import FAILED_SPEEDUP, best_baseline, headline, speedup

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex(dataset: Dataset) -> str:
    """LaTeX source; needs only the booktabs package."""
    head = f"% attnbench, run {dataset.name}. Needs \\usepackage{{booktabs}}.\n"
    return head + "\n".join(_table(dataset, *group) for group in dataset.groups)


def escape(said: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in said)


def _table(dataset: Dataset, target: str, task: str) -> str:
    cells = dataset.cells_of(target, task)
    heads = list(dict.fromkeys(_column(c, cells) for c in cells))
    notes: dict[str, str] = {}
    body: list[str] = []
    for shared, members in groupby(cells, key=lambda c: text.family(c.workload)):
        by_column = {_column(c, cells): c for c in members}
        body += [r"\midrule", rf"\multicolumn{{{len(heads) + 1}}}{{l}}{{\textit{{{escape(shared)}}}}} \\"]
        for contender in dataset.contenders:
            rows = [c.row(contender.label) for c in by_column.values()]
            if not any(rows):
                continue
            found = [_rate(by_column.get(h), contender.label, notes) for h in heads]
            body.append(_line(escape(contender.label), found))
            if contender.kind == "candidate":
                against = [_speedup(by_column.get(h), contender.label) for h in heads]
                body.append(_line(r"\quad speedup vs.\ best baseline", against))
    caption = _caption(dataset, target, task, notes)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{''.join(c if c.isalnum() else '-' for c in dataset.group_title(target, task))}}}",
            rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
            r"\toprule",
            _line(rf"{escape(text.unit(target))} at length", [escape(h) for h in heads]),
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _column(cell: Cell, cells: tuple[Cell, ...]) -> str:
    """Length, with the batch only where one shape family has a length twice."""
    said = text.lengths(cell.workload)
    family = text.family(cell.workload)
    same = [c for c in cells if text.family(c.workload) == family and text.lengths(c.workload) == said]
    return said if len(same) == 1 else f"{said}, b{cell.workload.batch}"


def _rate(cell: Cell | None, contender: str, notes: dict[str, str]) -> str:
    row = cell.row(contender) if cell else None
    if cell is None or row is None:
        return _mark(text.ABSENT, notes)
    if row.measured is None:
        return _mark(text.verdict(row), notes)
    said = text.rate(row.measured.tflops, cell.target)
    return rf"\textbf{{{said}}}" if row is best_baseline(cell) else said


def _mark(why: str, notes: dict[str, str]) -> str:
    letter = notes.setdefault(why, string.ascii_lowercase[len(notes)])
    return rf"--$^{{{letter}}}$"


def _speedup(cell: Cell | None, candidate: str) -> str:
    row = cell.row(candidate) if cell else None
    found = speedup(cell, row) if cell and row else None
    if found is None:
        return "--"
    e = found.estimate
    half = max(e.high - e.median, e.median - e.low)
    return rf"{e.median:.2f}" if half < 0.005 else rf"{e.median:.2f}$\pm${half:.2f}"


def _line(first: str, entries: list[str]) -> str:
    return " & ".join([first, *entries]) + r" \\"


def _caption(dataset: Dataset, target: str, task: str, notes: dict[str, str]) -> str:
    cells = dataset.cells_of(target, task)
    said = [
        f"{escape(task)} on {escape(', '.join(dataset.devices))}, {escape(text.unit(target))} at the median "
        r"device time. Bold: best human baseline of the cell, the denominator of the speedups "
        r"(95\,\% intervals within $\pm$0.005 unless shown)."
    ]
    for contender in dataset.candidates:
        h = headline(contender.label, task, cells)
        if h.geomean is not None and h.geomean_failures_counted is not None:
            said.append(
                rf"{escape(contender.label)}: geomean {h.geomean.median:.2f} over {h.measured} of {h.cells} "
                rf"cells, {h.geomean_failures_counted:.2f} with failed cells as {FAILED_SPEEDUP}."
            )
    said += [rf"$^{{{letter}}}$ {escape(why.replace('_', ' '))}." for why, letter in notes.items()]
    return " ".join(said)
