"""Owns `attnbench tl space`: the choices that a program leaves to a tuner, and which of them fit a target."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape

from harness.exits import EXIT_USAGE, fail
from harness.tl.diagnostics import CODES
from harness.tl.problem import all_workloads
from harness.tl.space import Pruned, pruned
from harness.tl_commands import checked, dtype_of, program_of, target_of
from harness.tl_text import stdout

_SHOWN = 3  # choices left out, of each reason


def show(
    path: Path | None,
    task_name: str | None,
    folders: Sequence[Path],
    target_name: str,
    dtype: str,
    as_json: bool,
) -> None:
    """For each pair of head dimensions of the task: how many choices there are, fit, and do not, and why."""
    target = target_of(target_name)
    if target is None or not target.is_gpu:
        fail(f"{target_name} has no shared memory to divide; give a GPU, such as h100", EXIT_USAGE)
    source, task = program_of(path, task_name, folders)
    program = checked(source, task, None, as_json)
    dims = sorted({(w.dim, w.dim_v) for w in all_workloads(task)})
    spaces = {pair: pruned(program, task, target, dtype=dtype_of(dtype), dims=pair) for pair in dims}
    if as_json:
        print(json.dumps([_record(pair, found) for pair, found in spaces.items()], indent=1))
        return
    console = stdout()
    keys = next((_sets(found) for found in spaces.values()), "")
    console.print(f"{escape(source.name)} on {target.title}, {dtype}: {escape(keys)}")
    for (dim, dim_v), found in spaces.items():
        total = len(found.kept) + len(found.dropped)
        console.print(
            f"\nhead dimensions {dim} and {dim_v}: {total} choices, {len(found.kept)} fit, "
            f"{len(found.dropped)} left out"
        )
        for code, count in Counter(reason.code for _, reason in found.dropped).items():
            console.print(f"  {count} by {code}, {CODES[code].title}")
            for choice, reason in [d for d in found.dropped if d[1].code == code][:_SHOWN]:
                console.print(f"    {_words(choice)}: {escape(reason.message)}")
            if count > _SHOWN:
                console.print(f"    and {count - _SHOWN} more")


def _sets(found: Pruned) -> str:
    """The choices in their shortest form, as the program could write them: `BM in {64, 128}, stages 2`."""
    everything = [*found.kept, *(choice for choice, _ in found.dropped)]
    parts = []
    for key in everything[0] if everything else ():
        values = [str(v) for v in sorted({choice[key] for choice in everything})]
        parts.append(f"{key} in {{{', '.join(values)}}}" if len(values) > 1 else f"{key} = {values[0]}")
    return ", ".join(parts)


def _words(choice: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in choice.items())


def _record(dims: tuple[int, int], found: Pruned) -> dict[str, object]:
    return {
        "dim": dims[0],
        "dim_v": dims[1],
        "kept": list(found.kept),
        "dropped": [{"choice": choice, "code": f.code, "why": f.message} for choice, f in found.dropped],
    }
