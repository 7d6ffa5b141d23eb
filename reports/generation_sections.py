"""Owns the sections about what models made: how far trials came, how fast, at what cost, each trial."""

from __future__ import annotations

from itertools import groupby

from harness.measure.statistics import GeomeanInterval
from harness.verdicts import FUNNEL, Stage
from reports import paper, text
from reports.cost_sections import costs_section
from reports.figures import FAILED_SPEEDUP, Estimate
from reports.generated import Generated
from reports.generation import KS, OVERALL, PS, Attempt, PassAt, Score, overall, wilson
from reports.method_sections import ablation_section, duels_section
from reports.sections import Column, Entry, Section, Table


def generation_sections(of: Generated) -> list[Section]:
    """All of them in reading order; none for a run without trials of models."""
    if not of.attempts:
        return []
    return [
        trials_section(of),
        speed_section(of),
        duels_section(of),
        ablation_section(of),
        costs_section(of),
        paper_section(of),
        stories_section(of),
    ]


def trials_section(of: Generated) -> Section:
    """The funnel over trials, pass@k and fast_p, overall and by task."""
    notes = [
        "A trial is one attempt of a method and its models at one kernel: correct, if it ended with a kernel "
        "that passed verification; clean, if nothing found it to be a library in disguise or worse; "
        "measured, if every cell of its task is ok. Trials that the machine spoilt (infra) are in no rate "
        "and stand apart.",
        "pass@k is the unbiased probability that at least one of k samples is correct, per task from all its "
        "samples, averaged over tasks. 'n < k': too few samples to say. fast_p is the share of pairs of a "
        "trial and a cell that are correct and more than p times as fast as the best human baseline; a trial "
        "that failed counts as a failure in each cell of its task.",
    ]
    if of.unfinished:
        notes.append(
            f"{text.number(of.unfinished, 'trial')} began and did not end (cut short, or waiting for "
            "answers): in no figure here."
        )
    whole = overall(of.scores)
    if untimed := sum(s.untimed for s in whole):
        notes.append(
            f"{text.number(untimed, 'correct kernel')} {'was' if untimed == 1 else 'were'} not timed in this "
            "run: in no rate of clean kernels and in no figure of speed."
        )
    tables = [_funnel(of, whole), _rates(of, whole)]
    if any(s.scope == OVERALL for s in of.scores):
        tables.append(_by_task(of))
    return Section("generation", "Generation: how far trials came", tuple(notes), (), tuple(tables))


def _funnel(of: Generated, found: list[Score]) -> Table:
    columns = (
        Column("method, model"),
        Column("trials", True),
        *(Column(s.value, True) for s in FUNNEL),
        Column("correct, not timed", True),
        Column("correct [95 %]", True),
        Column("failed as"),
        Column("infra, apart", True),
    )
    lines = tuple(
        (
            Entry(of.names[s.maker]),
            Entry(str(s.trials)),
            *(Entry(str(s.reached[stage])) for stage in FUNNEL),
            Entry(str(s.untimed), style="" if s.untimed else "muted"),
            _share(s.correct, s.trials),
            Entry(", ".join(f"{n} {v}" for v, n in sorted(s.failed.items())) or "none failed", style="muted"),
            Entry(str(s.infra), style="" if s.infra else "muted"),
        )
        for s in found
    )
    return Table(columns, lines, "Trials that completed each stage")


def _share(right: int, trials: int) -> Entry:
    if not trials:
        return Entry("no trial counts", style="muted")
    low, high = wilson(right, trials)
    return Entry(f"{text.share(right / trials)} [{100 * low:.0f}, {100 * high:.0f}]")


