"""Owns the tables that a page shows of the study's files. Pure: text from what was measured, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from tests.tl.study.anew import ANEW, RECORDED, best
from tests.tl.study.cells import AGAIN, BASE, HUMANS
from tests.tl.study.figures import middle, ratio, spread
from tests.tl.study.maxima import GROWING, OWN
from tests.tl.study.searching import FOUND, gap

Entry = Mapping[str, Any]


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: each record under what it was measured on and when."""
    made = {
        "ablation": ablation_table,
        "search": search_table,
        "probe": probe_table,
        "maxima": maxima_table,
        "anew": anew_table,
    }
    parts = []
    for record in records:
        about = ", ".join(f"{name} {value}" for name, value in record["about"].items() if name != "device")
        head = f"{record['about'].get('device', '?')}, {record['date']}; {about}."
        parts += [head, made[record["part"]](record["cells"])]
    return "\n\n".join(parts) + "\n"


def ablation_table(cells: Mapping[str, Entry]) -> str:
    """A row a choice: how much of the chosen schedule's speed it has on each cell, below 1 where the feature helps."""
    names = [name for name, entry in cells.items() if BASE in entry["samples_ms"]]
    rows = [["TFLOP/s as chosen", *(_speed(cells[n]) for n in names)]]
    for human in HUMANS:
        if any(human in cells[n]["samples_ms"] for n in names):
            rows.append([f"over {human}", *(_cell(cells[n], BASE, human) for n in names)])
    choices = dict.fromkeys(
        c for n in names for c in (*cells[n]["choices"], *cells[n]["problems"]) if c != BASE
    )
    rows += [[c, *(_cell(cells[n], c, BASE) for n in names)] for c in choices if c not in HUMANS]
    if any(AGAIN in cells[n]["samples_ms"] for n in names):
        rows.append([AGAIN, *(_cell(cells[n], AGAIN, BASE) for n in names)])
    reasons = [
        f"- {name}, {choice}: {why}" for name in cells for choice, why in cells[name]["problems"].items()
    ]
    note = ["", "Not run:", "", *reasons] if reasons else []
    return "\n".join([*_table(["", *names], rows), *note])


def _speed(entry: Entry) -> str:
    return f"{entry['flops'] / middle(entry['samples_ms'][BASE]) / 1e9:.0f}"


def _cell(entry: Entry, name: str, over: str) -> str:
    """The ratio of speeds and its spread in thousandths: 0.981 (4)."""
    samples = entry["samples_ms"]
    if name not in samples or over not in samples:
        return "-"
    return f"{ratio(samples[over], samples[name]):.3f} ({1e3 * spread(samples[over], samples[name]):.0f})"


def search_table(cells: Mapping[str, Entry]) -> str:
    """A row a cell: what the search timed, and how far what it found is from the exhaustive best; then all cells."""
    rows: list[list[str]] = []
    shares: list[float] = []
    gaps: list[float] = []
    for name, entry in cells.items():
        apart, share = gap(entry), entry["evaluations"] / entry["size"]
        done = apart is not None
        shares.append(share)
        gaps += [apart] if apart is not None else []
        samples = entry.get("samples_ms", {})
        gained = ratio(samples[BASE], samples[FOUND]) if done and BASE in samples else math.nan
        rows.append([
            name, str(entry["size"]), str(entry["evaluations"]), f"{100 * share:.1f} %", f"{entry['seconds']:.1f}",
            f"{100 * apart:+.1f} %" if apart is not None else "-",
            "-" if math.isnan(gained) else f"{gained:.3f}", _words(entry["best"]),
        ])  # fmt: skip
    head = [
        "cell",
        "choices",
        "timed",
        "share",
        "s",
        "over the best of all",
        "faster than the default",
        "found",
    ]
    within = sum(g <= 0.02 for g in gaps)
    most = f"at most {100 * max(shares):.1f} %" if shares else "nothing"
    end = f"{within} of {len(gaps)} within 2 % of the exhaustive best; {most} of a cell's choices timed."
    return "\n".join([*_table(head, rows), "", end])


