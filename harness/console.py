"""Owns what a person sees while a run goes on: a line for each result, and the bar of its progress."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from harness.experiment import Cell
from harness.progress import Bar
from harness.records import Result
from harness.verdicts import Verdict

_STYLE = {Verdict.OK: "green", Verdict.PROVEN: "green", Verdict.SKIPPED: "dim"}
NAME_WIDTH = 18


class Watcher:
    """An observer of the pipeline that shows what happens. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(console, "starting workers")
        self._done = 0
        self._total = 0

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def begin(self, trials: int, done: int) -> None:
        """Set the length of the bar."""
        self._total, self._done = trials, done
        self._bar.begin(trials, done)
        if done:
            self._bar.console.print(
                f"{done} of {trials} results are recorded already; going on with the rest"
            )

    def cell(self, cell: Cell) -> None:
        """Name the cell on the bar."""
        self._bar.at(f"{cell.task.name} {cell.workload.key}")

    def recorded(self, result: Result) -> None:
        """One line a result."""
        self._done += 1
        live = self._bar.live
        style = _STYLE.get(result.verdict, "red")
        name = escape(result.candidate.name)
        at = "" if live else f"\\[{self._done}/{self._total}] "
        line = f"{at}{result.task} {result.workload.key}  {name:<{NAME_WIDTH}} [{style}]{result.verdict}[/] "
        if live:
            self._bar.console.print(line + _told(result), highlight=False, overflow="ellipsis", no_wrap=True)
        else:
            self._bar.console.print(line + _told(result), highlight=False, soft_wrap=True)
        self._bar.moved(self._done, self._total)


def _told(result: Result) -> str:
    measured = result.measurement
    if measured is None or result.verdict is not Verdict.OK:
        return escape(result.reason)
    rate = (
        f"{measured.tflops:7.1f} TFLOP/s" if measured.tflops >= 1 else f"{measured.tflops * 1e3:7.1f} GFLOP/s"
    )
    ratio = measured.ratio
    return f"{measured.device_time.median_ms:9.4f} ms {rate}  {ratio.median:.3f}x {ratio.anchor}"