def _rates(of: Generated, found: list[Score]) -> Table:
    columns = (
        Column("method, model"),
        *(Column(f"pass@{k}", True) for k in KS),
        Column("pass@1, clean", True),
        Column("pairs", True),
        *(Column(f"fast_{p}", True) for p in PS),
    )
    lines = tuple(
        (
            Entry(of.names[s.maker]),
            *(_pass(p) for p in s.correct_at),
            _pass(s.clean_at[0]),
            Entry(str(s.pace.pairs)),
            *_fast(s),
        )
        for s in found
    )
    return Table(columns, lines, "pass@k and fast_p")


def _pass(p: PassAt) -> Entry:
    if p.value is None:
        return Entry(f"n < {p.k}", style="muted")
    partial = f" ({p.tasks} of {p.tasks + p.too_few} tasks)" if p.too_few else ""
    return Entry(f"{p.value:.3f}{partial}")


def _fast(s: Score) -> list[Entry]:
    if not s.pace.fast:
        return [Entry("no cell", style="muted")] * len(PS)
    return [Entry(f"{s.pace.fast[p]:.3f}") for p in PS]


def _by_task(of: Generated) -> Table:
    columns = (
        Column("method, model"),
        Column("correct of trials", True),
        *(Column(f"pass@{k}", True) for k in KS),
        Column("measured of pairs", True),
        Column("fast_1.0", True),
        Column(f"geomean, failures as {FAILED_SPEEDUP}x", True),
        Column("infra, apart", True),
    )
    lines: list[tuple[Entry, ...] | str] = []
    single = [s for s in of.scores if s.scope != OVERALL]
    scopes = {scope: n for n, scope in enumerate(of.dataset.group_title(*g) for g in of.dataset.groups)}
    single.sort(key=lambda s: scopes.get(s.scope, len(scopes)))
    for scope, members in groupby(single, key=lambda s: s.scope):
        lines.append(scope)
        for s in members:
            fast = f"{s.pace.fast[1.0]:.3f}" if s.pace.fast else "no cell"
            counted = s.pace.failures_counted
            lines.append(
                (
                    Entry(of.names[s.maker]),
                    Entry(f"{s.correct}/{s.trials}"),
                    *(_pass(p) for p in s.correct_at),
                    Entry(f"{s.pace.measured}/{s.pace.pairs}"),
                    Entry(fast, style="" if s.pace.fast else "muted"),
                    _geomean(counted, s.pace.measured),
                    Entry(str(s.infra), style="" if s.infra else "muted"),
                )
            )
    return Table(columns, tuple(lines), "By task")


def _geomean(g: GeomeanInterval | None, measured: int) -> Entry:
    """'0.846x [0.635, 1.058]'; no interval where there is one trial, or where none has a measured cell."""
    if g is None:
        return Entry("none measured", style="muted")
    if not measured:
        return Entry(f"{text.times(g.geomean)} (none measured)", style="muted")
    if g.clusters == 1:
        return Entry(f"{text.times(g.geomean)} (one trial)")
    return Entry(text.with_interval(Estimate(g.geomean, g.low, g.high)))


def speed_section(of: Generated) -> Section:
    """Every sample against the best human baseline, with failures left out and counted."""
    columns = (
        Column("method, model"),
        Column("measured of pairs", True),
        Column("geomean, measured only [95 %]", True),
        Column(f"geomean, failures as {FAILED_SPEEDUP}x [95 %]", True),
        Column("highest", True),
        Column("in"),
        Column("pairs apart", True),
    )
    lines = []
    for s in overall(of.scores):
        found = [a.fastest for a in of.attempts if a.maker == s.maker and a.fastest]
        top = max(found, key=lambda f: f.estimate.median, default=None)
        row = top.candidate if top else None
        lines.append(
            (
                Entry(of.names[s.maker]),
                Entry(f"{s.pace.measured}/{s.pace.pairs}"),
                _geomean(s.pace.geomean, s.pace.measured),
                _geomean(s.pace.failures_counted, s.pace.measured),
                Entry(text.times(top.estimate.median), row) if top else Entry("none measured", style="muted"),
                Entry(f"{row.result.task}, {row.result.workload.key}", row)
                if row
                else Entry("-", style="muted"),
                Entry(str(s.pace.apart), style="" if s.pace.apart else "muted"),
            )
        )
    notes = (
        "Over pairs of a trial and a cell of its task, all samples, so this is what one sample gives; the "
        "headline takes the best sample of each cell. Time of the best human baseline of the cell over time "
        "of the kernel. The second geomean takes a pair without a correct and clean kernel as "
        f"{FAILED_SPEEDUP}x.",
        "Intervals resample whole trials: another time the model writes another kernel. One trial has none. "
        "Apart: infra, proven without a measurement, not "
        "reached, or no baseline measured.",
    )
    return Section(
        "generation-speed", "Generation: speed of a sample", notes, (), (Table(columns, tuple(lines)),)
    )


