"""Owns the leaderboard's data: one entry for each contender in each cell of each run.

Everything the front page filters, sorts and ranks is in an entry; `rank` is what the page does too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from harness.records import WorkloadRecord
from harness.verdicts import Verdict
from reports.dataset import Cell, Dataset, Row
from reports.figures import FAILED_SPEEDUP, Estimate, best_baseline, geomean_estimate, session_noise, speedup
from reports.page import anchor
from reports.samples import best_of_samples

HUMAN, OWN, LIBRARY, PROVEN = "human", "own kernel", "library dispatch", "proven, not timed"
NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Entry:
    """A contender in a cell; figures are None where they were not measured."""

    run: str
    target: str
    device: str
    task: str
    workload: str
    label: str
    dtype: str
    mask: str
    dim: int
    dim_v: int
    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    contender: str
    kind: str  # baseline or candidate
    track: str
    method: str
    backend: str
    model: str
    verdict: str
    reason: str
    time_ms: float | None
    tflops: float | None
    percent_of_peak: float | None
    speedup: float | None  # over the best human of the cell, whose own is 1
    low: float | None  # 95 % interval
    high: float | None
    noise: float | None  # how far the duplicate of the anchor was from 1, interval included
    standing: str
    paired: bool
    best_human: str  # of the cell; "" where no human baseline was measured
    record: str
    link: str  # of the record, from the site's root
    kernel: str  # of the kernel's page, from the site's root; "" where there is none


COLUMNS = tuple(field.name for field in fields(Entry))


def entries(dataset: Dataset) -> list[Entry]:
    """Of a run: human baselines, candidates, and of each maker's samples the best of each cell."""
    shown = best_of_samples(dataset)
    return [_entry(shown, cell, row) for cell in shown.cells for row in cell.rows]


def _entry(dataset: Dataset, cell: Cell, row: Row) -> Entry:
    r, w, m = row.result, cell.workload, row.measured
    best = best_baseline(cell)
    found = speedup(cell, row, best) if m is not None and best is not None else None
    estimate = found.estimate if found else None
    return Entry(
        run=dataset.name,
        target=cell.target,
        device=r.device,
        task=cell.task,
        workload=w.key,
        label=w.label,
        dtype=w.dtype,
        mask=mask_of(w),
        dim=w.dim,
        dim_v=w.dim_v,
        batch=w.batch,
        heads=w.heads,
        kv_heads=w.kv_heads,
        seq_q=w.seq_q,
        seq_k=w.seq_k,
        contender=row.contender,
        kind=r.candidate.kind,
        track=track_of(row),
        method="human" if row.is_baseline else r.candidate.method,
        backend=r.candidate.backend,
        model=r.candidate.model,
        verdict=r.verdict.value,
        reason=r.reason,
        time_ms=m.device_time.median_ms if m else None,
        tflops=m.tflops if m else None,
        percent_of_peak=m.percent_of_peak if m else None,
        speedup=estimate.median if estimate else None,
        low=estimate.low if estimate else None,
        high=estimate.high if estimate else None,
        noise=math.expm1(session_noise(row)) if m and m.noise else None,
        standing=found.standing.value if found else "",
        paired=found.paired if found else False,
        best_human=best.contender if best is not None else "",
        record=row.reference,
        link=f"runs/{dataset.name}/report.html#{anchor(row)}",
        kernel="" if row.is_baseline else f"kernels/{kernel_slug(r.candidate.sha256)}.html",
    )


def mask_of(w: WorkloadRecord) -> str:
    """'full', 'causal' or 'window'."""
    return "window" if "window" in w.parameters else "causal" if w.causal else "full"


def track_of(row: Row) -> str:
    """Whose work a result is: a library's is no kernel of the candidate's own."""
    if row.is_baseline:
        return HUMAN
    if row.result.verdict is Verdict.LIBRARY_DISPATCH:
        return LIBRARY
    return PROVEN if row.result.verdict is Verdict.PROVEN else OWN


def kernel_slug(sha256: str) -> str:
    return sha256[:12]


@dataclass(frozen=True)
class Rank:
    """One contender of one run over the cells that were chosen."""

    run: str
    target: str
    contender: str
    kind: str
    method: str
    backend: str
    model: str
    geomean: Estimate | None  # over the best human, of the cells that were measured
    counted: float | None  # the same with failed cells as FAILED_SPEEDUP
    measured: int
    failed: int
    cells: int  # of the run among those chosen, that have a human baseline
    faster: int  # beyond noise
    noise: float | None  # the median of its sessions
    best_tflops: float | None
    best_percent: float | None
    against: tuple[str, ...]  # the best humans of its cells, the most frequent first

    @property
    def whole(self) -> bool:
        """Whether it was tried in every cell, so that others are measured by the same cells."""
        return self.measured + self.failed == self.cells


NOT_FAILED = frozenset({Verdict.SKIPPED.value, Verdict.INFRA.value, Verdict.PROVEN.value})


def rank(chosen: Sequence[Entry], among: Sequence[Entry] | None = None) -> list[Rank]:
    """Contenders by their geomean with failures counted; those that were tried everywhere first.

    A contender belongs to its run: cells of other runs have other baselines beside it. `among`: entries
    whose cells are counted, where only some contenders are chosen.
    """
    cells: dict[str, set[tuple[str, str]]] = {}
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for e in among or chosen:
        if e.best_human:
            cells.setdefault(e.run, set()).add((e.task, e.workload))
    for e in chosen:
        groups.setdefault((e.run, e.contender, e.kind), []).append(e)
    found = [_rank(own, len(cells.get(run, ()))) for (run, _, _), own in groups.items()]
    found = [r for r in found if r.measured + r.failed]
    return sorted(found, key=lambda r: (not r.whole, -(r.counted or 0.0), r.run, r.contender))


def _rank(own: Sequence[Entry], cells: int) -> Rank:
    first = own[0]
    with_human = [e for e in own if e.best_human]
    values = [
        Estimate(e.speedup, e.low, e.high)
        for e in with_human
        if e.speedup is not None and e.low is not None and e.high is not None
    ]
    failed = sum(e.speedup is None and e.verdict not in NOT_FAILED for e in with_human)
    logs = [math.log(v.median) for v in values] + [math.log(FAILED_SPEEDUP)] * failed
    return Rank(
        run=first.run,
        target=first.target,
        contender=first.contender,
        kind=first.kind,
        method=first.method,
        backend=first.backend,
        model=first.model,
        geomean=geomean_estimate(values) if values else None,
        counted=math.exp(math.fsum(logs) / len(logs)) if logs else None,
        measured=len(values),
        failed=failed,
        cells=cells,
        faster=sum(e.standing == "faster" for e in with_human),
        noise=_median(e.noise for e in own),
        best_tflops=max((e.tflops for e in own if e.tflops is not None), default=None),
        best_percent=max((e.percent_of_peak for e in own if e.percent_of_peak is not None), default=None),
        against=tuple(name for name, _ in Counter(e.best_human for e in with_human).most_common()),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = sorted(v for v in values if v is not None)
    if not known:
        return None
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2


def as_json(found: Sequence[Entry]) -> dict[str, Any]:
    """Column names and rows; what the page's script reads, and whoever else."""
    return {"columns": list(COLUMNS), "rows": [[_short(v) for v in asdict(e).values()] for e in found]}


def _short(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def csv_lines(found: Sequence[Entry]) -> Iterable[list[str]]:
    """Header and rows; empty where nothing was measured."""
    yield list(COLUMNS)
    for e in found:
        yield ["" if v is None else str(_short(v)) for v in asdict(e).values()]
