"""Owns where a kernel came from: its TL sketch, its program, who wrote and who compiled it, its schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.story import Step
from reports.dataset import Dataset, Row
from reports.schedules import Schedule, schedule_of

PROGRAM = "program.tl"
_SCHEDULE_LINE = re.compile(r"^[ \t]*schedule\b[^\n]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Lineage:
    """What is known of a kernel's way from a program; texts are "" where there is none."""

    sketch: str
    program: str
    file: str  # of the program among the kernel's own; "" where it stands in the trial's record only
    told: str  # how the kernel came from it, as far as records say
    schedule: Schedule | None  # None: no compiler made the kernel

    @property
    def line(self) -> str:
        """The program's own lines about its schedule."""
        return "\n".join(found.strip() for found in _SCHEDULE_LINE.findall(self.program))


def kernel_files(rows: Sequence[tuple[Dataset, Row]]) -> dict[str, str]:
    """The texts of a kernel's files, from the first run that kept them."""
    for dataset, row in rows:
        paths = [(name, dataset.artifact(row, name)) for name in row.result.candidate.files]
        kept = {name: p.read_text(encoding="utf-8", errors="replace") for name, p in paths if p is not None}
        if kept:
            return kept
    return {}


def lineage(rows: Sequence[tuple[Dataset, Row]], files: Mapping[str, str]) -> Lineage | None:
    """Of one kernel: its results with their runs, and its files. None where nothing tells of LLM-TL."""
    candidate = rows[0][1].result.candidate
    trial = next((r.result.candidate.trial for _, r in rows if r.result.candidate.trial), "")
    steps = next((found for d, _ in rows if (found := _steps(d, trial))), [])
    sketch, told = _programs(steps, candidate.sha256)
    compiled = any(s.what == "compile" for s in steps)
    if trial and not compiled:
        files = {}  # a model wrote them: what they say of a program is no record
    file = next((name for name in (PROGRAM, *sorted(files)) if name in files and name.endswith(".tl")), "")
    program = files[file] if file else told
    schedule = schedule_of(files)
    if not sketch and not program and schedule is None:
        return None
    return Lineage(
        sketch=sketch,
        program=program,
        file=file,
        told=_told(candidate.method, candidate.model, bool(program), compiled),
        schedule=schedule,
    )


def _steps(dataset: Dataset, trial: str) -> list[Step]:
    return sorted((s for s in dataset.steps if trial and s.trial == trial), key=lambda s: s.number)


def _programs(steps: Sequence[Step], sha256: str) -> tuple[str, str]:
    """The sketch and the program behind this kernel: the last ones before it was there."""
    made = [n for n, s in enumerate(steps) if s.candidate == sha256]
    before = steps[: made[-1] + 1] if made else steps
    sketch = next((s.program for s in reversed(before) if s.program and s.stage == "sketch"), "")
    return sketch, next((s.program for s in reversed(before) if s.program and s.stage != "sketch"), "")


def _told(method: str, model: str, known: bool, compiled: bool) -> str:
    if model:
        if not known:
            return "No program of this trial was recorded."
        if compiled:
            return f"The program is by {model}. attnbench compiled it: no model wrote the source."
        return f"The program is by {model}, and so is its translation to the source beside it."
    if not known:
        return "By its own words it was compiled from an LLM-TL program. The run did not record the program."
    if method == "program":
        return "attnbench compiled the program in the run that timed it, without a model."
    return (
        "The program came in the candidate's own folder, compiled earlier. The run did not compile it itself."
    )
