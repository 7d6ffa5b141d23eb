"""Owns the sections that set methods against each other: LLM-TL against directly, and the ablation."""

from __future__ import annotations

from itertools import groupby

from reports import text
from reports.ablation import Contrast
from reports.dataset import Cell
from reports.duels import CellRatio, Duel, Variant
from reports.figures import FAILED_SPEEDUP, Estimate, geomean
from reports.generated import Generated
from reports.samples import METHODS
from reports.sections import Column, Entry, Section, Table

MOST_CODES = 8  # findings that the table of programs names


def duels_section(of: Generated) -> Section:
    """The three variants overall, then cell by cell."""
    title = "Generation: through LLM-TL against directly"
    if not of.duels:
        why = (
            "No model of this run was tried both directly (vanilla) and through LLM-TL with the same backend."
        )
        return Section("generation-duels", title, (why,))
    columns = (
        Column("method over vanilla"),
        Column("variant"),
        Column("cells", True),
        Column("ratios", True),
        Column("geomean [95 %]", True),
        Column("highest", True),
        Column("over"),
        Column("stand-ins"),
    )
    lines: list[tuple[Entry, ...] | str] = []
    for d in of.duels:
        lines.append(_pair(of, d))
        lines += [_variant_line(d, v) for v in d.variants]
    notes = (
        "Time of the kernel that the model wrote directly over time of the one that came through LLM-TL: "
        "more than 1, LLM-TL is faster. Same model, same backend, same cells; where two models share the "
        "work, the one that thinks is compared. Both were timed beside an anchor; their paired ratios are "
        "divided.",
        "Best of samples: the fastest correct kernel of each, in cells where both have one. Paired samples: "
        "sample i against sample i, where both are correct. Failures counted: best of samples in every cell "
        "where both were tried; a method without a correct kernel there is taken to run at "
        f"{FAILED_SPEEDUP}x the best human baseline, so two failures give 1. Its highest ratio is then "
        "mostly that convention: read it last.",
        "Intervals resample tasks (a single one: its cells), of paired samples pairs of trials.",
    )
    tables = (Table(columns, tuple(lines), "Overall"), *(_cells_table(of, d) for d in of.duels))
    return Section("generation-duels", title, notes, (), tables)


def _pair(of: Generated, d: Duel) -> str:
    return f"{of.names[d.ours]} over {of.names[d.theirs]}"


def _variant_line(d: Duel, v: Variant) -> tuple[Entry, ...]:
    top, g = v.highest, v.geomean
    stand_ins = [
        f"{n} of {who}"
        for n, who in ((v.ours_failed, d.ours.method), (v.theirs_failed, d.theirs.method))
        if n
    ]
    none = Entry("no cell", style="muted")
    return (
        Entry(d.ours.method),
        Entry(v.name),
        Entry(f"{v.cells}/{len(d.cells)}"),
        Entry(str(len(v.ratios))),
        Entry(text.with_interval(Estimate(g.geomean, g.low, g.high))) if g else none,
        Entry(text.times(top.estimate.median), top.ours) if top else none,
        Entry(_where(top), top.theirs) if top else none,
        Entry(", ".join(stand_ins) or "none", style="muted"),
    )


def _where(r: CellRatio) -> str:
    failed = [who for who, row in (("the kernel", r.ours), ("vanilla", r.theirs)) if row is None]
    return f"{r.cell.task}, {r.cell.workload.key}" + (f" ({' and '.join(failed)} failed)" if failed else "")


def _cells_table(of: Generated, d: Duel) -> Table:
    columns = (
        Column("length"),
        Column("best of samples [95 %]", True),
        Column("over vanilla's"),
        Column("paired samples, geomean", True),
        Column("pairs", True),
        Column("failures counted", True),
    )
    lines: list[tuple[Entry, ...] | str] = []
    for shared, members in groupby(d.cells, key=lambda c: f"{c.task}: {text.family(c.workload)}"):
        lines.append(shared)
        lines += [_cell_line(d, cell) for cell in members]
    return Table(columns, tuple(lines), f"{_pair(of, d)}, cell by cell")


