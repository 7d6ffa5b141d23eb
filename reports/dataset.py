"""Owns reading a run's directory into rows and cells; knows no statistics and no output format.

Directory format: experiment.toml, environment.json ({digest: Environment}), results.jsonl
(one `Result` a line), summary.jsonl (one `RunSummary` a line), artifacts/<sha256>/<filename>; where
models wrote kernels, trials.jsonl and transcripts.jsonl (see `reports.trials`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from harness.records import Measurement, Result, WorkloadRecord
from harness.runs import Environment, RunSummary
from harness.seals import read_result
from harness.story import Ending, Exchange, Step
from harness.verdicts import NOT_COUNTED, Verdict
from reports.comparable import LeftOut, split
from reports.lines import SkippedLine, first_line, read_lines
from reports.trials import read_stories

RESULTS = "results.jsonl"
SUMMARIES = "summary.jsonl"
ENVIRONMENTS = "environment.json"
EXPERIMENT = "experiment.toml"
ARTIFACTS = "artifacts"

_DTYPES = ("fp16", "bf16", "fp32", "fp64")


class RunError(ValueError):
    """A directory that is no run; the text says what is missing and what to do."""


@dataclass(frozen=True)
class Row:
    """One result with the place it was read from and the contender it belongs to."""

    result: Result
    line: int  # of results.jsonl, from 1
    contender: str

    @property
    def reference(self) -> str:
        """Short record id and line, as printed next to a figure: 'a1b2c3d4:17'."""
        return f"{self.result.id[:8]}:{self.line}"

    @property
    def measured(self) -> Measurement | None:
        """The measurement, where it counts: only of a result that is ok."""
        return self.result.measurement if self.result.verdict is Verdict.OK else None

    @property
    def is_baseline(self) -> bool:
        return self.result.candidate.kind == "baseline"

    @property
    def has_run(self) -> bool:
        """Whether code of the contender was executed: it was built, and the failure is not ours."""
        return self.counted and self.result.verdict not in (Verdict.NO_CODE, Verdict.BUILD_ERROR)

    @property
    def generated(self) -> bool:
        """Whether a model wrote it, in a trial of this run."""
        return bool(self.result.candidate.trial)

    @property
    def counted(self) -> bool:
        """Whether the verdict counts as success or failure (not skipped, not infra)."""
        return self.result.verdict not in NOT_COUNTED


@dataclass(frozen=True)
class Contender:
    """A baseline or a candidate over all cells of a run."""

    label: str
    kind: Literal["baseline", "candidate"]
    method: str
    backend: str
    family: str
    model: str


@dataclass(frozen=True)
class Cell:
    """All results of one task on one workload for one target."""

    target: str
    task: str
    workload: WorkloadRecord
    rows: tuple[Row, ...]

    @property
    def baselines(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if r.is_baseline)

    @property
    def candidates(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if not r.is_baseline)

    def row(self, contender: str) -> Row | None:
        return next((r for r in self.rows if r.contender == contender), None)


@dataclass(frozen=True)
class Dataset:
    """A run as read; everything a report says is derived from this."""

    name: str
    path: Path
    rows: tuple[Row, ...]
    environments: dict[str, Environment]
    summaries: tuple[RunSummary, ...]
    experiment: str
    skipped: tuple[SkippedLine, ...]
    endings: tuple[Ending, ...] = ()  # of trials of models, in the order of the file
    steps: tuple[Step, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    left_out: tuple[LeftOut, ...] = ()  # results that may not stand in a figure with `rows`

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Cells in order of first appearance of their task, then by shape."""
        return group_cells(self.rows)

    @cached_property
    def contenders(self) -> tuple[Contender, ...]:
        """Baselines first, then candidates, each in order of first appearance."""
        found: dict[str, Contender] = {}
        for row in sorted(self.rows, key=lambda r: not r.is_baseline):
            c = row.result.candidate
            found.setdefault(
                row.contender, Contender(row.contender, c.kind, c.method, c.backend, c.family, c.model)
            )
        return tuple(found.values())

    @property
    def candidates(self) -> tuple[Contender, ...]:
        return tuple(c for c in self.contenders if c.kind == "candidate")

    @property
    def baselines(self) -> tuple[Contender, ...]:
        return tuple(c for c in self.contenders if c.kind == "baseline")

    @cached_property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """(target, task) pairs in order of first appearance: each gets tables of its own."""
        return tuple(dict.fromkeys((c.target, c.task) for c in self.cells))

    def cells_of(self, target: str, task: str) -> tuple[Cell, ...]:
        return tuple(c for c in self.cells if (c.target, c.task) == (target, task))

    @cached_property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(r.result.target for r in self.rows))

    @cached_property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(r.result.device for r in self.rows))

    def group_title(self, target: str, task: str) -> str:
        """The task, with its target only where the run has several."""
        return task if len(self.targets) == 1 else f"{task} on {target}"

    def artifact(self, row: Row, filename: str) -> Path | None:
        """Path of a candidate's source file under the run, or None where it was not kept."""
        candidate = row.result.candidate
        for owner in (candidate.sha256, candidate.files.get(filename, "")):
            path = self.path / ARTIFACTS / owner / filename
            if owner and Path(filename).name == filename and path.is_file():
                return path
        return None


