"""Owns where trials end: the funnel, the reasons of verdicts, and what was skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.verdicts import FUNNEL, Stage, Verdict
from reports.dataset import Contender, Dataset, Row


@dataclass(frozen=True)
class FunnelRow:
    """How far the trials of one contender came: counts of trials that completed each stage."""

    contender: Contender
    trials: int  # whose verdict counts
    reached: dict[Stage, int]
    apart: dict[Verdict, int]  # skipped, infra: in no rate


def funnel(dataset: Dataset, kind: Literal["candidate", "baseline"]) -> list[FunnelRow]:
    """One row per contender of this kind."""
    order = list(Stage)
    found = []
    for contender in (c for c in dataset.contenders if c.kind == kind):
        rows = [r for r in dataset.rows if r.contender == contender.label and r.result.candidate.kind == kind]
        counted = [order.index(r.result.stage) for r in rows if r.counted]
        reached = {stage: sum(at >= order.index(stage) for at in counted) for stage in FUNNEL}
        apart = Counter(r.result.verdict for r in rows if not r.counted)
        found.append(FunnelRow(contender, len(counted), reached, dict(apart)))
    return found


@dataclass(frozen=True)
class Ending:
    """Results of one contender on one task that ended alike: same verdict, same reason."""

    contender: str
    scope: str
    verdict: Verdict
    reason: str
    rows: tuple[Row, ...]
    tried: int  # results of this contender on this task


def endings(dataset: Dataset, rows: Iterable[Row]) -> list[Ending]:
    """These rows grouped by contender, task, verdict and reason, in order of appearance."""
    grouped: dict[tuple[str, str, Verdict, str], list[Row]] = {}
    for row in rows:
        r = row.result
        scope = dataset.group_title(r.target, r.task)
        grouped.setdefault((row.contender, scope, r.verdict, r.reason), []).append(row)
    tried = Counter((r.contender, dataset.group_title(r.result.target, r.result.task)) for r in dataset.rows)
    return [
        Ending(contender, scope, verdict, reason, tuple(members), tried[(contender, scope)])
        for (contender, scope, verdict, reason), members in grouped.items()
    ]


def failures(dataset: Dataset) -> list[Ending]:
    """Everything that is neither measured nor skipped: candidates first, then baselines."""
    ended = [r for r in dataset.rows if r.result.verdict not in (Verdict.OK, Verdict.SKIPPED)]
    return endings(dataset, sorted(ended, key=lambda r: r.is_baseline))


def skips(dataset: Dataset) -> list[Ending]:
    """What could not run here, with the reason it gave."""
    return endings(dataset, (r for r in dataset.rows if r.result.verdict is Verdict.SKIPPED))
