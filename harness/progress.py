"""Owns how long work shows how far it is: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S = 30.0  # between two plain lines: a log of an hour has 120 of them


def output(as_json: bool = False) -> Console:
    """Where a command tells people what it does: standard output, unless a script reads JSON there."""
    return Console(highlight=False, stderr=as_json)


def left_text(done: int, total: int, elapsed_s: float) -> str:
    """The time left at the pace so far, in words; empty where nothing is done or nothing is left."""
    if done <= 0 or total <= done:
        return ""
    left = elapsed_s / done * (total - done)
    if left < 90:
        return f"about {max(1, round(left))} s left"
    return f"about {round(left / 60)} min left" if left < 5400 else f"about {left / 3600:.1f} h left"


class Bar:
    """Counted work: a bar on a terminal, elsewhere a line now and then. Use as a context manager.

    Work that ends before the first line is due prints none.
    """

    def __init__(self, console: Console, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.live = console.is_terminal
        self._what, self._clock = what, clock
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
            transient=True,
        )
        self._task = self._progress.add_task(escape(what), total=None)
        self._began = self._said = clock()
        self._first = 0  # done before this began

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, total: int, done: int = 0) -> None:
        """Set the length; what is done already says nothing of the pace."""
        self._first, self._began = done, self._clock()
        self._progress.reset(self._task, total=total, completed=done)

    def at(self, what: str) -> None:
        """Name what is being done."""
        self._progress.update(self._task, description=escape(what))

    def moved(self, done: int, total: int) -> None:
        """So much is done."""
        self._progress.update(self._task, completed=done, total=total)
        now = self._clock()
        if self.live or done >= total or now - self._said < PLAIN_EVERY_S:
            return
        self._said = now
        left = left_text(done - self._first, total - self._first, now - self._began)
        self.console.print(f"{escape(self._what)}: {done} of {total}{left and f', {left}'}", soft_wrap=True)
