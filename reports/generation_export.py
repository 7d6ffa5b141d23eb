"""Owns the figures of trials of models as JSON: every derived figure, with the records behind it."""

from __future__ import annotations

from dataclasses import asdict

from reports import paper
from reports.ablation import Contrast
from reports.dataset import Row
from reports.duels import CellRatio, Duel, Variant
from reports.generated import Generated
from reports.generation import Attempt, Score


def generation_object(of: Generated) -> dict[str, object]:
    """The object `generation` of report.json."""
    return {
        "unfinished_trials": of.unfinished,
        "trials": [_attempt(a) for a in of.attempts],
        "scores": [_score(s) for s in of.scores],
        "over_vanilla": [_duel(d) for d in of.duels],
        "ablation": [_contrast(c) for c in of.contrasts],
        "programs": [asdict(p) for p in of.programs],
        "costs": [asdict(c) for c in of.costs],
        "paid_by_the_run": asdict(of.paid),
        "paper": [
            {
                "claim": claim.slug,
                "says": claim.says,
                "answers": [
                    {
                        "subject": a.subject,
                        "measured": a.measured or None,
                        "why_not": a.why_not or None,
                        "record": _record(a.row),
                    }
                    for a in found
                ],
            }
            for claim, found in paper.answers(of)
        ],
    }


def _record(row: Row | None) -> dict[str, object] | None:
    return {"record": row.result.id, "line": row.line} if row else None


def _attempt(a: Attempt) -> dict[str, object]:
    e = a.ending
    return {
        "trial": e.trial,
        **e.assignment.model_dump(mode="json"),
        "verdict": e.verdict.value if e.verdict else None,
        "reason": e.reason,
        "stage": a.stage.value,
        "turns": e.turns,
        "verifications": e.verifications,
        "tokens_in": e.tokens_in,
        "tokens_out": e.tokens_out,
        "tokens_estimated": e.tokens_estimated,
        "usd": e.usd,
        "wall_s": e.wall_s,
        "latency_unknown": e.latency_unknown,
        "first_correct_s": e.first_correct_s,
        "cells": [
            {
                "workload": o.cell.workload.key,
                "verdict": o.row.result.verdict.value if o.row else None,
                "best_baseline": o.best.contender if o.best else None,
                "speedup": asdict(o.speedup.estimate) if o.speedup else None,
                "record": _record(o.row),
            }
            for o in a.outcomes
        ],
    }


def _score(s: Score) -> dict[str, object]:
    p = s.pace
    return {
        **asdict(s.maker),
        "scope": s.scope,
        "trials": s.trials,
        "infra": s.infra,
        "untimed": s.untimed,
        "reached": {stage.value: n for stage, n in s.reached.items()},
        "failed": {verdict.value: n for verdict, n in sorted(s.failed.items())},
        "pass_at": [asdict(x) for x in s.correct_at],
        "clean_at": [asdict(x) for x in s.clean_at],
        "pairs": p.pairs,
        "measured": p.measured,
        "apart": p.apart,
        "fast_p": {f"{at}": share for at, share in p.fast.items()},
        "geomean": asdict(p.geomean) if p.geomean else None,
        "geomean_failures_counted": asdict(p.failures_counted) if p.failures_counted else None,
    }


def _duel(d: Duel) -> dict[str, object]:
    return {
        "of": asdict(d.ours),
        "over": asdict(d.theirs),
        "cells": len(d.cells),
        "variants": [_variant(v) for v in d.variants],
    }


def _variant(v: Variant) -> dict[str, object]:
    return {
        "variant": v.name,
        "cells": v.cells,
        "geomean": asdict(v.geomean) if v.geomean else None,
        "highest": _ratio(v.highest) if v.highest else None,
        "ratios": [_ratio(r) for r in v.ratios],
    }


def _ratio(r: CellRatio) -> dict[str, object]:
    return {
        "task": r.cell.task,
        "target": r.cell.target,
        "workload": r.cell.workload.key,
        "sample": r.sample,
        **asdict(r.estimate),
        "pairing": "paired" if r.paired else "not paired",
        "of": _record(r.ours),
        "over": _record(r.theirs),
    }


def _contrast(c: Contrast) -> dict[str, object]:
    return {
        "scope": c.scope,
        "target": c.target,
        "model": c.model,
        "backend": c.backend,
        "methods": {name: [_score(s) for s in found] for name, found in c.by_method.items()},
    }
