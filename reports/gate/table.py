"""Owns the gate's table, for a terminal and in Markdown, and its figures for scripts."""

from __future__ import annotations

import json
from typing import Any

from tabulate import tabulate

from reports.gate.change import Look
from reports.gate.decision import Decision, Judgement, Outcome
from reports.gate.words import headline, percent, sentence, signed

HEADERS = ("case", "outcome", "reference", "now", "change", "95 % interval", "no change below", "runs")
QUIET = frozenset({Outcome.SAME, Outcome.ANCHOR})


def table(judgement: Judgement, style: str = "simple") -> str:
    """A row a case. Reference and now are speeds over the anchor; the anchor's own are times.

    `beside`: the reference's kernel, as it was measured in the session of now.
    """
    rows = [_row(d) for d in judgement.decisions]
    if style == "github":
        rows = [tuple(_cell(text) for text in row) for row in rows]
    return tabulate(rows, HEADERS, tablefmt=style, disable_numparse=True)


def report(judgement: Judgement) -> str:
    """Table, a sentence for each case that deserves one, and the headline last, where a log ends."""
    lines = [f"{d.case} {sentence(d)}." for d in judgement.decisions if d.outcome not in QUIET]
    return "\n\n".join(filter(None, (table(judgement), "\n".join(lines), headline(judgement))))


def markdown(judgement: Judgement) -> str:
    """The same for a page."""
    lines = [f"- `{d.case}` {sentence(d)}." for d in judgement.decisions if d.outcome not in QUIET]
    parts = (f"### Gate {headline(judgement)}", "\n".join(lines), table(judgement, "github"))
    return "\n\n".join(filter(None, parts)) + "\n"


def as_json(judgement: Judgement) -> str:
    """Every decision with its figures; shares of time as fractions."""
    data = {
        "failed": judgement.failed,
        "comparable": judgement.comparable,
        "headline": headline(judgement),
        "again": judgement.again,
        "cases": [_figures(d) for d in judgement.decisions],
    }
    return json.dumps(data, indent=1)


def _row(d: Decision) -> tuple[str, ...]:
    seen = d.look
    change = interval = band = ""
    if seen is not None:
        change = signed(seen.speed.median - 1)
        interval = f"{signed(seen.speed.low - 1)} to {signed(seen.speed.high - 1)}"
        band = percent(seen.band)
    runs = str(len(d.looks) or "")
    return (d.case, str(d.outcome), _speed(d, new=False), _speed(d, new=True), change, interval, band, runs)


def _speed(d: Decision, *, new: bool) -> str:
    case = d.new if new else d.stored
    if case is None:
        return ""
    if not new and d.beside:
        assert d.new is not None and d.new.old is not None and d.new.old.anchored is not None
        return f"{d.new.old.anchored.median:.3f}x beside"
    return f"{case.time_ms:.4g} ms" if case.is_anchor else f"{case.ratio.median:.3f}x"


def _figures(d: Decision) -> dict[str, Any]:
    return {
        "case": d.case,
        "outcome": str(d.outcome),
        "sentence": sentence(d),
        "kernel_changed": d.kernel_changed,
        "side_by_side": d.beside,
        "software": d.software,
        "decided_by": _look(d.look) if d.look else None,
        "looks": [_look(one) for one in d.looks],
        "reference": d.stored.model_dump(mode="json") if d.stored else None,
        "measured": d.new.model_dump(mode="json") if d.new else None,
    }


def _look(one: Look) -> dict[str, Any]:
    return {
        "speed": one.speed.median,
        "low": one.speed.low,
        "high": one.speed.high,
        "noise_floor": one.noise_floor,
        "band": one.band,
        "change": str(one.change),
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
