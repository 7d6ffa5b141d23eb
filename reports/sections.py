"""Owns what a report says, in order, before any format: sections of tables whose figures carry records.

The Markdown and the HTML page are two ways of writing these same sections.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.verdicts import FUNNEL, Verdict
from reports import text
from reports.dataset import Cell, Dataset, Row
from reports.figures import FAILED_SPEEDUP, Headline, Speedup, Standing, best_baseline, headlines, speedup
from reports.funnel import Ending, failures, funnel, skips


@dataclass(frozen=True)
class Entry:
    """One table entry: its text, the record or the trial behind it, and how it stands out."""

    text: str
    row: Row | None = None
    style: str = ""  # "", best, good, bad, muted
    trial: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Lines are entries, or a string: a heading over the lines that follow."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[Entry, ...] | str, ...]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """`lead` is what the page shows as cards; `plots_of` the (target, task) whose plots belong here."""

    slug: str
    title: str
    paragraphs: tuple[str, ...] = ()
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots_of: tuple[str, str] | None = None
    verbatim: str = ""


SAMPLES_NOTE = (
    "Best of n: in each cell the fastest of n samples of a method and its models, chosen by this same "
    "measurement. It is what one gets who measures n kernels; what one sample gives stands under Generation, "
    "each sample under Speedup against each baseline."
)

UNTRIED_NOTE = (
    "A task has a row of a candidate only where the candidate was tried; its row of all tasks counts the "
    "cells that it was not tried in."
)


def headline_section(dataset: Dataset) -> Section:
    found = headlines(dataset)
    overall = [h for h in found if len(dataset.groups) == 1 or h.scope == "overall"]
    columns = (
        Column("candidate"),
        Column("task"),
        Column("measured cells", True),
        Column("geomean, measured cells only [95 %]", True),
        Column(f"geomean, failed cells as {FAILED_SPEEDUP}x", True),
        Column("faster than the best", True),
        Column("apart"),
    )
    notes: tuple[str, ...] = (
        "Denominator everywhere: the best human baseline of the same cell (one task on one workload). "
        "Every cell weighs the same. The interval of a geomean holds the timing errors of its cells, "
        "not the choice of workloads.",
        "Failures stay in the denominator: coverage is measured cells over cells tried, and the last geomean "
        f"takes a failed cell as {FAILED_SPEEDUP}x, a tenth of the best baseline, since a geometric mean has "
        "no room for zero. Apart: proven without a measurement, skipped, infra, or no baseline measured.",
    )
    if not found:
        return Section("headline", "Headline", ("No candidate in this run: baselines only.",))
    told = [h for h in found if h.scope == "overall" or _tried(h)] or found
    if len(told) < len(found):
        notes = (*notes, UNTRIED_NOTE)
    lines = tuple(_headline_line(h) for h in told)
    lead = tuple(headline_sentence(h) for h in overall)
    return Section("headline", "Headline", notes, lead, (Table(columns, lines),))


def _tried(h: Headline) -> bool:
    return bool(h.cells or h.proven or h.not_counted or h.no_baseline)


def headline_sentence(h: Headline) -> str:
    """The result of one candidate as a sentence that names its denominator."""
    if h.geomean is None:
        if h.proven and not h.cells:
            cells = text.number(h.proven, "cell")
            return f"{h.candidate}: numerics proven in {cells}, its speed measured in none."
        proven = f", numerics proven in {h.proven}" if h.proven else ""
        return f"{h.candidate}: measured in none of {h.cells} counted cells{proven}, so it has no speedup."
    counted = text.times(h.geomean_failures_counted or 0.0)
    return (
        f"{h.candidate}: {text.times(h.geomean.median)} the best human baseline "
        f"(geomean over {h.measured} of {h.cells} cells), {counted} with failed cells counted as "
        f"{FAILED_SPEEDUP}x; faster beyond noise in {h.faster} of {h.cells}."
    )


def _headline_line(h: Headline) -> tuple[Entry, ...]:
    apart = [
        f"{count} {name}"
        for name, count in (
            ("proven", h.proven),
            ("skipped or infra", h.not_counted),
            ("without a measured baseline", h.no_baseline),
            ("not tried", h.untried),
            ("of the measured not paired", h.not_paired),
        )
        if count
    ]
    failed = h.geomean_failures_counted
    return (
        Entry(h.candidate),
        Entry(h.scope),
        Entry(f"{h.measured}/{h.cells}"),
        Entry(text.with_interval(h.geomean)) if h.geomean else Entry("none measured", style="muted"),
        Entry(text.times(failed)) if failed else Entry("none tried", style="muted"),
        Entry(f"{h.faster}/{h.cells}"),
        Entry(", ".join(apart) or "none", style="muted"),
    )


def comparison_section(dataset: Dataset, target: str, task: str) -> Section:
    """Rates of all contenders per workload, best baseline marked, and each candidate against it."""
    cells = dataset.cells_of(target, task)
    present = {r.contender for c in cells for r in c.rows}
    contenders = [c for c in (*dataset.candidates, *dataset.baselines) if c.label in present]
    candidates = [c.label for c in contenders if c.kind == "candidate"]
    columns = (
        Column("length"),
        Column("batch", True),
        Column("best baseline"),
        *(Column(f"{name} vs best [95 %]", True) for name in candidates),
        *(Column(f"{c.label}, {text.unit(target)}", True) for c in contenders),
    )
    lines: list[tuple[Entry, ...] | str] = []
    for shared, members in groupby(cells, key=lambda c: text.family(c.workload)):
        lines.append(shared)
        for cell in members:
            best = best_baseline(cell)
            rates = (_rate_entry(cell, c.label, best) for c in contenders)
            marked = Entry(best.contender, best) if best else Entry("none measured", style="muted")
            against = (_speedup_entry(cell, name) for name in candidates)
            w = cell.workload
            lines.append((Entry(text.lengths(w)), Entry(str(w.batch)), marked, *against, *rates))
    note = (
        f"{text.unit(target)} at the median device time (useful operations over visible pairs only), more is "
        "better. Bold: best baseline of the cell. A word instead of a figure is the verdict."
    )
    notes = (note, SAMPLES_NOTE) if any(r.generated for c in cells for r in c.rows) else (note,)
    title = dataset.group_title(target, task)
    table = Table(columns, tuple(lines))
    return Section(f"task-{_slug(title)}", title, notes, (), (table,), (target, task))


def _rate_entry(cell: Cell, contender: str, best: Row | None) -> Entry:
    row = cell.row(contender)
    said = text.outcome(cell, contender)
    if row is None or not row.measured:
        apart = row is None or row.result.verdict in (Verdict.SKIPPED, Verdict.PROVEN, Verdict.INFRA)
        return Entry(said, row, "muted" if apart else "bad")
    return Entry(said, row, "best" if row is best else "")


def _speedup_entry(cell: Cell, candidate: str, baseline: Row | None = None) -> Entry:
    row = cell.row(candidate)
    if row is None:
        return Entry(text.ABSENT, style="muted")
    found = speedup(cell, row, baseline)
    if found is None:
        if row.measured:
            return Entry("no baseline measured", row, "muted")
        return _rate_entry(cell, candidate, None)
    return Entry(_speedup_text(found), row, _standing_style(found.standing))


def _speedup_text(s: Speedup) -> str:
    return text.with_interval(s.estimate) + ("" if s.paired else " not paired")


def _standing_style(standing: Standing) -> str:
    return {Standing.FASTER: "good", Standing.UNCLEAR: "muted"}.get(standing, "")


def speedup_section(dataset: Dataset) -> Section:
    """Each measured candidate against every measured baseline, cell by cell."""
    tables = []
    generated = {r.contender for r in dataset.rows if r.generated}
    for target, task in dataset.groups:
        cells = dataset.cells_of(target, task)
        present = {r.contender for c in cells for r in c.rows}
        baselines = [c.label for c in dataset.baselines if c.label in present]
        measured = {r.contender for c in cells for r in c.rows if r.measured}
        for candidate in (c.label for c in dataset.candidates if c.label in present):
            if candidate in generated and candidate not in measured:
                continue  # one verdict on every line
            columns = (
                Column("length"),
                Column("vs best [95 %]", True),
                Column("standing"),
                Column("best baseline"),
                *(Column(f"vs {name}", True) for name in baselines),
            )
            lines: list[tuple[Entry, ...] | str] = []
            for shared, members in groupby(cells, key=lambda c: text.family(c.workload)):
                lines.append(shared)
                lines += [_speedup_line(cell, candidate, baselines) for cell in members]
            caption = f"{candidate}, {dataset.group_title(target, task)}"
            tables.append(Table(columns, tuple(lines), caption))
    notes = (
        "Time of the baseline over time of the candidate, so more than 1 is faster. Both were timed beside "
        "an anchor in A/B/B/A blocks; a speedup over another baseline is the quotient of the two paired "
        "ratios, their 95 % intervals combined in log space in quadrature (independent errors; an error of "
        "the shared anchor would partly cancel, so this errs on the wide side). 'not paired': nothing links "
        "the two sessions; quotient of median device times, with the p10-p90 spread of both for an interval.",
        "Standing: faster or slower only where the whole interval is beyond the noise floor of the sessions; "
        "same where it lies within 1 % of 1; else unclear.",
        *(["A sample without a measured cell on a task has no table there."] if generated else []),
    )
    return Section("speedups", "Speedup against each baseline", notes if tables else (), (), tuple(tables))


def _speedup_line(cell: Cell, candidate: str, baselines: Sequence[str]) -> tuple[Entry, ...]:
    row = cell.row(candidate)
    best = best_baseline(cell)
    found = speedup(cell, row) if row else None
    against = []
    for name in baselines:
        other = cell.row(name)
        if row is None or not row.measured:
            against.append(Entry("-", style="muted"))
        elif other is None or not other.measured:
            against.append(Entry(text.outcome(cell, name), other, "muted"))
        else:
            against.append(_speedup_entry(cell, candidate, other))
    return (
        Entry(text.lengths(cell.workload)),
        _speedup_entry(cell, candidate),
        Entry(found.standing if found else "no figure", style="" if found else "muted"),
        Entry(best.contender, best) if best else Entry("none measured", style="muted"),
        *against,
    )


def funnel_section(dataset: Dataset) -> Section:
    tables = []
    for kind, caption in (("candidate", "Candidates"), ("baseline", "Baselines, apart")):
        rows = funnel(dataset, "candidate" if kind == "candidate" else "baseline")
        lines = tuple(
            (
                Entry(f.contender.label),
                Entry(str(f.trials)),
                *(Entry(str(f.reached[stage])) for stage in FUNNEL),
                Entry(", ".join(f"{n} {v}" for v, n in sorted(f.apart.items())) or "none", style="muted"),
            )
            for f in rows
        )
        columns = (
            Column(kind),
            Column("counted", True),
            *(Column(s.value, True) for s in FUNNEL),
            Column("apart"),
        )
        if lines:
            tables.append(Table(columns, lines, caption))
    note = (
        "How many trials completed each stage: generated, built, ran, correct, clean (no cheating, no "
        "library dispatch), measured. Skipped and infra results are in no rate."
    )
    if dataset.endings:
        note += " Here a kernel counts once for each workload, under Generation once for each trial."
    return Section("funnel", "Funnel", (note,), (), tuple(tables))


def failures_section(dataset: Dataset) -> Section:
    found = failures(dataset)
    if not found:
        return Section("verdicts", "Verdicts other than ok", ("None: every result that was tried is ok.",))
    return Section("verdicts", "Verdicts other than ok", (), (), (_endings_table(found, "contender"),))


def skips_section(dataset: Dataset) -> Section:
    found = skips(dataset)
    unusable = [
        (name, reason)
        for name, reason in dict.fromkeys(
            pair for e in dataset.environments.values() for pair in e.baselines.items() if pair[1] != "usable"
        )
    ]
    tables = [_endings_table(found, "baseline")] if found else []
    if unusable:
        columns = (Column("baseline"), Column("why it is not usable on this machine"))
        lines = tuple((Entry(name), Entry(reason)) for name, reason in unusable)
        tables.append(Table(columns, lines, "Not usable at all, from environment.json"))
    notes = () if tables else ("None: every baseline ran on every workload.",)
    return Section("skipped", "Skipped, and why", notes, (), tuple(tables))


def _endings_table(found: Iterable[Ending], who: str) -> Table:
    columns = (
        Column(who),
        Column("task"),
        Column("verdict"),
        Column("workloads", True),
        Column("reason"),
        Column("on"),
    )
    lines = tuple(
        (
            Entry(e.contender),
            Entry(e.scope),
            Entry(e.verdict.value, e.rows[0]),
            Entry(f"{len(e.rows)}/{e.tried}"),
            Entry(e.reason),
            Entry(", ".join(r.result.workload.key for r in e.rows) if len(e.rows) < e.tried else "all"),
        )
        for e in found
    )
    return Table(columns, lines)


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())
