"""Measures compiled Hopper kernels beyond what the protocol asks; needs such a GPU.

    python -m tests.tl.hopper_study ablation --out DIR     each feature of the schedule off in turn
    python -m tests.tl.hopper_study search --out DIR       the search, and all choices, by one clock
    python -m tests.tl.hopper_study probe --out DIR        where the time goes: machine code, rounds, ncu
    python -m tests.tl.hopper_study maxima --out DIR       each way to rescale where every round's maximum grows
    python -m tests.tl.hopper_study anew --run RUN --out DIR   the programs of a run, compiled by today's compiler
    python -m tests.tl.hopper_study tables DIR             what is in there as Markdown; needs no GPU

A cell is task:length:head dimension, such as mha_causal:2k:128, of the paper's grid. A part goes on where its
file in DIR ends; every cell is on disk before the next begins.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from tests.tl.study.ablation import ablation
from tests.tl.study.anew import anew
from tests.tl.study.cells import ABLATION, GRID, SEARCHED, cell, chosen
from tests.tl.study.device import Device, Gpu
from tests.tl.study.maxima import CELLS, maxima
from tests.tl.study.probe import probe
from tests.tl.study.record import Deadline, Record
from tests.tl.study.searching import searching
from tests.tl.study.tables import tables
from tests.tl.study.weakest import weakest

PARTS = ("ablation", "search", "probe", "maxima", "anew", "once")


def main(words: Sequence[str] | None = None, device: Device | None = None) -> None:
    given = settings_of(words)
    if given.part == "tables":
        print(
            tables([json.loads(p.read_text(encoding="utf-8")) for p in sorted(given.folder.glob("*.json"))]),
            end="",
        )
        return
    device = device or Gpu()
    names = _names(given) if given.part != "anew" else []
    if given.part == "once":
        _once(device, names[0], given)
        return
    today = datetime.date.today().isoformat()
    about = device.about() | ({"run": given.run.resolve().name} if given.part == "anew" else {})
    record = Record(given.out / f"{given.part}.json", given.part, about, today)
    deadline = Deadline(given.minutes)
    if given.part == "ablation":
        extra = given.choices.split(",") if given.choices else []
        ablation(device, record, names, deadline, given.dtype, given.tuned, extra, not given.chosen_alone)
    elif given.part == "search":
        searching(device, record, names, deadline, given.dtype)
    elif given.part == "maxima":
        maxima(device, record, names, deadline, given.dtype)
    elif given.part == "anew":
        anew(device, record, given.run, deadline)
    else:
        probe(device, record, names, deadline, given.dtype, given.tuned)


def settings_of(words: Sequence[str] | None) -> argparse.Namespace:
    return _parser().parse_args(words)


def _names(given: argparse.Namespace) -> list[str]:
    if given.cells:
        return list(GRID) if given.cells == "all" else given.cells.split(",")
    if given.part == "probe":
        if given.results is None:
            raise SystemExit("probe: say which cells: --cells, or --results with results.jsonl of a run")
        return weakest(given.results, dtype=given.dtype)
    return list({"ablation": ABLATION, "search": SEARCHED, "maxima": CELLS}.get(given.part, ()))


def _once(device: Device, name: str, given: argparse.Namespace) -> None:
    """Some launches, for a profiler to look at."""
    c = cell(name, given.dtype)
    choice = chosen(c, given.tuned)
    with device.bench(c.task, c.program, {c.dims: [choice]}) as bench:
        bench.samples_ms(c.workload, {"it": choice}, 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tl.hopper_study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        part = parts.add_parser(name)
        if name == "anew":
            part.add_argument("--run", type=Path, required=True, metavar="DIR", help="with models' programs")
        else:
            part.add_argument("--cells", default="", help="separated by commas, or `all`")
            part.add_argument("--dtype", default="fp16", choices=["fp16", "bf16"])
        if name != "once":
            part.add_argument("--out", type=Path, required=True, metavar="DIR")
            part.add_argument("--minutes", type=float, default=9.0, help="no cell begins after that")
        if name not in ("search", "maxima", "anew"):
            part.add_argument("--tuned", type=Path, metavar="DIR", help="folders of `attnbench tl tune`")
        if name == "ablation":
            part.add_argument(
                "--choices", default="", help="more of them, such as consumers=2+BN=64,stages=3"
            )
            part.add_argument(
                "--chosen-alone", action="store_true", help="no feature off: beside humans only"
            )
        if name == "probe":
            part.add_argument(
                "--results", type=Path, metavar="FILE", help="of a run: its three weakest cells"
            )
    parts.add_parser("tables").add_argument("folder", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    main()
