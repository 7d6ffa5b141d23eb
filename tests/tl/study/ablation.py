"""Owns the ablation: on each cell the chosen schedule, and each feature of it off in turn, beside cuDNN and flash-attn 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.tl.lower.gluon_choices import complete
from tests.tl.study.cells import AGAIN, BASE, HUMANS, Cell, cell, chosen, settings, variants
from tests.tl.study.device import Choice, Device
from tests.tl.study.figures import middle, ratio
from tests.tl.study.record import Deadline, Entry, Record

ROUNDS = 40


def ablation(
    device: Device, record: Record, names: Sequence[str], deadline: Deadline, dtype: str = "fp16",
    tuned: Path | None = None, extra: Sequence[str] = (), features: bool = True, rounds: int = ROUNDS,
) -> None:  # fmt: skip
    """Every cell that the record lacks, until the deadline; `extra` are further choices in words.

    Without `features` the chosen schedule alone runs beside the human baselines.
    """
    left = [cell(name, dtype) for name in names if f"{name} {dtype}" not in record.cells]
    for task in dict.fromkeys(c.task.name for c in left):
        mine = [c for c in left if c.task.name == task]
        asked = {c.name: _asked(c, tuned, extra, features) for c in mine}
        spaces: dict[tuple[int, int], list[Choice]] = {}
        for c in mine:
            spaces.setdefault(c.dims, []).extend(asked[c.name][0].values())
        with device.bench(mine[0].task, mine[0].program, spaces) as bench:
            bench.ready((c.workload, choice) for c in mine for choice in asked[c.name][0].values())
            for c in mine:
                if deadline.over:
                    print(f"{c.name}: no time left")
                    continue
                choices, refused = asked[c.name]
                problems = {
                    n: why for n, choice in choices.items() if (why := bench.wrong(c.workload, choice))
                }
                contenders: dict[str, Choice | str] = {n: v for n, v in choices.items() if n not in problems}
                if BASE in contenders:
                    contenders[AGAIN] = choices[BASE]
                contenders |= {human: human for human in HUMANS}
                samples = bench.samples_ms(c.workload, contenders, rounds)
                entry = _entry(c, choices, refused | problems, samples)
                record.put(f"{c.name} {dtype}", entry)
                print(_line(c.name, entry), flush=True)


def _asked(
    c: Cell, tuned: Path | None, extra: Sequence[str], features: bool
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    base = chosen(c, tuned)
    found, left = variants(c, base) if features else ({BASE: base}, {})
    for text in extra:
        found[text] = complete(c.program, settings(text, base))
    return found, left


def _entry(
    c: Cell,
    choices: Mapping[str, Mapping[str, int]],
    problems: Mapping[str, str],
    samples: Mapping[str, Sequence[float]],
) -> Entry:
    return {
        "flops": c.task.flops(c.workload),
        "choices": {n: dict(choice) for n, choice in choices.items()},
        "problems": dict(problems),
        "samples_ms": {n: [round(t, 5) for t in times] for n, times in samples.items()},
    }


def _line(name: str, entry: Entry) -> str:
    times = entry["samples_ms"]
    if BASE not in times:
        return f"{name:20} {entry['problems'].get(BASE, 'did not run')}"
    best = min((n for n in times if n not in HUMANS), key=lambda n: middle(times[n]))
    humans = ", ".join(f"{h} {ratio(times[h], times[BASE]):.3f}" for h in HUMANS if h in times)
    return (
        f"{name:20} {entry['flops'] / middle(times[BASE]) / 1e9:6.0f} TFLOP/s; over {humans or 'nobody'}; "
        f"fastest: {best} {ratio(times[BASE], times[best]):.3f}; {len(entry['problems'])} not run"
    )
