"""Owns what a comparison says, in order, before any format: the sections of Markdown and terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from reports import text
from reports.changes.comparison import Comparison
from reports.changes.differences import Difference
from reports.changes.drift import FEWEST_CONTROLS, USUAL_DRIFT, Drift
from reports.changes.speeds import Change, Changes, GeomeanChange
from reports.changes.verdicts import ORDER, Turn, VerdictChange
from reports.dataset import Cell, Dataset, Row
from reports.figures import Standing
from reports.sections import Column, Entry, Section, Table

_STYLES = {Standing.FASTER: "good", Standing.SLOWER: "bad"}


def title(of: Comparison) -> str:
    return f"{of.before.name} -> {of.after.name}"


def lead(of: Comparison) -> str:
    """What is compared, in one paragraph."""
    m = of.match
    cells, contenders = text.number(len(m.cells), "cell"), text.number(len(m.contenders), "contender")
    said = f"{cells} and {contenders} in both runs: {text.number(of.results, 'result')} to compare."
    if m.across:
        said += f" The runs are of other targets, {m.across[0]} and {m.across[1]}; cells are paired by shape."
    return said


def warnings(of: Comparison) -> list[str]:
    """What a reader must know before any figure."""
    said = [
        f"{d.what} {d.before} -> {d.after}: verdicts and times mean something else in the two runs."
        for d in of.differences
        if d.about == "protocol"
    ]
    machine = [d.what for d in of.differences if d.about == "environment" and d.decisive]
    if machine:
        said.append(
            f"recorded under other conditions ({', '.join(machine)}): a change may be theirs and not the "
            "kernel's."
        )
    tasks = [d.what for d in of.differences if d.about == "task"]
    if tasks:
        said.append(f"other versions of {', '.join(tasks)}: a change may be the task's.")
    for what, drift in (("speedups", of.speeds.drift), ("device times", of.times.drift)):
        if drift.measured > USUAL_DRIFT and drift.worst is not None:
            said.append(
                f"{what} of unchanged kernels moved by up to {_noise(drift.measured)}, "
                f"{_named(drift.worst[1])}: more than usual, and no cause of it is recorded. "
                "Smaller changes cannot be told from it."
            )
    for run in (of.before, of.after):
        if run.skipped or run.left_out:
            said.append(
                f"{run.name}: left out are {text.number(len(run.skipped), 'unreadable line')} and "
                f"{text.number(len(run.left_out), 'result')} not comparable with the rest of it; "
                "`attnbench report` names them."
            )
    return said


def sections(of: Comparison) -> list[Section]:
    """All sections, what is gravest first."""
    return [
        _verdicts(of),
        _speeds(of.speeds),
        _geomeans(of.geomeans),
        _times(of.times),
        _differences(of.differences),
        _only_in_one(of),
    ]


def _verdicts(of: Comparison) -> Section:
    if not of.verdicts:
        return Section("verdicts", "Verdicts", (f"The same in all {text.number(of.results, 'result')}.",))
    counts = Counter(v.turn for v in of.verdicts)
    summary = ", ".join(f"{counts[turn]} {turn.value}" for turn in ORDER if counts[turn])
    columns = ("", "contender", "task", "workload", "before", "after", "reason", "lines")
    return Section(
        "verdicts",
        "Verdicts",
        (f"{summary}; of {text.number(of.results, 'result')}.",),
        tables=(Table(tuple(map(Column, columns)), tuple(map(_verdict_line, of.verdicts))),),
    )


def _verdict_line(v: VerdictChange) -> tuple[Entry, ...]:
    style = {Turn.BROKE: "bad", Turn.MENDED: "good"}.get(v.turn, "")
    said = f"{v.turn.value.upper()}" if v.turn is Turn.BROKE else v.turn.value
    return (
        Entry(said, style=style),
        Entry(v.after.contender),
        Entry(v.pair.after.task),
        Entry(v.pair.after.workload.key),
        Entry(v.before.result.verdict.value),
        Entry(v.after.result.verdict.value, style=style),
        Entry(v.reason),
        Entry(_lines(v.before.line, v.after.line)),
    )


def _speeds(of: Changes) -> Section:
    note = (
        "Speedup of the second run over that of the first, over the same human baseline; above 1 the kernel "
        "has become faster. Intervals combined in log space in quadrature. Listed is what lies beyond the "
        "noise, the surest and largest first."
    )
    if not of.of:
        return Section("speeds", "Speedups", ("Nothing to compare.", *_apart(of)))
    columns = (
        Column("contender"),
        Column("task"),
        Column("workload"),
        Column("over"),
        Column("before", True),
        Column("after", True),
        Column("change [95 %]", True),
        Column("noise", True),
        Column("lines"),
    )
    table = Table(columns, tuple(_speed_line(c) for c in of.called))
    tables = (table,) if of.called else ()
    return Section("speeds", "Speedups", (note, _counts(of), _drift(of.drift), *_apart(of)), tables=tables)


def _speed_line(c: Change) -> tuple[Entry, ...]:
    before, after = c.speedups or (None, None)
    over = after.baseline.contender if after else ""
    return (
        Entry(c.after.contender),
        Entry(c.pair.after.task),
        Entry(c.pair.after.workload.key),
        Entry(over if c.same_denominator else f"{over} (another version)"),
        Entry(text.times(before.estimate.median) if before else ""),
        Entry(text.times(after.estimate.median) if after else ""),
        Entry(text.with_interval(c.estimate), style=_STYLES.get(c.standing, "")),
        Entry(_noise(c.floor)),
        Entry(_lines(c.before.line, c.after.line)),
    )


def _counts(of: Changes) -> str:
    counts = Counter(c.standing for c in of.of)
    faster, slower = counts[Standing.FASTER], counts[Standing.SLOWER]
    rest = f"{counts[Standing.SAME]} the same within 1 %, {counts[Standing.UNCLEAR]} within the noise"
    if not of.called:
        return f"No change beyond the noise in {text.number(len(of.of), 'result')}: {rest}."
    return f"{faster} faster and {slower} slower beyond the noise; {rest}."


def _drift(drift: Drift) -> str:
    """What is added to the noise of the sessions, and why."""
    added = f"{_noise(drift.value)} are added to the sessions' noise"
    if not drift.controls:
        return f"{added}: the two runs share no unchanged baseline that would show the noise between them."
    moved = "did not move beyond their intervals"
    if drift.worst is not None:
        moved = f"moved by up to {_noise(drift.measured)} beyond their intervals ({_named(drift.worst[1])})"
    said = f"{text.number(drift.controls, 'result')} of unchanged kernels {moved}; "
    few = drift.value > drift.measured
    return said + added + (f", as usual where fewer than {FEWEST_CONTROLS} show it." if few else ".")


def _named(row: Row) -> str:
    return f"{row.contender} in {row.result.task} {row.result.workload.key}"


def _apart(of: Changes) -> tuple[str, ...]:
    return tuple(f"Not compared, {text.number(n, 'result')}: {why}." for why, n in of.apart.items())


def _geomeans(of: Sequence[GeomeanChange]) -> Section:
    columns = (
        Column("contender"),
        Column("cells", True),
        Column("change, geomean [95 %]", True),
        Column("noise", True),
        Column(""),
        Column("faster", True),
        Column("slower", True),
    )
    if not of:
        return Section("geomeans", "By contender", ("Nothing to compare.",))
    note = "Geomean of the changes above over all cells in both runs, those within the noise included."
    table = Table(columns, tuple(_geomean_line(g) for g in of))
    return Section("geomeans", "By contender", (note,), tables=(table,))


def _geomean_line(g: GeomeanChange) -> tuple[Entry, ...]:
    called = g.standing in _STYLES
    return (
        Entry(g.contender),
        Entry(str(g.cells)),
        Entry(text.with_interval(g.estimate), style=_STYLES.get(g.standing, "")),
        Entry(_noise(g.floor)),
        Entry(g.standing.value if called else "no change beyond the noise"),
        Entry(str(g.faster)),
        Entry(str(g.slower)),
    )


def _times(of: Changes) -> Section:
    note = (
        "Median device time of the first run over that of the second; above 1 the kernel has become faster. "
        "The interval is the p10 to p90 spread of both: two medians, not paired."
    )
    if not of.of:
        return Section("times", "Device times", _apart(of) or ("Nothing to compare.",))
    columns = (
        Column("contender"),
        Column("task"),
        Column("workload"),
        Column("before", True),
        Column("after", True),
        Column("change [p10, p90]", True),
        Column("noise", True),
        Column("lines"),
    )
    tables = (Table(columns, tuple(_time_line(c) for c in of.called)),) if of.called else ()
    return Section("times", "Device times", (note, _counts(of), _drift(of.drift), *_apart(of)), tables=tables)


def _time_line(c: Change) -> tuple[Entry, ...]:
    a, b = c.before.measured, c.after.measured
    return (
        Entry(c.after.contender),
        Entry(c.pair.after.task),
        Entry(c.pair.after.workload.key),
        Entry(text.milliseconds(a.device_time.median_ms) if a else ""),
        Entry(text.milliseconds(b.device_time.median_ms) if b else ""),
        Entry(text.with_interval(c.estimate), style=_STYLES.get(c.standing, "")),
        Entry(_noise(c.floor)),
        Entry(_lines(c.before.line, c.after.line)),
    )


def _differences(of: Sequence[Difference]) -> Section:
    if not of:
        return Section("differences", "What differs", ("Nothing that is recorded.",))
    lines = tuple(
        (
            Entry(d.about),
            Entry(d.what),
            Entry(d.before),
            Entry(d.after),
            Entry("times are not comparable" if d.decisive else ""),
        )
        for d in of
    )
    columns = tuple(map(Column, ("", "what", "before", "after", "")))
    return Section("differences", "What differs", tables=(Table(columns, lines),))


def _only_in_one(of: Comparison) -> Section:
    m = of.match
    said = []
    for run, cells, contenders, rows in (
        (of.before, m.cells_before, m.contenders_before, [r for p in m.cells for r in p.only_before]),
        (of.after, m.cells_after, m.contenders_after, [r for p in m.cells for r in p.only_after]),
    ):
        alone = [r for r in rows if r.contender not in contenders]
        parts = [
            f"contenders {', '.join(contenders)}" if contenders else "",
            f"cells {_by_task(run, cells)}" if cells else "",
            f"{text.number(len(alone), 'result')} of other contenders in common cells" if alone else "",
        ]
        said.append(f"Only in {run.name}: {'; '.join(filter(None, parts)) or 'nothing'}.")
    return Section("only", "Only in one run", tuple(said))


def _by_task(run: Dataset, cells: Iterable[Cell]) -> str:
    counts = Counter(run.group_title(c.target, c.task) for c in cells)
    return ", ".join(f"{task} ({n})" for task, n in counts.items())


def _lines(before: int, after: int) -> str:
    return f"{before} -> {after}"


def _noise(floor: float) -> str:
    return text.percent(math.expm1(floor), 1)
