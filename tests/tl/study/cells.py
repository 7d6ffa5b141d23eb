"""Owns the cells of the study, and the choices that are compared on them: a schedule with each feature off in turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.targets import find_target
from harness.tl import ir
from harness.tl.lower.facts import grows
from harness.tl.lower.gluon_choices import complete, default_choice, unfit
from harness.tl.lower.gluon_reach import length
from harness.tl.lower.lowered import LowerError
from harness.tl.schedule import FIELDS, RESCALES, WARPGROUP, Schedule
from harness.tl.space import lacks
from tasks import Task, Workload
from tests.tl.triton_trial import program

LENGTHS = {"512": 512, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384}
GRID = tuple(f"{t}:{n}:{d}" for t in ("mha_causal", "mha") for d in (128, 64) for n in LENGTHS)
ABLATION = (
    "mha_causal:512:128", "mha_causal:2k:128", "mha:16k:128", "mha_causal:2k:64", "mha:512:64", "mha_causal:16k:64",
)  # fmt: skip
SEARCHED = tuple(f"mha_causal:{n}:{d}" for d in (128, 64) for n in ("512", "2k", "16k"))
BASE = "as chosen"
AGAIN = "as chosen, again"  # captured a second time: what differs between the two is noise
WAYS = {
    "ahead": "tickets ahead",
    "carry": "product of the next tile first",
    "arrivals": "arrivals of threads",
    "reuse": "the result through the query rows' place",
}
HUMANS = ("cudnn", "flash-attn-4")


@dataclass(frozen=True)
class Cell:
    """`name` is task:length:head dimension, of the paper's grid."""

    name: str
    task: Task
    program: ir.Program
    workload: Workload

    @property
    def dims(self) -> tuple[int, int]:
        return self.workload.dim, self.workload.dim_v


def cell(name: str, dtype: str = "fp16") -> Cell:
    """Raises ValueError for what is not of the grid."""
    if name not in GRID:
        raise ValueError(f"no cell {name!r} of the paper's grid; such as {GRID[0]}")
    task_name, length, dim = name.split(":")
    task, prog = program("reference", task_name)
    found = (
        w for w in task.workload_set("paper")
        if (w.seq_q, w.seq_k, w.dim, w.dtype) == (LENGTHS[length], LENGTHS[length], int(dim), dtype)
    )  # fmt: skip
    return Cell(name, task, prog, next(found))


def chosen(cell: Cell, tuned: Path | None = None) -> dict[str, int]:
    """The choice that a candidate takes: of the table beside it in a folder of tuned ones, or the default's."""
    record = tuned / f"tl_{cell.program.name}_gluon_tuned" / "tuning.json" if tuned else None
    if record is not None and record.exists():
        rows = [r for r in json.loads(record.read_text())["rows"] if r["dim"] == cell.workload.dim]
        return dict(next(r["choice"] for r in rows if r["seq"] == cell.workload.seq_k))
    return default_choice(cell.program, max(cell.dims), length(cell.program, cell.workload))


def variants(cell: Cell, base: Mapping[str, int]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """By name: the choice with a feature off (or on, where it was off); and what cannot be, with the reason."""
    reason = lacks(cell.program, cell.task, find_target("h100"), dtype=cell.workload.dtype, dims=cell.dims)
    found: dict[str, dict[str, int]] = {BASE: dict(base)}
    left: dict[str, str] = {}
    for name, changes in _changes(cell, base).items():
        asked = {**base, **changes}
        if "consumers" in changes:
            asked = {k: v for k, v in asked.items() if k != "BM"}
        try:
            full = complete(cell.program, asked)
        except LowerError as error:
            left[name] = str(error)
            continue
        lack = reason(full)
        why = unfit(cell.program, full) or (lack.message if lack else "")
        if why:
            left[name] = why
        elif full not in found.values():
            found[name] = full
    return found, left


def _changes(cell: Cell, base: Mapping[str, int]) -> dict[str, dict[str, int]]:
    schedule = Schedule(**{k: v for k, v in base.items() if k in FIELDS})
    even = schedule.pool // (WARPGROUP * (schedule.consumers + 1))  # registers before any are handed over
    found = {
        "no overlap": {"overlap": 0, "pingpong": 0},
        "turns" if not base["pingpong"] else "no turns": {"pingpong": 1 - base["pingpong"]},
        "a fixed stride": {"persistent": 1},
        "a block a tile": {"persistent": 0},
        "one stage": {"stages": 1},
        "another stage": {"stages": base["stages"] + 1},
        "one consumer less": {"consumers": base["consumers"] - 1},
        "no registers handed over": {"registers": even // 8 * 8},
        "one place for query rows": {"q_stages": 1},
        "two places for query rows": {"q_stages": 2},
        **{f"rescale = {n}": {"rescale": n} for n in RESCALES},
        **{
            f"{'no ' if base.get(key) else ''}{words}": {key: 1 - base.get(key, 0)}
            for key, words in WAYS.items()
        },
    }
    if grows_of(cell.program):
        found |= {
            "the grid's order": {"longest_first": 0},
            "heads one by one": {"heads": 1},
            "heads all together": {"heads": cell.workload.batch * cell.workload.heads},
        }
    return found


def grows_of(program: ir.Program) -> bool:
    """Whether some rows have longer loops than others, so that order and groups matter."""
    return any(grows(k, axis.name) for k in program.kernels for axis in k.grid if axis.role == "rows")


def settings(text: str, base: Mapping[str, int]) -> dict[str, int]:
    """A choice in words, such as `consumers=2+BN=64`, over the base; its rows are those of its consumers."""
    given = {k: int(v) for k, v in (part.split("=") for part in text.split("+"))}
    return {**{k: v for k, v in base.items() if k != "BM" or "consumers" not in given}, **given}


def widened(w: Workload, columns: int, rounds: Sequence[int], causal: bool) -> dict[int, Workload]:
    """By number: the workload with that many rounds of `columns` keys a tile, or of a causal one as many more."""
    return {n: replace(w, seq_k=n * columns + (w.seq_q if causal else 0)) for n in rounds}


def growing(
    task: Task, w: Workload, given: Mapping[str, torch.Tensor], step: float
) -> dict[str, torch.Tensor]:
    """The same inputs, but each key's score is greater by `step` than the last one's, or less: by one column of both.

    The other columns stay as random as they were, so that the products take as much power as before.
    """
    q, k = given["q"].clone(), given["k"].clone()
    ramp = step / task.scalars(w)["scale"] * torch.arange(w.seq_k, device=k.device)
    q[..., 0] = 1.0
    k[..., 0] = (ramp - ramp.max()).view(1, -1, 1).to(k.dtype)
    return {**given, "q": q, "k": k}
