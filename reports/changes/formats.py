"""Owns a comparison as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from reports.changes.comparison import Comparison
from reports.changes.drift import Drift
from reports.changes.pairs import CellPair
from reports.changes.sections import lead, sections, title, warnings
from reports.changes.speeds import Change, Changes
from reports.changes.verdicts import VerdictChange
from reports.dataset import Cell, Dataset, Row
from reports.markdown import section_parts

LINES_NOTE = "`lines` are those of results.jsonl, of the first run -> of the second."


def markdown(of: Comparison) -> str:
    """The sections as one page."""
    parts = [f"# attnbench compare: {title(of)}", lead(of)]
    parts += [f"> **Note:** {warning}" for warning in warnings(of)]
    for section in sections(of):
        parts += section_parts(section, {})
    return "\n\n".join([*parts, LINES_NOTE]) + "\n"


def json_text(of: Comparison) -> str:
    """Every figure, those within the noise included. Noise and `sure` are log ratios."""
    m = of.match
    data = {
        "before": _run(of.before),
        "after": _run(of.after),
        "warnings": warnings(of),
        "matched": {
            "across_targets": m.across,
            "cells": len(m.cells),
            "contenders": m.contenders,
            "results": of.results,
        },
        "only_before": {"contenders": m.contenders_before, "cells": [_cell(c) for c in m.cells_before]},
        "only_after": {"contenders": m.contenders_after, "cells": [_cell(c) for c in m.cells_after]},
        "verdicts": [_verdict(v) for v in of.verdicts],
        "speedups": _changes(of.speeds),
        "geomeans": [asdict(g) | {"standing": g.standing.value} for g in of.geomeans],
        "device_times": _changes(of.times),
        "differences": [asdict(d) for d in of.differences],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _run(dataset: Dataset) -> dict[str, object]:
    return {
        "run": dataset.name,
        "results": len(dataset.rows),
        "targets": dataset.targets,
        "devices": dataset.devices,
        "left_out": len(dataset.left_out),
        "unread": [asdict(s) for s in dataset.skipped],
    }


def _cell(c: Cell) -> dict[str, str]:
    return {"target": c.target, "task": c.task, "workload": c.workload.key}


def _place(pair: CellPair, row: Row) -> dict[str, object]:
    return {"contender": row.contender, "kind": row.result.candidate.kind, **_cell(pair.after)}


def _records(before: Row, after: Row) -> dict[str, object]:
    pairs = (("before", before), ("after", after))
    return {name: {"record": r.result.id, "line": r.line} for name, r in pairs}


def _verdict(v: VerdictChange) -> dict[str, object]:
    return {
        **_place(v.pair, v.after),
        "turn": v.turn.value,
        "verdict_before": v.before.result.verdict.value,
        "verdict_after": v.after.result.verdict.value,
        "reason": v.reason,
        "records": _records(v.before, v.after),
    }


def _changes(of: Changes) -> dict[str, object]:
    return {
        "changes": [_change(c) for c in of.of],
        "drift": _drift(of.drift),
        "not_compared": [{"why": why, "results": n} for why, n in of.apart.items()],
    }


def _drift(drift: Drift) -> dict[str, object]:
    worst = _records(*drift.worst) if drift.worst else None
    return {
        "added": drift.value,
        "measured": drift.measured,
        "controls": drift.controls,
        "worst": worst,
    }


def _change(c: Change) -> dict[str, object]:
    figures: dict[str, object]
    if c.speedups:
        before, after = c.speedups
        figures = {
            "over": after.baseline.contender,
            "same_baseline": c.same_denominator,
            "speedup_before": asdict(before.estimate),
            "speedup_after": asdict(after.estimate),
        }
    else:
        times = {"before": c.before.measured, "after": c.after.measured}
        figures = {f"{name}_ms": m.device_time.median_ms if m else None for name, m in times.items()}
    return {
        **_place(c.pair, c.after),
        **figures,
        "change": asdict(c.estimate),
        "percent": 100 * math.expm1(math.log(c.estimate.median)),
        "noise": c.floor,
        "sure": c.sure,
        "standing": c.standing.value,
        "called": c.called,
        "role": c.role.value,
        "records": _records(c.before, c.after),
    }
