"""Owns what the site says of one kernel: its sources, what they came from, its story, its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from reports import text
from reports.dataset import Cell, Contender, Dataset, Row
from reports.figures import Estimate, best_baseline, geomean, speedup
from reports.generated import Generated
from reports.lineage import Lineage, kernel_files, lineage
from reports.page import Detail, anchor, detail
from reports.site.board import kernel_slug
from reports.site.code import coloured
from reports.site.tables import ChoiceTable, choice_tables
from reports.stories import Story, stories

Told = Mapping[str, Mapping[str, Story]]  # run -> trial -> story
Cells = Mapping[tuple[str, int], Cell]  # (run, line) -> cell


@dataclass(frozen=True)
class Text:
    """A file or a program, in colours; `path` is its copy on the site, if it has one."""

    title: str
    html: str
    path: str = ""


@dataclass(frozen=True)
class Line:
    """What a kernel did in one cell."""

    run: str
    task: str
    shape: str
    verdict: str
    reason: str
    rate: str
    time: str
    peak: str
    speedup: Estimate | None
    standing: str
    over: str
    record: str
    anchor: str  # of the record's details on the page


@dataclass(frozen=True)
class Kernel:
    """One kernel, known by the hash of its sources, over all runs."""

    sha256: str
    contender: Contender
    devices: tuple[str, ...]
    tasks: tuple[str, ...]
    runs: tuple[str, ...]
    sources: tuple[Text, ...]
    lineage: Lineage | None  # None: nothing tells of LLM-TL
    programs: tuple[Text, ...]  # what it came from, earliest first: sketch, program
    tables: tuple[ChoiceTable, ...]  # of a compiled kernel
    story: Story | None
    lines: tuple[Line, ...]
    summary: str
    details: tuple[tuple[str, Detail], ...]  # run, record

    @property
    def slug(self) -> str:
        return kernel_slug(self.sha256)

    @cached_property
    def made_by(self) -> str:
        """Who wrote it, in words."""
        c = self.contender
        if c.model:
            return f"{c.model}, method {c.method}, backend {c.backend}"
        return f"given as a candidate, backend {c.backend}"


def kernels(datasets: Sequence[Dataset]) -> list[Kernel]:
    """Every candidate of which a source was kept or a result was recorded, in order of appearance."""
    found: dict[str, list[tuple[Dataset, Row]]] = {}
    for dataset in datasets:
        for row in dataset.rows:
            if not row.is_baseline and row.result.candidate.sha256:
                found.setdefault(row.result.candidate.sha256, []).append((dataset, row))
    told = {d.name: {s.trial: s for s in stories(Generated(d))} for d in datasets if d.endings}
    cells = {(d.name, row.line): cell for d in datasets for cell in d.cells for row in cell.rows}
    return [_kernel(sha256, rows, told, cells) for sha256, rows in found.items()]


def _kernel(sha256: str, rows: list[tuple[Dataset, Row]], told: Told, cells: Cells) -> Kernel:
    dataset, row = rows[0]
    trial = next((r.result.candidate.trial for _, r in rows if r.result.candidate.trial), "")
    lines = [_line(d, r, cells[d.name, r.line]) for d, r in rows]
    files = kernel_files(rows)
    origin = lineage(rows, files)
    schedule = origin.schedule if origin else None
    return Kernel(
        sha256=sha256,
        contender=next(c for c in dataset.contenders if c.label == row.contender),
        devices=tuple(dict.fromkeys(r.result.device for _, r in rows)),
        tasks=tuple(dict.fromkeys(r.result.task for _, r in rows)),
        runs=tuple(dict.fromkeys(d.name for d, _ in rows)),
        sources=tuple(_sources(files, sha256)),
        lineage=origin,
        programs=tuple(_programs(origin, sha256)) if origin else (),
        tables=choice_tables(schedule) if schedule else (),
        story=next((told[d.name][trial] for d, _ in rows if trial in told.get(d.name, {})), None),
        lines=tuple(lines),
        summary=_summary(lines),
        details=tuple((d.name, detail(r)) for d, r in rows),
    )


def _sources(files: Mapping[str, str], sha256: str) -> list[Text]:
    """The files: what runs on the device first, what only describes it last; programs stand apart."""
    ranks = {".cu": 0, ".py": 1, ".toml": 3}
    names = sorted(
        (name for name in files if not name.endswith(".tl")),
        key=lambda name: ranks.get(Path(name).suffix, 2),
    )
    return [Text(name, coloured(name, files[name]), f"artifacts/{sha256}/{name}") for name in names]


def _programs(origin: Lineage, sha256: str) -> Iterator[Text]:
    if origin.sketch:
        yield Text("TL sketch", coloured("x.tl", origin.sketch))
    if origin.program:
        path = f"artifacts/{sha256}/{origin.file}" if origin.file else ""
        yield Text("TL program", coloured("x.tl", origin.program), path)


def _line(dataset: Dataset, row: Row, cell: Cell) -> Line:
    r, m, w = row.result, row.measured, cell.workload
    best = best_baseline(cell)
    found = speedup(cell, row, best) if m and best else None
    return Line(
        run=dataset.name,
        task=r.task,
        shape=f"{text.family(w)}, {text.lengths(w)}, b{w.batch}",
        verdict=r.verdict.value,
        reason=r.reason,
        rate=f"{text.rate(m.tflops, r.target)} {text.unit(r.target)}" if m else "",
        time=text.milliseconds(m.device_time.median_ms) if m else "",
        peak=f"{m.percent_of_peak:.1f} %" if m and m.percent_of_peak is not None else "",
        speedup=found.estimate if found else None,
        standing=found.standing.value if found else "",
        over=best.contender if found and best else "",
        record=row.reference,
        anchor=f"{dataset.name}-{anchor(row)}",
    )


def _summary(lines: Sequence[Line]) -> str:
    """One sentence with its geomean over the best human, where it was measured."""
    values = [line.speedup.median for line in lines if line.speedup]
    if not values:
        return "It was not timed beside a human baseline."
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    mean = text.times(geomean(values))
    return f"{mean} of the best human baseline, geomean of {text.number(len(values), 'cell')}{spread}."
