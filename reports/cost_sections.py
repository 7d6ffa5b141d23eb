"""Owns the section about what kernels of models cost."""

from __future__ import annotations

from reports import text
from reports.costs import Cost
from reports.generated import Generated
from reports.sections import Column, Entry, Section, Table


def costs_section(of: Generated) -> Section:
    """What was spent in all, per trial and per correct kernel."""
    totals = (
        Column("method, model"),
        Column("trials", True),
        Column("correct", True),
        Column("tokens in", True),
        Column("tokens out", True),
        Column("USD", True),
        Column("minutes", True),
        Column("first correct kernel, median min", True),
    )
    each = (
        Column("method, model"),
        *(Column(f"{what} per trial", True) for what in ("tokens", "USD", "min")),
        *(Column(f"{what} per correct kernel", True) for what in ("tokens", "USD", "min")),
    )
    tables = (
        Table(totals, tuple(_total(of, c) for c in of.costs), "In all"),
        Table(
            each,
            tuple((Entry(of.names[c.maker]), *_each(c, c.trials), *_each(c, c.correct)) for c in of.costs),
            "Per trial and per correct kernel",
        ),
    )
    notes = [
        "Failures and spoilt trials are in the totals: they were paid for. Per correct kernel: the total "
        "over the number of correct ones. Minutes are latencies of answers and the harness's own work, one "
        "after the other, without the final measurement. ~: some counts are characters / 4, since nobody "
        "reported them. The median to the first correct kernel is over the trials that came to one.",
    ]
    if any(c.latency_unknown for c in of.costs):
        unknown = sum(c.latency_unknown for c in of.costs)
        notes.append(
            f"'at least': the latency of {text.number(unknown, 'answer')} is not known and not in the "
            "minutes."
        )
    p = of.paid
    if p.exchanges:
        silent = f" ({p.uncounted} did not report tokens)" if p.uncounted else ""
        tokens = f"{silent}: {p.tokens_in:,} tokens in, {p.tokens_out:,} out"
        if p.uncounted == p.exchanges:
            tokens = ", none of which reported tokens"
        notes.append(
            "Trials that ask the same question share its answer, and each is charged for it above. The run "
            f"itself holds {text.number(p.exchanges, 'exchange')}{tokens}, "
            f"USD: {text.usd(p.usd, unpriced=p.unpriced, of=p.exchanges)}."
        )
    return Section("generation-cost", "Generation: cost", tuple(notes), (), tables)


def _total(of: Generated, c: Cost) -> tuple[Entry, ...]:
    first = c.first_correct_s
    return (
        Entry(of.names[c.maker]),
        Entry(str(c.trials)),
        Entry(str(c.correct)),
        Entry(text.tokens(c.tokens_in, c.estimated)),
        Entry(text.tokens(c.tokens_out, c.estimated)),
        Entry(text.usd(c.usd, unpriced=c.unpriced, of=c.trials)),
        Entry(text.minutes(c.wall_s, bool(c.latency_unknown))),
        Entry("no correct kernel", style="muted")
        if first is None
        else Entry(text.minutes(first, c.first_correct_least)),
    )


def _each(c: Cost, n: int) -> tuple[Entry, ...]:
    if not n:
        return (Entry("no correct kernel", style="muted"),) * 3
    return (
        Entry(text.tokens((c.tokens_in + c.tokens_out) / n, c.estimated)),
        Entry(text.usd(c.usd / n, unpriced=c.unpriced, of=c.trials)),
        Entry(text.minutes(c.wall_s / n, bool(c.latency_unknown))),
    )