def load_run(run: Path) -> Dataset:
    """Read a run; a torn or foreign line is left out and listed in `skipped`.

    Where a result was recorded again (same id), the later line counts. Results that are not comparable
    with most of the run are in `left_out`, and in nothing else. Raises RunError if there is no
    results.jsonl.
    """
    source = run / RESULTS
    if not source.is_file():
        raise RunError(f"{run} has no {RESULTS}: give the directory of a run, as `attnbench eval` names it")
    skipped: list[SkippedLine] = []
    latest: dict[str, tuple[int, Result]] = {}
    for number, result in read_lines(source, read_result, skipped):
        latest.pop(result.id, None)
        latest[result.id] = (number, result)
    summaries = [s for _, s in read_lines(run / SUMMARIES, RunSummary.model_validate_json, skipped)]
    stories = read_stories(run, skipped)
    environments = _read_environments(run / ENVIRONMENTS, skipped)
    numbered = sorted(latest.values(), key=lambda pair: pair[0])
    comparable, left_out = split(numbered, environments)
    experiment = run / EXPERIMENT
    return Dataset(
        name=run.resolve().name,
        path=run,
        rows=label_rows(comparable),
        environments=environments,
        summaries=tuple(summaries),
        experiment=experiment.read_text(encoding="utf-8") if experiment.is_file() else "",
        skipped=tuple(skipped),
        endings=stories.endings,
        steps=stories.steps,
        exchanges=stories.exchanges,
        left_out=tuple(left_out),
    )


def label_rows(results: Iterable[tuple[int, Result]]) -> tuple[Row, ...]:
    """Rows with contender labels: the name, plus hash and sample where a name is shared in a cell."""
    numbered = sorted(results, key=lambda pair: pair[0])
    by_name = _ambiguous(r for _, r in numbered)
    baselines = {r.candidate.name for _, r in numbered if r.candidate.kind == "baseline"}
    rows = []
    for line, result in numbered:
        c = result.candidate
        label = c.name
        if c.name in by_name:
            label = f"{c.name}@{c.sha256[:6]}"
            if by_name[c.name]:
                label += f"#{result.identity.sample}"
        if c.kind == "candidate" and c.name in baselines:
            label += " (candidate)"
        rows.append(Row(result, line, label))
    return tuple(rows)


def _ambiguous(results: Iterable[Result]) -> dict[str, bool]:
    """Names that two results of one cell share -> whether even the content hash is shared."""
    by_name: Counter[tuple[str, str, str, str, str]] = Counter()
    by_content: Counter[tuple[str, str, str, str, str, str]] = Counter()
    for r in results:
        place = (r.target, r.task, r.workload.key, r.candidate.kind, r.candidate.name)
        by_name[place] += 1
        by_content[(*place, r.candidate.sha256)] += 1
    same_content = {key[4] for key, count in by_content.items() if count > 1}
    return {key[4]: key[4] in same_content for key, count in by_name.items() if count > 1}


def group_cells(rows: Iterable[Row]) -> tuple[Cell, ...]:
    """Rows grouped by (target, task, workload); shapes in reading order within a task."""
    rows = tuple(rows)
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    tasks: dict[tuple[str, str], int] = {}
    for row in rows:
        r = row.result
        grouped.setdefault((r.target, r.task, r.workload.key), []).append(row)
    for row in sorted(rows, key=lambda r: r.generated):  # trials that failed are recorded before any timing
        tasks.setdefault((row.result.target, row.result.task), len(tasks))
    cells = [
        Cell(target, task, members[0].result.workload, tuple(members))
        for (target, task, _), members in grouped.items()
    ]
    return tuple(sorted(cells, key=lambda c: (tasks[(c.target, c.task)], *shape_order(c.workload))))


def shape_order(w: WorkloadRecord) -> tuple[str | int | tuple[tuple[str, float], ...], ...]:
    """Sort key: dtype (fp16 first), then head dim, heads, parameters, label, then lengths."""
    parameters = tuple(sorted(w.parameters.items()))
    dtype = _DTYPES.index(w.dtype) if w.dtype in _DTYPES else len(_DTYPES)
    shape = (-w.dim, -w.dim_v, w.heads, w.kv_heads, parameters, w.label, w.seq_k, w.seq_q, w.key)
    return (dtype, w.dtype, *shape)


def _read_environments(path: Path, skipped: list[SkippedLine]) -> dict[str, Environment]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {digest: Environment.model_validate(value) for digest, value in data.items()}
    except (ValueError, AttributeError) as error:
        skipped.append(SkippedLine(path.name, 1, first_line(error)))
        return {}