def _cell_line(d: Duel, cell: Cell) -> tuple[Entry, ...]:
    best = next(iter(d.best.of(cell)), None)
    counted = next(iter(d.counted.of(cell)), None)
    pairs = d.paired.of(cell)
    none = Entry("-", style="muted")
    return (
        Entry(text.lengths(cell.workload)),
        Entry(text.with_interval(best.estimate) + ("" if best.paired else " not paired"), best.ours)
        if best
        else none,
        Entry(best.theirs.contender, best.theirs) if best and best.theirs else none,
        Entry(text.times(geomean(r.estimate.median for r in pairs)), pairs[0].ours) if pairs else none,
        Entry(str(len(pairs))),
        _counted(counted) if counted else Entry("no baseline measured", style="muted"),
    )


def _counted(r: CellRatio) -> Entry:
    if r.ours is None and r.theirs is None:
        return Entry("both failed", style="muted")
    failed = "" if r.ours and r.theirs else ", it failed" if r.ours is None else ", vanilla failed"
    return Entry(f"{text.times(r.estimate.median)}{failed}", r.ours or r.theirs)


def ablation_section(of: Generated) -> Section:
    """Methods side by side, and what was found in the programs they wrote."""
    tables = []
    methods = [m for m in METHODS if any(m in c.by_method for c in of.contrasts)]
    methods += sorted({m for c in of.contrasts for m in c.by_method} - set(methods))
    if of.contrasts:
        columns = (Column("task"), *(Column(m, True) for m in methods))
        lines: list[tuple[Entry, ...] | str] = []
        for (model, backend, target), members in groupby(
            of.contrasts, key=lambda c: (c.model, c.backend, c.target)
        ):
            lines.append(f"{model}, {backend}, {target}")
            lines += [(Entry(c.scope), *(_contrast(c, m) for m in methods)) for c in members]
        tables.append(Table(columns, tuple(lines), "Methods side by side"))
    if of.programs:
        tables.append(_programs_table(of))
    notes = [
        "Correct trials of those that count, then the geomean over the best human with failures as "
        f"{FAILED_SPEEDUP}x (all samples). What differs between neighbours: vanilla-cot thinks aloud first; "
        "tl-one-stage writes a program in LLM-TL, tl a sketch before it; tl-compiled leaves the translation "
        "to the compiler."
        if of.contrasts
        else "No model of this run was tried with two methods on one task."
    ]
    if of.programs:
        notes.append(
            "Programs: right at first, or after the checker or the interpreter was heard. Findings count "
            "programs and sketches that had them, corrected ones too; 'interpreter': no finding, but run on "
            "small shapes the program computes something else. `attnbench tl explain CODE` explains one."
        )
    return Section("generation-ablation", "Generation: ablation", tuple(notes), (), tuple(tables))


def _contrast(c: Contrast, method: str) -> Entry:
    found = c.by_method.get(method)
    if found is None:
        return Entry(text.ABSENT, style="muted")
    said = []
    for s in found:
        counted = s.pace.failures_counted
        speed = text.times(counted.geomean) if counted else "no cell"
        who = f"{s.maker.model}: " if len(found) > 1 else ""
        said.append(f"{who}{s.correct}/{s.trials}, {speed}")
    return Entry("; ".join(said))


def _programs_table(of: Generated) -> Table:
    columns = (
        Column("method, model"),
        Column("trials with a program", True),
        Column("right at first", True),
        Column("after feedback", True),
        Column("never", True),
        Column("without a program", True),
        Column("examined", True),
        Column("most frequent findings"),
    )
    lines = tuple(
        (
            Entry(of.names[p.maker]),
            Entry(str(p.trials)),
            Entry(str(p.at_first)),
            Entry(str(p.after_feedback)),
            Entry(str(p.never)),
            Entry(str(p.without)),
            Entry(str(p.examined)),
            Entry(", ".join(f"{code} {n}" for code, n in list(p.findings.items())[:MOST_CODES]) or "none"),
        )
        for p in of.programs
    )
    return Table(columns, lines, "LLM-TL programs")
