"""Owns compiling the libraries' kernels in parallel, before anything is timed.

On a GPU host FlexAttention compiles for every shape, about 2 s each, and flash-attn 4 for
every configuration, 3 s each. Helper workers do it all at once into one cache folder, where
the worker that is timed finds it. Nothing is timed meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from baselines import BASELINES
from harness.experiment import Cell
from harness.targets import Target
from harness.verify.exam import Limits, image_layout
from harness.worker.process import Worker
from harness.worker.protocol import WorkerError

MOST_WORKERS = 12
FEWEST_JOBS = 4  # fewer are compiled where they are needed


@dataclass(frozen=True)
class Job:
    """One baseline to compile for one cell."""

    baseline: str
    cell: Cell


def jobs(cells: Sequence[Cell], baselines: Sequence[str], target: Target) -> list[Job]:
    """What is worth compiling ahead: once a configuration or once a shape, as the library does."""
    found: dict[tuple[object, ...], Job] = {}
    for name in baselines:
        baseline = BASELINES[name]
        if baseline.compiles == "never" or baseline.library().missing:
            continue
        for cell in cells:
            if baseline.unsupported(cell.task, cell.workload, target) is None:
                w = cell.workload
                key: tuple[object, ...] = (
                    name,
                    cell.task.name,
                    w.group,
                    w.dim,
                    w.dim_v,
                    w.dtype,
                    w.parameters,
                )
                found.setdefault(
                    key if baseline.compiles == "configuration" else (*key, w.key), Job(name, cell)
                )
    return list(found.values())


def compile_ahead(
    work: Sequence[Job], device: str, cache: Path, limits: Limits, task_folders: Sequence[Path]
) -> int:
    """Compile in parallel; returns how many jobs succeeded. A failure here shows up again when it matters."""
    count = min(MOST_WORKERS, len(os.sched_getaffinity(0)) * 3 // 4, len(work))
    if len(work) < FEWEST_JOBS or count < 2:
        return 0
    shares = [work[n::count] for n in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(lambda share: _compile(share, device, cache, limits, task_folders), shares))


def _compile(
    share: Sequence[Job], device: str, cache: Path, limits: Limits, task_folders: Sequence[Path]
) -> int:
    worker = Worker(device, trusted=True, cache=cache)
    done = 0
    try:
        for job in share:
            task, workload = job.cell.task, job.cell.workload
            args = {
                "layout": image_layout(task, workload, 0).to_json(),
                "slots": 1,
                "workload": asdict(workload),
                "scalars": task.scalars(workload),
                "task_needed": True,
                "task_folders": [str(folder.resolve()) for folder in task_folders],
            }
            try:
                worker.ask("load", {"kernel": "k", "baseline": job.baseline}, limit_s=limits.load_s)
                worker.ask("open_layout", args, limit_s=limits.call_s)
                worker.ask("prepare", {"kernel": "k"}, limit_s=limits.library_s)
                done += 1
            except WorkerError:
                if not worker.alive:
                    return done
    except WorkerError:
        return done
    finally:
        worker.close()
    return done
