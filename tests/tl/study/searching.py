"""Owns the search beside the exhaustive timing of the same space by the same clock, and both results side by side.

The cells of a task are searched together, as `attnbench tl tune` does it: those nearby begin with each other's best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.targets import find_target
from harness.tl.lower.gluon_reach import length
from harness.tl.search import Search
from harness.tuning_search import default_choices, hopper_choices, search_choices
from tasks import Workload
from tests.tl.study.cells import BASE, Cell, cell, chosen
from tests.tl.study.device import Bench, Choice, Device
from tests.tl.study.figures import ratio
from tests.tl.study.record import Deadline, Entry, Record

ROUNDS = 60
FOUND, BEST = "found by the search", "best of all"


def searching(
    device: Device, record: Record, names: Sequence[str], deadline: Deadline, dtype: str = "fp16",
    rounds: int = ROUNDS,
) -> None:  # fmt: skip
    """Searches every task's cells that the record lacks, then times all choices of each, until the deadline."""
    cells = [cell(name, dtype) for name in names]
    for task in dict.fromkeys(c.task.name for c in cells):
        mine = [c for c in cells if c.task.name == task]
        if all("all_ms" in record.cells.get(_key(c), {}) for c in mine):
            continue
        target, first = find_target("h100"), mine[0]
        every = {
            (w.dim, w.dim_v): None for w in first.task.workload_set("paper")
        }  # as tl tune: one text, one cache
        spaces = {dims: hopper_choices(first.program, first.task, target, dims) for dims in every}
        with device.bench(first.task, first.program, spaces) as bench:
            if not all(_key(c) in record.cells for c in mine):
                for c, found in _searched(bench, mine, spaces):
                    record.put(_key(c), _entry(c, found))
            for c in mine:
                entry = record.cells[_key(c)]
                if "all_ms" in entry:
                    continue
                if deadline.over:
                    print(f"{c.name}: no time left")
                    continue
                record.put(_key(c), {**entry, **_exhausted(bench, c, spaces[c.dims], entry["best"], rounds)})
                print(_line(c.name, record.cells[_key(c)]), flush=True)


def _key(c: Cell) -> str:
    return f"{c.name} {c.workload.dtype}"


def _searched(
    bench: Bench, cells: Sequence[Cell], spaces: Mapping[tuple[int, int], Sequence[dict[str, int]]]
) -> list[tuple[Cell, Search]]:
    def soon(w: Workload, likely: list[dict[str, int]]) -> None:
        bench.ready((w, choice) for choice in likely)

    found = search_choices(
        [c.workload for c in cells], spaces, bench.time_ms, bench.together_ms, soon,
        {c.workload.key: length(c.program, c.workload) for c in cells},
        default_choices(cells[0].program, [c.workload for c in cells]),
    )  # fmt: skip
    return [(c, found[c.workload.key]) for c in cells]


def _entry(c: Cell, found: Search) -> Entry:
    return {
        "size": found.size,
        "allowed": found.budget,
        "evaluations": found.evaluations,
        "seconds": round(found.seconds, 2),
        "best": found.best,
        "trail": [{"choice": s.choice, "ms": s.time_ms, "why": s.why.value} for s in found.trail],
        "default": chosen(c),
    }


def _exhausted(
    bench: Bench, c: Cell, space: Sequence[dict[str, int]], found: Choice | None, rounds: int
) -> Entry:
    """Every choice timed as a search times it, the three fastest longer; then the best beside what was found."""
    bench.ready((c.workload, choice) for choice in space)
    times = [bench.time_ms(c.workload, choice) for choice in space]
    leading = [n for _, n in sorted((t, n) for n, t in enumerate(times) if t is not None)[:3]]
    again = bench.together_ms(c.workload, [space[n] for n in leading])
    finals = sorted((t, n) for t, n in zip(again, leading, strict=True) if t is not None)
    contenders: dict[str, Choice | str] = {BASE: chosen(c)}
    contenders |= {FOUND: found} if found is not None else {}
    contenders |= {BEST: space[finals[0][1]]} if finals else {}
    samples = bench.samples_ms(c.workload, contenders, rounds)
    return {
        "all_ms": times,
        "best_of_all": space[finals[0][1]] if finals else None,
        "samples_ms": {n: [round(t, 5) for t in taken] for n, taken in samples.items()},
    }


def gap(entry: Mapping[str, Any]) -> float | None:
    """How much slower than the exhaustive best what the search found is, side by side; 0.01 is 1 %."""
    samples = entry.get("samples_ms", {})
    return ratio(samples[FOUND], samples[BEST]) - 1 if FOUND in samples and BEST in samples else None


def _line(name: str, entry: Entry) -> str:
    apart = gap(entry)
    words = "no result" if apart is None else f"{100 * apart:+.1f} % from the best of all"
    share = 100 * entry["evaluations"] / entry["size"]
    return f"{name:20} {entry['evaluations']} of {entry['size']} timed ({share:.1f} %); {words}"
