"""Owns what today's compiler makes of a run's programs: each kernel as recorded beside the same program compiled anew."""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.targets import find_target
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.lowered import LowerError
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from tasks import Task, Workload, find
from tests.tl.study.cells import HUMANS
from tests.tl.study.device import Device
from tests.tl.study.record import Deadline, Record

ROUNDS = 40
RECORDED, ANEW = "recorded", "anew"


@dataclass(frozen=True)
class Written:
    """A program that the run's models wrote; `folder` holds it and what it was compiled to."""

    name: str
    task: Task
    folder: Path

    @property
    def text(self) -> str:
        return (self.folder / "program.tl").read_text(encoding="utf-8")

    def compiled(self, where: Path) -> Path:
        """Raises LowerError."""
        program = resolve(parse(self.text), self.task)
        return lower_gluon(program, self.task, find_target("h100")).write(where)


def anew(device: Device, record: Record, run: Path, deadline: Deadline, rounds: int = ROUNDS) -> None:
    """Every workload of the run that the record lacks, until the deadline, beside the human baselines."""
    with tempfile.TemporaryDirectory() as scratch:
        for programs in _by_task(run).values():
            task = programs[0].task
            work = {f"{task.name} {w.key}": w for w in _workloads(run, task)}
            left = [w for key, w in work.items() if key not in record.cells]
            if not left or deadline.over:
                print(f"{task.name}: {'no time left' if left else 'recorded already'}")
                continue
            folders, refused = _folders(programs, Path(scratch) / task.name)
            with device.folders(task, left, folders) as timed:
                for w in left:
                    if deadline.over:
                        print(f"{task.name} {w.key}: no time left")
                        continue
                    samples, problems = timed.samples_ms(w, HUMANS, rounds)
                    problems = refused | problems
                    entry = {
                        "programs": [p.name for p in programs],
                        "problems": problems,
                        "samples_ms": samples,
                    }
                    record.put(f"{task.name} {w.key}", entry)
                    print(f"{task.name} {w.key}: {len(samples)} timed, {len(problems)} not", flush=True)


def _folders(programs: Sequence[Written], scratch: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """By name and how: the candidates; and what today's compiler says of those that it refuses."""
    folders: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for p in programs:
        folders[f"{p.name} {RECORDED}"] = p.folder
        try:
            folders[f"{p.name} {ANEW}"] = p.compiled(scratch / p.name)
        except LowerError as error:
            refused[f"{p.name} {ANEW}"] = str(error)
    return folders, refused


def _by_task(run: Path) -> dict[str, list[Written]]:
    found: dict[str, list[Written]] = {}
    for program in sorted(run.glob("artifacts/*/program.tl")):
        told = tomllib.loads((program.parent / "candidate.toml").read_text(encoding="utf-8"))
        own = Written(told["name"], find(told["task"]), program.parent)
        found.setdefault(told["task"], []).append(own)
    return {task: sorted(mine, key=lambda p: p.name) for task, mine in found.items()}


def _workloads(run: Path, task: Task) -> list[Workload]:
    """Those on which the run has a result of the task, in its order."""
    keys = dict.fromkeys(r["workload"]["key"] for r in _results(run) if r["task"] == task.name)
    known = {w.key: w for mine in task.workloads.values() for w in mine}
    return [known[key] for key in keys if key in known]


def _results(run: Path) -> Iterator[Mapping[str, Any]]:
    with (run / "results.jsonl").open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)


def best(samples: Mapping[str, Sequence[float]], names: Sequence[str] = HUMANS) -> str:
    """The human with the least median; "" where none ran."""
    return min(
        (n for n in names if n in samples), key=lambda n: sorted(samples[n])[len(samples[n]) // 2], default=""
    )
