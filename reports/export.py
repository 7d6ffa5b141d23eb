"""Owns the machine-readable reports: CSV (one line a result), JSON (derived figures with their records)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict

from reports import surroundings
from reports.conditions import noise_floor, telemetry, time_spent
from reports.dataset import Cell, Dataset, Row
from reports.figures import FAILED_SPEEDUP, Speedup, best_baseline, headlines, speedup
from reports.funnel import failures, funnel, skips
from reports.generated import Generated
from reports.generation_export import generation_object
from reports.samples import best_of_samples, by_maker

Value = str | int | float | bool | None

COLUMNS = (
    "task",
    "target",
    "device",
    "workload",
    "batch",
    "heads",
    "kv_heads",
    "seq_q",
    "seq_k",
    "dim",
    "dim_v",
    "dtype",
    "causal",
    "contender",
    "kind",
    "method",
    "backend",
    "family",
    "verdict",
    "stage",
    "reason",
    "tflops",
    "percent_of_peak",
    "percent_of_bandwidth",
    "device_time_ms",
    "device_time_p10_ms",
    "device_time_p90_ms",
    "call_latency_ms",
    "clock",
    "stopped",
    "anchor",
    "ratio_over_anchor",
    "ratio_low",
    "ratio_high",
    "noise_ratio",
    "best_baseline",
    "speedup_vs_best_baseline",
    "speedup_low",
    "speedup_high",
    "pairing",
    "standing",
    "candidate_sha256",
    "record",
    "line",
    "model",
    "sample",
    "trial",
)


def csv_text(dataset: Dataset) -> str:
    """One line a result; fields that do not apply are empty, and `verdict` says why."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result_lines(dataset))
    return stream.getvalue()


def result_lines(dataset: Dataset) -> Iterator[dict[str, Value]]:
    """Column -> value of each result, cell by cell; None where a column does not apply."""
    for cell in dataset.cells:
        best = best_baseline(cell)
        yield from (_line(cell, row, best) for row in cell.rows)


def _line(cell: Cell, row: Row, best: Row | None) -> dict[str, Value]:
    r, w, c = row.result, cell.workload, row.result.candidate
    line: dict[str, Value] = dict.fromkeys(COLUMNS)
    line |= {
        "task": cell.task,
        "target": cell.target,
        "device": r.device,
        "workload": w.key,
        "batch": w.batch,
        "heads": w.heads,
        "kv_heads": w.kv_heads,
        "seq_q": w.seq_q,
        "seq_k": w.seq_k,
        "dim": w.dim,
        "dim_v": w.dim_v,
        "dtype": w.dtype,
        "causal": w.causal,
        "contender": row.contender,
        "kind": c.kind,
        "method": c.method,
        "backend": c.backend,
        "family": c.family,
        "verdict": r.verdict.value,
        "stage": r.stage.value,
        "reason": r.reason,
        "candidate_sha256": c.sha256,
        "record": r.id,
        "line": row.line,
        "model": c.model,
        "sample": c.sample if c.trial else None,
        "trial": c.trial,
        "best_baseline": best.contender if best else None,
    }
    m = r.measurement
    if m is not None:
        line |= {
            "tflops": m.tflops,
            "percent_of_peak": m.percent_of_peak,
            "percent_of_bandwidth": m.percent_of_bandwidth,
            "device_time_ms": m.device_time.median_ms,
            "device_time_p10_ms": m.device_time.p10_ms,
            "device_time_p90_ms": m.device_time.p90_ms,
            "clock": m.clock,
            "stopped": m.ratio.stopped,
            "call_latency_ms": m.call_latency.median_ms if m.call_latency else None,
            "anchor": m.ratio.anchor,
            "ratio_over_anchor": m.ratio.median,
            "ratio_low": m.ratio.low,
            "ratio_high": m.ratio.high,
            "noise_ratio": m.noise.median if m.noise else None,
        }
    found = speedup(cell, row, best) if best else None
    if found is not None:
        e = found.estimate
        line |= {
            "speedup_vs_best_baseline": round(e.median, 6),
            "speedup_low": round(e.low, 6),
            "speedup_high": round(e.high, 6),
            "pairing": found.how,
            "standing": found.standing.value,
        }
    return line


def json_text(dataset: Dataset) -> str:
    """Everything derived, with full record ids; the records themselves stay in results.jsonl."""
    counts = by_maker(dataset)
    data: dict[str, object] = {
        "format": "attnbench-report-1",
        "run": dataset.name,
        "what": surroundings.lead(dataset),
        "warnings": surroundings.warnings(dataset),
        "failed_speedup": FAILED_SPEEDUP,
        "headline": [asdict(h) for h in headlines(best_of_samples(dataset))],
        "cells": [_cell(cell) for cell in dataset.cells],
        "funnel": {
            kind: [
                {
                    "contender": asdict(f.contender),
                    "counted": f.trials,
                    "reached": {s.value: n for s, n in f.reached.items()},
                    "apart": {v.value: n for v, n in f.apart.items()},
                }
                for f in rows
            ]
            for kind, rows in (
                ("candidates", funnel(counts, "candidate")),
                ("baselines", funnel(counts, "baseline")),
            )
        },
        "verdicts_other_than_ok": [
            {
                "contender": e.contender,
                "task": e.scope,
                "verdict": e.verdict.value,
                "reason": e.reason,
                "workloads": [r.result.workload.key for r in e.rows],
                "records": [_reference(r) for r in e.rows],
            }
            for e in (*failures(dataset), *skips(dataset))
        ],
        "noise_floor": [asdict(n) | {"worst": _reference(n.worst)} for n in noise_floor(dataset)],
        "telemetry": [asdict(t) | {"row": _reference(t.row)} for t in telemetry(counts)],
        "time": asdict(spent) if (spent := time_spent(dataset)) else None,
        "environments": {d: e.content for d, e in dataset.environments.items()},
        "left_out": [{"record": x.result.id, "line": x.line, "why": x.why} for x in dataset.left_out],
        "unread": [asdict(s) for s in dataset.skipped],
    }
    if dataset.endings:
        data["generation"] = generation_object(Generated(dataset))
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _reference(row: Row) -> dict[str, Value]:
    return {"record": row.result.id, "line": row.line}


def _cell(cell: Cell) -> dict[str, object]:
    best = best_baseline(cell)
    pairs = [speedup(cell, c, b) for c in cell.candidates for b in cell.baselines]
    return {
        "task": cell.task,
        "target": cell.target,
        "workload": cell.workload.model_dump(mode="json"),
        "best_baseline": best.contender if best else None,
        "contenders": [
            {
                "contender": r.contender,
                "verdict": r.result.verdict.value,
                "reason": r.result.reason,
                "tflops": r.measured.tflops if r.measured else None,
                **_reference(r),
            }
            for r in cell.rows
        ],
        "speedups": [_speedup(s, best) for s in pairs if s is not None],
    }


def _speedup(s: Speedup, best: Row | None) -> dict[str, object]:
    return {
        "candidate": s.candidate.contender,
        "over": s.baseline.contender,
        "over_is_best": s.baseline is best,
        **asdict(s.estimate),
        "pairing": s.how,
        "standing": s.standing.value,
        "records": [_reference(s.candidate), _reference(s.baseline)],
    }
