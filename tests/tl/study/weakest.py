"""Owns which cells a run of the protocol shows as the weakest: those where a Gluon kernel is least over the best human."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.tl.study.cells import GRID, LENGTHS


def weakest(results: Path, most: int = 3, dtype: str = "fp16") -> list[str]:
    """Names of cells, the weakest first, from `results.jsonl` of a run."""
    with results.open(encoding="utf-8") as lines:
        found = ratios((json.loads(line) for line in lines), dtype)
    return sorted(found, key=lambda name: found[name])[:most]


def ratios(results: Iterable[Mapping[str, Any]], dtype: str) -> dict[str, float]:
    """By cell of the grid: the best human's device time over the best Gluon kernel's."""
    humans: dict[str, float] = {}
    own: dict[str, float] = {}
    for result in results:
        name = _name(result["task"], result["workload"])
        if result["verdict"] != "ok" or result["workload"]["dtype"] != dtype or name not in GRID:
            continue
        times = humans if result["candidate"]["kind"] == "baseline" else own
        if times is own and result["candidate"]["backend"] != "gluon":
            continue
        ms = result["measurement"]["device_time"]["median_ms"]
        times[name] = min(times.get(name, ms), ms)
    return {name: humans[name] / ms for name, ms in own.items() if name in humans}


def _name(task: str, w: Mapping[str, Any]) -> str:
    length = next((n for n, seq in LENGTHS.items() if seq == w["seq_q"] == w["seq_k"]), "?")
    return f"{task}:{length}:{w['dim']}"