def paper_section(of: Generated) -> Section:
    """The paper's claims, and under each what this run measured."""
    columns = (Column("this run"), Column("measured"))
    lines: list[tuple[Entry, ...] | str] = []
    for claim, found in paper.answers(of):
        lines.append(f"The paper: {claim.says}")
        lines += [_answer(a) for a in found]
    notes = (f"The claims of {paper.SOURCE}, one by one.", paper.CAVEAT)
    table = Table(columns, tuple(lines))
    return Section("generation-paper", "Generation: beside the paper", notes, (), (table,))


def _answer(a: paper.Answer) -> tuple[Entry, ...]:
    if a.measured:
        return Entry(a.subject, a.row), Entry(a.measured)
    return Entry(a.subject), Entry(f"not measured here: {a.why_not}", style="muted")


def stories_section(of: Generated) -> Section:
    """Each trial with how it ended; its story is in the page, its steps in trials.jsonl."""
    columns = (
        Column("trial"),
        Column("task"),
        Column("method, model"),
        Column("sample", True),
        Column("ended"),
        Column("turns", True),
        Column("tried", True),
        Column("tokens", True),
        Column("min", True),
        Column("cells ok", True),
        Column("best vs human", True),
        Column("why"),
    )
    lines = tuple(_trial(of, a) for a in of.attempts)
    note = (
        "Tried: kernels that were verified. Cells ok: of all cells of the task; then the best of them "
        "against the best human baseline. `attnbench show TRIAL` tells a story in the terminal: what was "
        "asked, what was answered, what was said of it."
    )
    return Section("generation-trials", "Generation: every trial", (note,), (), (Table(columns, lines),))


def _trial(of: Generated, a: Attempt) -> tuple[Entry, ...]:
    e, top = a.ending, a.fastest
    first = a.rows[0] if a.rows else None
    return (
        Entry(e.trial[:8], trial=e.trial),
        Entry(a.task),
        Entry(of.names[a.maker]),
        Entry(str(e.assignment.sample)),
        Entry("correct" if e.verdict is None else e.verdict.value, first, _style(a)),
        Entry(str(e.turns)),
        Entry(str(e.verifications)),
        Entry(text.tokens(e.tokens_in + e.tokens_out, e.tokens_estimated)),
        Entry(text.minutes(e.wall_s, bool(e.latency_unknown))),
        Entry(f"{len(a.measured)}/{len(a.outcomes)}"),
        Entry(text.times(top.estimate.median), top.candidate) if top else Entry("-", style="muted"),
        Entry(e.reason or _why(a), style="" if e.reason else "muted"),
    )


def _style(a: Attempt) -> str:
    return "" if a.correct else "bad" if a.counted else "muted"


def _why(a: Attempt) -> str:
    """Of a correct kernel: verdicts of its cells that are not ok, if any."""
    verdicts = dict.fromkeys(r.result.verdict.value for r in a.rows if not r.measured)
    if a.reached(Stage.MEASURED) or not a.rows:
        return "-" if a.rows else "not measured yet"
    return f"in cells: {', '.join(verdicts)}" if verdicts else "some cells not reached"
