"""Owns what the study asks of a GPU: kernels compiled ahead, choices and baselines timed in turns. Tests play it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from baselines import BASELINES
from harness import tuning_clock
from harness.build.loader import entry_point
from harness.crew import Crew
from harness.targets import find_target
from harness.tl import ir
from harness.tuning import Clock, searchable
from harness.tuning_compile import Kernels, lighter
from tasks import Task, Workload, find
from tests.tl.study.cells import growing

Choice = Mapping[str, int]
Spaces = Mapping[tuple[int, int], Sequence[Choice]]
SOFTWARE = ("torch", "triton", "flash-attn-4", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


class Bench(Protocol):
    """One program on one device, with all choices that will be asked of it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *told: object) -> None: ...

    def ready(self, calls: Iterable[tuple[Workload, Choice]]) -> None:
        """Compiles ahead, many at once."""

    def wrong(self, w: Workload, choice: Choice) -> str:
        """Compiles, runs, compares on this very shape: what is wrong, or nothing."""

    def time_ms(self, w: Workload, choice: Choice) -> float | None:
        """One short timing, as a search's."""

    def together_ms(self, w: Workload, choices: Sequence[Choice]) -> Sequence[float | None]:
        """Longer ones, taking turns, as a search's."""

    def samples_ms(
        self, w: Workload, contenders: Mapping[str, Choice | str], rounds: int, step: float = 0.0
    ) -> dict[str, list[float]]:
        """Every replay of each, taking turns; a name stands for a baseline. Who cannot run is left out.

        With `step`, each key's score differs by that from the last one's.
        """


class Folders(Protocol):
    """Candidates in folders of their own, with the choices of their tables, on one device."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *told: object) -> None: ...

    def samples_ms(
        self, w: Workload, humans: Sequence[str], rounds: int
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Every replay of each, taking turns, and what is wrong with the others."""


class Device(Protocol):
    def about(self) -> dict[str, str]:
        """What it is, and the software there."""

    def bench(self, task: Task, program: ir.Program, spaces: Spaces) -> Bench: ...

    def folders(self, task: Task, work: Sequence[Workload], folders: Mapping[str, Path]) -> Folders:
        """Kernels are compiled ahead for all of the work."""

    def run(self, words: Sequence[str], limit_s: float) -> tuple[int, str]:
        """A tool's exit code and what it prints; FileNotFoundError where it is missing."""


class Gpu:
    def about(self) -> dict[str, str]:
        processors = torch.cuda.get_device_properties("cuda").multi_processor_count
        found = {
            "device": torch.cuda.get_device_name(),
            "processors": str(processors),
            "cuda": str(torch.version.cuda),
        }
        for name in SOFTWARE:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    def bench(self, task: Task, program: ir.Program, spaces: Spaces) -> Bench:
        return GpuBench(task, program, spaces)

    def folders(self, task: Task, work: Sequence[Workload], folders: Mapping[str, Path]) -> Folders:
        return GpuFolders(task, work, folders)

    def run(self, words: Sequence[str], limit_s: float) -> tuple[int, str]:
        done = subprocess.run(list(words), capture_output=True, text=True, timeout=limit_s, check=False)
        return done.returncode, done.stdout + done.stderr


