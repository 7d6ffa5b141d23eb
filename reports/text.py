"""Owns how figures and names are written: the same everywhere, units named, nothing blank."""

from __future__ import annotations

from collections.abc import Iterable

from harness.records import Measurement, Result, WorkloadRecord
from harness.verdicts import Verdict
from reports.dataset import Cell, Row
from reports.figures import Estimate

ABSENT = "not tried"


def unit(target: str) -> str:
    """Throughput unit of a target: a CPU is read in GFLOP/s."""
    return "GFLOP/s" if target == "cpu" else "TFLOP/s"


def in_unit(tflops: float, target: str) -> float:
    return tflops * 1000 if target == "cpu" else tflops


def rate(tflops: float, target: str) -> str:
    """Throughput with one decimal where it is worth one, without the unit."""
    value = in_unit(tflops, target)
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def times(value: float) -> str:
    """A speedup: '1.052x'; three significant figures below 0.1."""
    return f"{value:.3f}x" if value >= 0.1 else f"{value:.3g}x"


def with_interval(e: Estimate) -> str:
    """'0.846x [0.835, 0.858]', with a fourth digit where the interval would vanish without."""
    digits = 3 if e.high - e.low >= 0.003 else 4
    return f"{e.median:.{digits}f}x [{e.low:.{digits}f}, {e.high:.{digits}f}]"


def plus_minus(e: Estimate) -> str:
    """Narrow form: the wider side of the interval, relative: '0.752 ±0.11%'."""
    half = max(e.high / e.median - 1, 1 - e.low / e.median)
    return f"{e.median:.3f} ±{100 * half:.{2 if half < 0.0995 else 1}f}%"


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def milliseconds(value: float) -> str:
    return f"{value:.4g} ms" if value >= 1 else f"{1000 * value:.4g} us"


def seconds(value: float) -> str:
    """'1 h 05 min', '3 min 20 s' or '12.3 s'."""
    if value >= 3600:
        hours, rest = divmod(round(value / 60), 60)
        return f"{hours} h {rest:02d} min"
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.1f} s"


def length(n: int) -> str:
    """1024 -> '1k'; lengths that are no multiple of 1024 in full."""
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n)


def lengths(w: WorkloadRecord) -> str:
    return length(w.seq_k) if w.seq_q == w.seq_k else f"{length(w.seq_q)} x {length(w.seq_k)}"


def family(w: WorkloadRecord) -> str:
    """What workloads of one panel share: '16 heads, d128, causal, fp16', with the model's name if any."""
    heads = f"{w.heads} heads" if w.heads == w.kv_heads else f"{w.heads}/{w.kv_heads} heads"
    dim = f"d{w.dim}" if w.dim == w.dim_v else f"d{w.dim}/{w.dim_v}"
    extra = [f"{name} {value:g}" for name, value in sorted(w.parameters.items())]
    mask = ["causal"] if w.causal else []
    label = [w.label] if w.label else []
    return ", ".join([*label, heads, dim, *mask, *extra, w.dtype])


def verdict(row: Row) -> str:
    """What a cell of a table says where there is no figure."""
    return row.result.verdict.value


def outcome(cell: Cell, contender: str) -> str:
    """The rate of a contender in a cell, or the word for why there is none."""
    row = cell.row(contender)
    if row is None:
        return ABSENT
    return rate(row.measured.tflops, cell.target) if row.measured else verdict(row)


def described(result: Result) -> str:
    """One line about how a measured result was timed; empty if it was not."""
    m = result.measurement
    if m is None:
        return ""
    captured = ", CUDA graph" if m.captured else ""
    return f"{m.clock.replace('_', ' ')}{captured}, {m.device_time.samples} samples{_caveat(result, m)}"


def _caveat(result: Result, m: Measurement) -> str:
    if result.verdict is not Verdict.OK:
        return f"; not counted: {result.verdict}"
    return "; screened: few samples, far from the front" if m.ratio.stopped == "screened" else ""


def number(n: int, noun: str) -> str:
    """'1 cell', '3 cells'."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in ascending order, runs of them as ranges: '1-3, 7'."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs)


def minutes(seconds: float, at_least: bool = False) -> str:
    """Minutes with one decimal, without the unit: '12.3', or 'at least 12.3'."""
    return f"{'at least ' if at_least else ''}{seconds / 60:.1f}"


def tokens(count: float, estimated: bool) -> str:
    """'12,345'; '~12,345' where some of them were not reported but estimated."""
    return f"{'~' if estimated else ''}{count:,.0f}"


def usd(value: float, *, unpriced: int, of: int) -> str:
    """Dollars without the sign: 'at least' where some of `of` trials have no price, words where none has."""
    if unpriced >= of:
        return "no price known"
    said = f"{value:.2f}" if value >= 1 or value == 0 else f"{value:.2g}"
    return f"at least {said}" if unpriced else said
