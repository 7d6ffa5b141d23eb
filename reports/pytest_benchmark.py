"""Owns a run as the JSON of pytest-benchmark, so that `pytest-benchmark compare` and its plots read it.

A round of pytest-benchmark is a block of the session: consecutive timed iterations of one contender,
whose recorded time is the median of an iteration. All statistics are those of pytest-benchmark over
these times; the record's own median over all samples is in `extra_info`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.records import Measurement
from harness.runs import Environment
from reports.dataset import Cell, Dataset, Row
from reports.figures import best_baseline, speedup

FORMAT_VERSION = "5.3.1"  # of pytest-benchmark, whose fields these are


@dataclass(frozen=True)
class Rounds:
    """Seconds of an iteration, one for each block; its statistics as pytest-benchmark defines them."""

    times_s: tuple[float, ...]
    iterations: int

    def stats(self) -> dict[str, object]:
        """The object `stats` of a benchmark."""
        data = sorted(self.times_s)
        mean, stddev = statistics.mean(data), statistics.stdev(data) if len(data) > 1 else 0.0
        q1, q3 = _quartiles(data)
        low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
        far = sum(not mean - stddev <= t <= mean + stddev for t in data)
        beyond = sum(not low <= t <= high for t in data)
        return {
            "min": data[0],
            "max": data[-1],
            "mean": mean,
            "stddev": stddev,
            "rounds": len(data),
            "median": statistics.median(data),
            "iqr": q3 - q1,
            "q1": q1,
            "q3": q3,
            "iqr_outliers": beyond,
            "stddev_outliers": far,
            "outliers": f"{far};{beyond}",
            "ld15iqr": next(t for t in data if t >= low),
            "hd15iqr": max(t for t in data if t <= high),
            "ops": len(data) / sum(data),
            "total": sum(self.times_s),
            "data": list(self.times_s),
            "iterations": self.iterations,
        }


def _quartiles(data: Sequence[float]) -> tuple[float, float]:
    """Of sorted values, as pytest-benchmark interpolates them (methods 2 and 3 of Wikipedia's "Quartile")."""
    count = len(data)
    if count == 1:
        return data[0], data[0]
    if count % 2 == 0:
        return statistics.median(data[: count // 2]), statistics.median(data[count // 2 :])
    n, near = count // 4, 0.75 if count % 4 == 1 else 0.25
    low = n - 1 if count % 4 == 1 else n
    return (
        (1 - near) * data[low] + near * data[low + 1],
        near * data[-low - 2] + (1 - near) * data[-low - 1],
    )


def pytest_benchmark_text(dataset: Dataset) -> str:
    """Measured results as benchmarks; everything else is listed under `attnbench`, with its verdict."""
    rows = [(cell, row) for cell in dataset.cells for row in cell.rows]
    used = dict.fromkeys(row.result.environment for _, row in rows)
    found = [dataset.environments[digest] for digest in used if digest in dataset.environments]
    first = min((row.result.recorded_at for _, row in rows), default="")
    whole = {
        "machine_info": _machine(found[0] if found else None),
        "commit_info": _commit(found[0] if found else None, first),
        "benchmarks": [_benchmark(cell, row, row.measured) for cell, row in rows if row.measured],
        "datetime": first,
        "version": FORMAT_VERSION,
        "attnbench": {
            "run": dataset.name,
            "not_timed": [_untimed(cell, row) for cell, row in rows if not row.measured],
            "left_out": [{"record": x.result.id, "line": x.line, "why": x.why} for x in dataset.left_out],
            "unread": [x.__dict__ for x in dataset.skipped],
        },
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _benchmark(cell: Cell, row: Row, m: Measurement) -> dict[str, object]:
    name = f"{cell.task}[{cell.workload.key}-{row.contender}]"
    return {
        "group": f"{cell.target} {cell.task} {cell.workload.key}",
        "name": name,
        "fullname": f"attnbench/{cell.target}::{name}",
        "params": {"workload": cell.workload.key, "contender": row.contender},
        "param": f"{cell.workload.key}-{row.contender}",
        "extra_info": _extra(cell, row, m),
        "options": {"timer": m.clock},
        "stats": _rounds(m).stats(),
    }


def _rounds(m: Measurement) -> Rounds:
    if not m.blocks:  # nothing but the summary was recorded: one round
        return Rounds((m.device_time.median_ms / 1000,), m.device_time.samples)
    times = tuple(b.median_ms / 1000 for b in m.blocks)
    return Rounds(times, round(statistics.median(b.iterations for b in m.blocks)))


def _extra(cell: Cell, row: Row, m: Measurement) -> dict[str, object]:
    best, r = best_baseline(cell), row.result
    over = speedup(cell, row, best)
    return {
        "verdict": r.verdict.value,
        "device": r.device,
        "environment": r.environment,
        "kind": r.candidate.kind,
        "method": r.candidate.method,
        "backend": r.candidate.backend,
        "family": r.candidate.family,
        "model": r.candidate.model,
        "candidate_sha256": r.candidate.sha256,
        "record": r.id,
        "line": row.line,
        "device_time_median_ms": m.device_time.median_ms,
        "device_time_p10_ms": m.device_time.p10_ms,
        "device_time_p90_ms": m.device_time.p90_ms,
        "samples": m.device_time.samples,
        "tflops": m.tflops,
        "best_baseline": best.contender if best else None,
        "speedup_vs_best_baseline": over.estimate.median if over else None,
        "speedup_low": over.estimate.low if over else None,
        "speedup_high": over.estimate.high if over else None,
        "pairing": over.how if over else None,
    }


def _untimed(cell: Cell, row: Row) -> dict[str, object]:
    r = row.result
    return {
        "fullname": f"attnbench/{cell.target}::{cell.task}[{cell.workload.key}-{row.contender}]",
        "verdict": r.verdict.value,
        "reason": r.reason,
        "record": r.id,
        "line": row.line,
    }


def _machine(found: Environment | None) -> dict[str, object]:
    """What is recorded of it; the name of the host is not."""
    if found is None:
        return {}
    return {
        "release": found.platform,
        "python_version": found.python,
        "cpu": {"brand_raw": found.cpu, "count": found.cores},
        "device": found.device,
        "driver": found.driver,
        "cuda": found.cuda,
        "libraries": found.libraries,
        "gpu": found.gpu,
    }


def _commit(found: Environment | None, time: str) -> dict[str, object]:
    """No commit is recorded: the hash of the sources that decide a number stands for it, where known."""
    return {
        "id": found.sources if found and found.sources else "unversioned",
        "time": None,
        "author_time": None,
        "dirty": False,
        "project": f"attnbench {found.harness}" if found else "attnbench",
        "branch": "(unknown)",
    }
