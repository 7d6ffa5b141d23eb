"""Owns doing many jobs at once in processes of their own, some of which hang, die, or lose their device.

A job's answer is what is wrong with it, or nothing. One that hangs or takes its process along is answered
for; all others are done by processes that work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, Self, TypeVar

PATIENCE_S = 90.0  # of one job: a compilation takes 2 to 6 s, a process as long to begin
MOST = 16  # processes: each holds a context on the GPU, and two gigabytes while it compares
_LEFT = 2  # processors for whoever waits, and for the machine
_TICK_S = 0.5
_HUNG = "no answer within {:.0f} s"
_DIED = "its process ended, exit code {}"

Job = TypeVar("Job")


class LostDevice(RuntimeError):
    """The process can no longer use its device; the text is what was wrong with the job that did it."""


def processes(processors: int | None = None) -> int:
    """How many jobs are done at once: what this process may run on, less two."""
    return min(MOST, max(1, (processors or len(os.sched_getaffinity(0))) - _LEFT))


@dataclass
class _Member(Generic[Job]):
    """A process, the number of the job that it does (None: it rests), and since when."""

    process: SpawnProcess
    pipe: Connection
    number: int | None = None
    since: float = 0.0


class Crew(Generic[Job]):
    """Processes that begin with the first jobs and stay until the end, for those that come later.

    `do` runs in them, so it is a module's function; it raises LostDevice where its process is of no more use.
    """

    def __init__(
        self, do: Callable[[Job], str], count: int | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._do, self._count, self._patience_s = do, count or processes(), patience_s
        self._context = get_context("spawn")  # CUDA does not survive a fork
        self._members: list[_Member[Job]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in list(self._members):
            self._end(member)

    def answers(self, jobs: Sequence[Job], done: Callable[[int], None] = lambda count: None) -> list[str]:
        """What is wrong with each job, "" where nothing is. `done` is told how many have an answer."""
        answers: dict[int, str] = {}
        left = iter(range(len(jobs)))
        self._members += [self._begun() for _ in range(min(self._count, len(jobs)) - len(self._members))]
        for member in list(self._members):
            self._give(member, left, jobs)
        while len(answers) < len(jobs):
            for member in self._heard():
                number = member.number
                assert number is not None
                answers[number], works = self._answer(member)
                if not works:
                    self._end(member)
                    member = self._begun()
                    self._members.append(member)
                self._give(member, left, jobs)
                done(len(answers))
        return [answers[n] for n in range(len(jobs))]

    def _heard(self) -> list[_Member[Job]]:
        """Those that have something to say, or have had long enough."""
        busy = [m for m in self._members if m.number is not None]
        ready = wait([m.pipe for m in busy], _TICK_S)
        late = time.monotonic() - self._patience_s
        return [m for m in busy if m.pipe in ready or m.since < late]

    def _answer(self, member: _Member[Job]) -> tuple[str, bool]:
        """What is wrong with the job, and whether its process still works."""
        if not member.pipe.poll():
            return _HUNG.format(self._patience_s), False
        try:
            said: tuple[str, bool] = member.pipe.recv()
        except (EOFError, OSError):
            member.process.join(1.0)
            return _DIED.format(member.process.exitcode), False
        return said

    def _give(self, member: _Member[Job], left: Iterable[int], jobs: Sequence[Job]) -> None:
        member.number = next(iter(left), None)
        member.since = time.monotonic()
        if member.number is not None:
            try:
                member.pipe.send(jobs[member.number])
            except OSError:
                pass  # it is dead, which is what its pipe says next

    def _begun(self) -> _Member[Job]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_member, args=(there, self._do), daemon=True)
        process.start()
        there.close()
        return _Member(process, here)

    def _end(self, member: _Member[Job]) -> None:
        self._members.remove(member)
        member.process.kill()  # nothing of a member's is worth waiting for
        member.process.join()
        member.pipe.close()


def _member(pipe: Connection, do: Callable[[Job], str]) -> None:
    """In the process: jobs until there are none, or one costs the device."""
    works = True
    while works:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            said = do(job)
        except LostDevice as lost:
            said, works = str(lost), False
        pipe.send((said, works))