def maxima_table(cells: Mapping[str, Entry]) -> str:
    """A row a cell: how much faster each rare rescaling is than one every round, on both inputs."""
    ways = list(dict.fromkeys(n for entry in cells.values() for n in entry["choices"] if n != "0"))
    head = ["cell", *(f"rescale = {n}, {inputs} inputs" for inputs in (OWN, GROWING) for n in ways)]
    rows, problems = [], []
    for name, entry in cells.items():
        samples = entry["samples_ms"]
        rows.append([name, *(_over_each_round(samples[i], n) for i in (OWN, GROWING) for n in ways)])
        problems += [f"- {name}, rescale = {n}: {why}" for n, why in entry["problems"].items()]
    return "\n".join([*_table(head, rows), *(["", "Not run:", "", *problems] if problems else [])])


def _over_each_round(samples: Mapping[str, Sequence[float]], way: str) -> str:
    if way not in samples or "0" not in samples:
        return "-"
    return f"{ratio(samples['0'], samples[way]):.3f} ({1e3 * spread(samples['0'], samples[way]):.0f})"


def anew_table(cells: Mapping[str, Entry]) -> str:
    """A row a program: geometric means over its cells, and the least, over the best human; one a cell below."""
    over: dict[str, dict[str, list[float]]] = {}
    gains: dict[str, list[str]] = {}
    problems = []
    for cell, entry in cells.items():
        samples = entry["samples_ms"]
        problems += [f"- {cell}, {name}: {why}" for name, why in entry["problems"].items()]
        for name in entry["programs"]:
            label, pair = f"{cell.split()[0]} {name}", [f"{name} {how}" for how in (RECORDED, ANEW)]
            if not (human := best(samples)) or not all(n in samples for n in pair):
                continue
            for how, n in zip((RECORDED, ANEW), pair, strict=True):
                over.setdefault(label, {}).setdefault(how, []).append(ratio(samples[human], samples[n]))
            gains.setdefault(label, []).append(f"{cell.split()[1]} {_cell(entry, pair[1], pair[0])}")
    rows = [
        [
            label,
            str(len(by[ANEW])),
            *(f"{geometric_mean(by[how]):.3f}, least {min(by[how]):.3f}" for how in (RECORDED, ANEW)),
            ", ".join(gains[label]),
        ]
        for label, by in over.items()
    ]
    head = ["program", "cells", f"{RECORDED}, over the best human", ANEW, f"{ANEW} over {RECORDED}"]
    return "\n".join([*_table(head, rows), *(["", "Not timed:", "", *problems] if problems else [])])


def probe_table(cells: Mapping[str, Entry]) -> str:
    """A table of times, one of loops, one of metrics; what a tool could not say stands below."""
    times, code, missing = [], [], []
    seen: dict[str, dict[str, str]] = {}
    for name, entry in cells.items():
        time, machine, ncu = entry["time"], entry["machine_code"], entry["ncu"]
        missing += [
            f"- {name}, {part}: {told['missing']}"
            for part, told in (("times", time), ("machine code", machine), ("ncu", ncu)) if "missing" in told
        ]  # fmt: skip
        if "tiles" in time:
            times.append([
                name, str(time["tiles"]), str(time["rounds_a_tile"]), f"{time['fixed_us_a_tile']:.2f}",
                f"{time['us_a_round']:.3f}", f"{100 * time['fixed_share']:.1f} %",
            ])  # fmt: skip
        for n, loop in enumerate(machine.get("loops", []), 1):
            words = ", ".join(f"{o} {count}" for o, count in loop["opcodes"].items())
            used = f"{machine['registers']}, {machine['spill_bytes']}, {machine['shared_bytes']}"
            code.append([name, used, str(n), str(loop["instructions"]), words])
        for metric, value in ncu.get("metrics", {}).items():
            seen.setdefault(metric, {})[name] = value
    parts = []
    if times:
        head = ["cell", "tiles", "rounds a tile", "us fixed a tile", "us a round", "share that is fixed"]
        parts.append("\n".join(_table(head, times)))
    if code:
        head = ["cell", "registers, bytes spilled, shared", "loop", "instructions", "by name"]
        parts.append("\n".join(_table(head, code)))
    if seen:
        rows = [[m, *(values.get(name, "-") for name in cells)] for m, values in sorted(seen.items())]
        parts.append("\n".join(_table(["metric", *cells], rows)))
    return "\n\n".join([*parts, *(["Missing:\n\n" + "\n".join(missing)] if missing else [])])


def _words(choice: Mapping[str, int] | None) -> str:
    return "-" if choice is None else " ".join(f"{k}={v}" for k, v in choice.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
