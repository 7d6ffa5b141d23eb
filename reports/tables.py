"""Owns the tables a run ends with in the terminal: what fits is chosen by the width there is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.verdicts import FUNNEL, Verdict
from reports import text
from reports.conditions import noise_floor
from reports.dataset import Cell, Dataset, Row
from reports.figures import Standing, best_baseline, geomean, headlines, speedup
from reports.funnel import Ending, failures, funnel, skips
from reports.generated import Generated
from reports.generation_tables import generation_tables
from reports.samples import best_of_samples, by_maker
from reports.sections import headline_sentence

_RATE = 7  # least width of a throughput column: '1234.5' and its mark
_NAME = 12  # most width that a name may ask for
_SPEEDUP = 14  # '0.752 ±0.11%', 'wrong_numerics'
_PADDING = 2
_STYLES = {Standing.FASTER: "green", Standing.SLOWER: "yellow", Standing.SAME: "", Standing.UNCLEAR: "dim"}
_APART = (Verdict.SKIPPED, Verdict.PROVEN, Verdict.INFRA)


@dataclass(frozen=True)
class RunTables:
    """All tables of a run; lays itself out for the console it is printed on."""

    dataset: Dataset

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        best = best_of_samples(self.dataset)
        for group in best.groups:
            yield comparison_table(best, *group, width)
        yield from summary_tables(self.dataset)


def terminal_table(dataset: Dataset) -> RunTables:
    """A rich renderable: a comparison per task, then funnel, reasons, noise floor and headline."""
    return RunTables(dataset)


@dataclass(frozen=True)
class Layout:
    """Columns that fit a width, and what does not."""

    baselines: tuple[str, ...]
    candidates: tuple[str, ...]
    candidate_rates: bool
    dropped: tuple[str, ...]


def choose_columns(
    cells: tuple[Cell, ...], baselines: list[str], candidates: list[str], width: int
) -> Layout:
    """Speedups first, then the two strongest baselines, the candidates' own rates, then other baselines.

    Baselines are ranked by how often they are the best of a cell, then by geomean throughput.
    """
    best_of = [b.contender for c in cells if (b := best_baseline(c))]

    def rank(name: str) -> tuple[int, float]:
        rates = [m.tflops for c in cells if (r := c.row(name)) and (m := r.measured)]
        return best_of.count(name), geomean(rates) if rates else 0.0

    ranked = sorted(baselines, key=rank, reverse=True)
    free = width - _LENGTH
    kept = _width(ranked[0]) if ranked else 0  # of the baseline that most speedups are over
    shown = candidates[: max(1, (free - kept) // (_SPEEDUP + _PADDING))]
    free -= len(shown) * (_SPEEDUP + _PADDING)
    rates_of_candidates = sum(_width(name) for name in shown)
    with_rates = bool(shown) and free - rates_of_candidates >= sum(_width(name) for name in ranked[:2])
    free -= rates_of_candidates if with_rates else 0
    fitting: list[str] = []
    for name in ranked:
        free -= _width(name)
        if free < 0:
            break
        fitting.append(name)
    dropped = [n for n in (*baselines, *candidates) if n not in fitting and n not in shown]
    return Layout(tuple(b for b in baselines if b in fitting), tuple(shown), with_rates, tuple(dropped))


def comparison_table(dataset: Dataset, target: str, task: str, width: int) -> RenderableType:
    """One task: a line a workload, throughput of each contender, speedups over the best baseline."""
    cells = dataset.cells_of(target, task)
    rows = [r for c in cells for r in c.rows]
    measured = {r.contender for r in rows if r.measured}
    baselines = [c.label for c in dataset.baselines if c.label in measured]
    candidates = [c.label for c in dataset.candidates if c.label in {r.contender for r in rows}]
    silent = sorted({r.contender for r in rows if r.is_baseline} - measured)
    layout = choose_columns(cells, baselines, candidates, width)
    parts: list[RenderableType] = [
        Text(f"{dataset.group_title(target, task)}, {text.unit(target)}", "bold"),
        _columns(layout, header=True),
    ]
    for shared, members in groupby(cells, key=lambda c: text.family(c.workload)):
        table = _columns(layout, header=False)
        for cell in members:
            table.add_row(text.lengths(cell.workload), *_entries(cell, layout))
        parts += [Text(shared, "italic dim"), table]
    if baselines and candidates:
        parts.append(Text("* best baseline of the cell: the denominator of 'vs best', > 1 is faster", "dim"))
    if layout.dropped:
        parts.append(Text(f"no room here, see the report: {', '.join(layout.dropped)}", "dim"))
    if silent:
        parts.append(Text(f"baselines not measured, reasons below: {', '.join(silent)}", "dim"))
    return Group(*parts, Text())


_LENGTH = 11 + _PADDING  # '512 x 8k', '1023 x 1024'


def _columns(layout: Layout, header: bool) -> Table:
    """An empty table of fixed widths, so that parts of it align under one header."""
    table = Table(
        box=box.SIMPLE_HEAD if header else None,
        show_header=header,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0) if header else (0, 2, 0, 0),
    )
    table.add_column("length", no_wrap=True, width=_LENGTH - _PADDING)
    for name in layout.baselines:
        room = _width(name) - _PADDING
        table.add_column(_header(name, room), justify="right", width=room)
    for name in layout.candidates:
        if layout.candidate_rates:
            room = _width(name) - _PADDING
            table.add_column(Text(_header(name, room), "cyan"), justify="right", width=room)
        said = f"{_header(name, _SPEEDUP)}\nvs best"
        table.add_column(Text(said, "cyan"), justify="right", width=_SPEEDUP)
    return table


def _entries(cell: Cell, layout: Layout) -> list[Text]:
    best = best_baseline(cell)
    entries = [_rate(cell, name, best) for name in layout.baselines]
    for name in layout.candidates:
        if layout.candidate_rates:
            row = cell.row(name)
            entries.append(_rate(cell, name, best) if row and row.measured else Text("-", "dim"))
        entries.append(_against(cell, name))
    return entries


def _rate(cell: Cell, contender: str, best: Row | None) -> Text:
    row = cell.row(contender)
    said = text.outcome(cell, contender)
    if row is None or row.measured is None:
        apart = row is None or row.result.verdict in _APART
        return Text(said, "dim" if apart else "red")
    return Text(f"{said}*", "bold") if row is best else Text(f"{said} ")


def _against(cell: Cell, candidate: str) -> Text:
    row = cell.row(candidate)
    found = speedup(cell, row) if row else None
    if found is None:
        return Text("no baseline", "dim") if row and row.measured else _rate(cell, candidate, None)
    unpaired = "" if found.paired else "~"
    return Text(unpaired + text.plus_minus(found.estimate), _STYLES[found.standing])


def summary_tables(dataset: Dataset) -> list[RenderableType]:
    """Funnel, verdicts with reasons, skips, noise floor, and the headline last, where the eye ends."""
    parts: list[RenderableType] = []
    generated = {r.contender for r in dataset.rows if r.generated}
    rows = [f for f in funnel(dataset, "candidate") if f.contender.label not in generated]
    if rows:
        table = Table(
            title="funnel",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
        )
        table.add_column("candidate", overflow="fold")
        for stage in FUNNEL:
            table.add_column(stage.value, justify="right")
        for f in rows:
            table.add_row(f.contender.label, *(str(f.reached[stage]) for stage in FUNNEL))
        parts += [table, Text()]
    parts += generation_tables(Generated(dataset))
    own = [e for e in failures(dataset) if e.contender not in generated]
    parts += [*_reasons_of_makers(dataset), *_reasons([*own, *skips(dataset)])]
    noise = noise_floor(dataset)
    if noise:
        n = noise[-1]
        parts.append(
            Text(
                f"noise floor: {text.share(n.within_02)} of {n.sessions} sessions within 0.2 %, "
                f"{text.share(n.within_05)} within 0.5 %, worst {text.percent(n.worst_deviation)}"
            )
        )
    found = headlines(best_of_samples(dataset))
    overall = [h for h in found if len(dataset.groups) == 1 or h.scope == "overall"]
    parts += [Text(headline_sentence(h), "bold") for h in overall]
    return parts


def _reasons(found: list[Ending]) -> list[RenderableType]:
    """One line for each verdict and reason of a contender, over all tasks."""
    merged: dict[tuple[Verdict, str, str], list[str]] = {}
    for e in found:
        merged.setdefault((e.verdict, e.contender, e.reason), []).append(f"{e.scope} {len(e.rows)}/{e.tried}")
    return [_reason(verdict, who, where, why) for (verdict, who, why), where in merged.items()]


def _reason(verdict: Verdict, contender: str, where: list[str], why: str) -> Text:
    return Text.assemble(
        (verdict.value, "dim" if verdict in _APART else "red"), f" {contender} ({', '.join(where)}): {why}"
    )


def _reasons_of_makers(dataset: Dataset) -> list[RenderableType]:
    """One line for each verdict of a method and its models, over all samples and tasks."""
    counts = by_maker(dataset)
    generated = {r.contender for r in counts.rows if r.generated}
    merged: dict[tuple[Verdict, str], list[Ending]] = {}
    for e in failures(counts):
        if e.contender in generated:
            merged.setdefault((e.verdict, e.contender), []).append(e)
    lines: list[RenderableType] = []
    for (verdict, contender), found in merged.items():
        scopes = dict.fromkeys(e.scope for e in found)
        where = [
            f"{scope} {sum(len(e.rows) for e in found if e.scope == scope)}/"
            f"{next(e.tried for e in found if e.scope == scope)}"
            for scope in scopes
        ]
        reasons = dict.fromkeys(e.reason for e in found)
        why = (
            next(iter(reasons)) if len(reasons) == 1 else f"{len(reasons)} different reasons, see the report"
        )
        lines.append(_reason(verdict, contender, where, why))
    return lines


def _joints(name: str) -> list[str]:
    """A name cut at its own joints and, where a part is too long, anywhere."""
    parts = re.split(r"(?<=[-_ @.])", name)
    return [p[i : i + _NAME] for p in parts for i in range(0, len(p), _NAME)]


def _width(name: str) -> int:
    """Of a throughput column, padding included."""
    return max(_RATE, *(len(part) for part in _joints(name))) + _PADDING


def _header(name: str, room: int) -> str:
    """A name in lines that fit a column of `room` characters."""
    lines = [""]
    for part in _joints(name):
        if len(lines[-1]) + len(part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
