"""Owns compiling a candidate's choices ahead, many at once: what a call launches is compiled once, and kept.

Triton keeps what it compiles on disk, so a process that times finds it there. What does not compile, run, or
come out right is known before anything is timed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from harness.crew import Crew
from harness.tuning_clock import kernels_of
from tasks import Task, Workload

_HEADS = 8  # of a trial: with 16k tokens more tiles than a GPU has multiprocessors

Choice = Mapping[str, int]
Job = tuple[str, Workload, str, Choice]


@dataclass
class Kernels:
    """Of one candidate: the kernels that were compiled, and what is wrong with them."""

    crew: Crew[Job]
    folder: str
    task: Task
    launched: bool  # whether a call tells what it launches; else each choice is a kernel of its own
    done: Callable[[int], None] = lambda count: None  # told of each that was compiled
    seconds: float = 0.0  # spent so far
    _wrong: dict[str, str] = field(default_factory=dict)  # by kernel
    _known: dict[tuple[str, str], str] = field(default_factory=dict)  # by workload and choice: its kernel
    _empty: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # of the last workload

    def __len__(self) -> int:
        return len(self._wrong)

    def missing(self, calls: Iterable[tuple[Workload, Choice]]) -> dict[str, tuple[Workload, Choice]]:
        """By kernel, one call each of those that launch what nobody has compiled."""
        found: dict[str, tuple[Workload, Choice]] = {}
        for w, choice in calls:
            kernel = self._kernel(w, choice)
            if kernel not in self._wrong:
                found.setdefault(kernel, (w, choice))
        return found

    def ready(self, calls: Iterable[tuple[Workload, Choice]]) -> None:
        """Compile what calls on a workload with a choice launch."""
        began, before = time.monotonic(), len(self)
        work = self.missing(calls)
        jobs: list[Job] = [
            (self.folder, lighter(w) if self.launched else w, self.task.name, choice)
            for w, choice in work.values()
        ]
        answers = self.crew.answers(jobs, lambda count: self.done(before + count))
        self._wrong |= dict(zip(work, answers, strict=True))
        self.seconds += time.monotonic() - began

    def wrong(self, w: Workload, choice: Choice) -> str:
        """What is wrong with the choice there, "" where nothing is known against it."""
        return self._wrong.get(self._kernel(w, choice), "")

    def _kernel(self, w: Workload, choice: Choice) -> str:
        words = json.dumps(dict(choice), sort_keys=True)
        if not self.launched:
            return f"{w.dim} {w.dim_v} {w.dtype} {words}"
        key = w.key, words
        if key not in self._known:
            if w.key not in self._empty:
                self._empty = {w.key: empty(self.task, w)}
            self._known[key] = kernels_of(self.folder, self.task, w, self._empty[w.key], choice)
        return self._known[key]


def lighter(w: Workload) -> Workload:
    """The workload with few heads and sequences: the same kernel, and room for many processes."""
    kv_heads = min(w.kv_heads, max(1, _HEADS // w.group))
    heads = kv_heads * w.group
    batch = max(1, w.batch * _HEADS // max(_HEADS, heads))
    return w.with_(batch=batch, kv_heads=kv_heads, heads=heads)


def empty(task: Task, w: Workload) -> dict[str, torch.Tensor]:
    """Tensors of the workload that nobody has written to."""
    return {t.name: torch.empty(t.shape(w), dtype=w.torch_dtype, device="cuda") for t in task.tensors}