class GpuBench:
    """The candidate is the one that `attnbench tl tune` searches, so Triton finds kernels that it has compiled."""

    def __init__(self, task: Task, program: ir.Program, spaces: Spaces) -> None:
        self._task, self._program, self._spaces = task, program, spaces
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._folder = str(
            searchable(self._program, self._task, self._spaces, "gluon").write(scratch / "kernel")
        )
        crew = self._stack.enter_context(Crew(tuning_clock.try_once))
        self._kernels = Kernels(crew, self._folder, self._task, launched=True)
        self._clock = Clock(self._kernels, self._folder, self._task, [])
        self.time_ms, self.together_ms = self._clock.time_ms, self._clock.together_ms
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ready(self, calls: Iterable[tuple[Workload, Choice]]) -> None:
        self._kernels.ready(calls)
        tuning_clock.warm()

    def wrong(self, w: Workload, choice: Choice) -> str:
        if known := self._kernels.wrong(w, choice):
            return known
        try:
            tensors = self._clock.tensors_of(w)
            return tuning_clock.wrong(self._call(w, choice, tensors), self._task, w, tensors)
        except Exception as problem:  # a line of the record
            return tuning_clock.failure(problem)

    def samples_ms(
        self, w: Workload, contenders: Mapping[str, Choice | str], rounds: int, step: float = 0.0
    ) -> dict[str, list[float]]:
        tensors = self._clock.tensors_of(w)
        if step:
            tensors = growing(self._task, w, tensors, step)
        graphs = {}
        for name, what in contenders.items():
            try:
                graphs[name] = tuning_clock.captured(self._call(w, what, tensors))
            except Exception as problem:  # such as a library that is not there
                print(f"  {name}: {tuning_clock.failure(problem)}", file=sys.stderr)
        return _in_turns(graphs, rounds)

    def _call(self, w: Workload, what: Choice | str, tensors: dict[str, torch.Tensor]) -> Callable[[], Any]:
        if not isinstance(what, str):
            return tuning_clock.call_of(self._folder, self._task, w, tensors, what)
        return _human(what, self._task, w, tensors)


class GpuFolders:
    def __init__(self, task: Task, work: Sequence[Workload], folders: Mapping[str, Path]) -> None:
        self._task, self._work, self._folders = task, work, folders

    def __enter__(self) -> Self:
        """What is wrong shows when it is timed."""
        jobs = [(str(f), lighter(w), self._task.name) for f in self._folders.values() for w in self._work]
        with Crew(ran) as crew:
            crew.answers(jobs)
        tuning_clock.warm()
        return self

    def __exit__(self, *_: object) -> None: ...

    def samples_ms(
        self, w: Workload, humans: Sequence[str], rounds: int
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        tensors = tuning_clock.tensors_of(self._task, w)
        graphs, problems = {}, {}
        calls = []  # a graph uses what a candidate's module holds
        for name in (*self._folders, *humans):
            try:
                if name in self._folders:
                    call = _call_of(self._folders[name], self._task, w, tensors)
                    if why := tuning_clock.wrong(call, self._task, w, tensors):
                        problems[name] = why
                        continue
                else:
                    call = _human(name, self._task, w, tensors)
                calls.append(call)
                graphs[name] = tuning_clock.captured(call)
            except Exception as problem:  # a line of the record
                problems[name] = tuning_clock.failure(problem)
        return _in_turns(graphs, rounds), problems


def _in_turns(graphs: Mapping[str, torch.cuda.CUDAGraph], rounds: int) -> dict[str, list[float]]:
    """With as much rest before each replay as the slowest takes."""
    if not graphs:
        return {}
    once = tuning_clock.samples_ms(graphs, 2)
    return tuning_clock.samples_ms(graphs, rounds, max(min(times) for times in once.values()))


def ran(job: tuple[str, Workload, str]) -> str:
    """Compile and run once; what went wrong, or nothing."""
    folder, w, name = job
    try:
        task = find(name)
        tensors = tuning_clock.tensors_of(task, w)
        return tuning_clock.wrong(_call_of(Path(folder), task, w, tensors), task, w, tensors)
    except Exception as problem:
        return tuning_clock.failure(problem)


def _call_of(folder: Path, task: Task, w: Workload, tensors: dict[str, torch.Tensor]) -> Callable[[], Any]:
    attention, scalars = entry_point(folder, "attention.py"), task.scalars(w)
    return lambda: attention(**tensors, **scalars)


def _human(name: str, task: Task, w: Workload, tensors: dict[str, torch.Tensor]) -> Callable[[], Any]:
    baseline = BASELINES[name]
    if reason := baseline.library().missing or baseline.unsupported(task, w, find_target("h100")):
        raise RuntimeError(reason)
    return baseline.plan(task, w, tensors)
