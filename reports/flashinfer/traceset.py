"""Owns a run's trace set: which files there are, and what of the run has no place in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from reports.dataset import Cell, Dataset, Row
from reports.flashinfer.definitions import OP_TYPE, Unsayable, definition, name_of, workload
from reports.flashinfer.schema import LEFT_OUT, Definition, Solution, Trace
from reports.flashinfer.solutions import solution, solution_name
from reports.flashinfer.traces import evaluation


@dataclass(frozen=True)
class LeftOut:
    """What the format cannot hold of one result, or of a line that could not be read."""

    what: str  # trace, solution, definition or line
    line: int
    record: str
    contender: str
    task: str
    workload: str
    verdict: str
    why: str
    reason: str = ""  # the record's own


@dataclass(frozen=True)
class TraceSet:
    """Definitions, their solutions, workloads (traces without a solution) and traces."""

    definitions: tuple[Definition, ...]
    solutions: tuple[Solution, ...]
    workloads: tuple[Trace, ...]
    traces: tuple[Trace, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def files(self) -> Mapping[str, str]:
        """Relative path -> text, in the folders that flashinfer-bench's TraceSet reads."""
        found = {f"definitions/{OP_TYPE}/{d.name}.json": _json(d) for d in self.definitions}
        found |= {f"solutions/{OP_TYPE}/{s.definition}/{s.name}.json": _json(s) for s in self.solutions}
        for folder, traces in (("workloads", self.workloads), ("traces", self.traces)):
            for d in self.definitions:
                own = [t for t in traces if t.definition == d.name]
                if own:
                    found[f"{folder}/{OP_TYPE}/{d.name}.jsonl"] = _lines(_json(t) for t in own)
        if self.left_out:
            found[LEFT_OUT] = _lines(json.dumps(x.__dict__, ensure_ascii=False) for x in self.left_out)
        return found


def trace_set(dataset: Dataset) -> TraceSet:
    """Everything a run recorded, as far as the format can hold it; the rest is in `left_out`."""
    by_definition: dict[str, list[Cell]] = {}
    for cell in dataset.cells:
        by_definition.setdefault(name_of(cell), []).append(cell)
    definitions: list[Definition] = []
    solutions: dict[str, Solution] = {}
    workloads: list[Trace] = []
    traces: list[Trace] = []
    left = _unreadable(dataset)
    for name, cells in by_definition.items():
        try:
            definitions.append(definition(cells))
            shapes = [(cell, workload(cell)) for cell in cells]
        except Unsayable as error:
            definitions = [d for d in definitions if d.name != name]
            left += [_left("definition", row, str(error)) for cell in cells for row in cell.rows]
            continue
        found, missing = _solutions(dataset, name, [row for cell in cells for row in cell.rows])
        solutions |= found
        left += missing
        for cell, shape in shapes:
            workloads.append(Trace(definition=name, workload=shape))
            for row in cell.rows:
                try:
                    said = evaluation(cell, row, dataset.environments)
                except Unsayable as error:
                    left.append(_left("trace", row, str(error)))
                    continue
                who = solution_name(row, name)
                traces.append(Trace(definition=name, workload=shape, solution=who, evaluation=said))
    return TraceSet(
        tuple(definitions), tuple(solutions.values()), tuple(workloads), tuple(traces), tuple(left)
    )


def _solutions(
    dataset: Dataset, definition: str, rows: Iterable[Row]
) -> tuple[dict[str, Solution], list[LeftOut]]:
    """One for each contender that was tried; of what has none, the first record stands for all."""
    found: dict[str, Solution] = {}
    missing: dict[str, LeftOut] = {}
    for row in rows:
        name = solution_name(row, definition)
        if name in found or name in missing or not row.counted:
            continue
        try:
            found[name] = solution(dataset, row, definition)
        except Unsayable as error:
            missing[name] = _left("solution", row, str(error))
    return found, list(missing.values())


def _unreadable(dataset: Dataset) -> list[LeftOut]:
    torn = [LeftOut("line", s.line, "", "", "", "", "", f"{s.file}: {s.why}") for s in dataset.skipped]
    apart = [
        LeftOut(
            "trace",
            x.line,
            x.result.id,
            x.result.candidate.name,
            x.result.task,
            x.result.workload.key,
            x.result.verdict.value,
            x.why,
            x.result.reason,
        )
        for x in dataset.left_out
    ]
    return [*torn, *apart]


def _left(what: str, row: Row, why: str) -> LeftOut:
    r = row.result
    return LeftOut(
        what, row.line, r.id, row.contender, r.task, r.workload.key, r.verdict.value, why, r.reason
    )


def _json(record: BaseModel) -> str:
    return record.model_dump_json(exclude_unset=True) + ("\n" if not isinstance(record, Trace) else "")


def _lines(lines: Iterable[str]) -> str:
    return "".join(line + "\n" for line in lines)
