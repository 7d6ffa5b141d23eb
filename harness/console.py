"""Owns what a person sees while a run goes on: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

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

from harness.experiment import Cell
from harness.records import Result
from harness.verdicts import Verdict

_STYLE = {Verdict.OK: "green", Verdict.PROVEN: "green", Verdict.SKIPPED: "dim"}
NAME_WIDTH = 18


class Watcher:
    """An observer of the pipeline that shows what happens. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._bar = self._progress.add_task("starting workers", total=None)
        self._done = 0
        self._total = 0
        self._cell = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, trials: int, done: int) -> None:
        """Set the length of the bar."""
        self._total, self._done = trials, done
        self._progress.update(self._bar, total=trials, completed=done)
        if done:
            self.console.print(f"{done} of {trials} results are recorded already; going on with the rest")

    def cell(self, cell: Cell) -> None:
        """Name the cell on the bar."""
        self._cell = f"{cell.task.name} {cell.workload.key}"
        self._progress.update(self._bar, description=self._cell)

    def recorded(self, result: Result) -> None:
        """One line a result."""
        self._done += 1
        self._progress.update(self._bar, completed=self._done)
        style = _STYLE.get(result.verdict, "red")
        name = result.candidate.name
        at = "" if self._live else f"[{self._done}/{self._total}] "
        line = f"{at}{result.task} {result.workload.key}  {name:<{NAME_WIDTH}} [{style}]{result.verdict}[/] "
        if self._live:
            self.console.print(line + _told(result), highlight=False, overflow="ellipsis", no_wrap=True)
        else:
            self.console.print(line + _told(result), highlight=False, soft_wrap=True)


def _told(result: Result) -> str:
    measured = result.measurement
    if measured is None or result.verdict is not Verdict.OK:
        return escape(result.reason)
    rate = (
        f"{measured.tflops:7.1f} TFLOP/s" if measured.tflops >= 1 else f"{measured.tflops * 1e3:7.1f} GFLOP/s"
    )
    ratio = measured.ratio
    return f"{measured.device_time.median_ms:9.4f} ms {rate}  {ratio.median:.3f}x {ratio.anchor}"
