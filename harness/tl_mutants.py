"""Owns `attnbench tl mutants`: how many planted defects the checker finds, and whom it blames wrongly."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from harness.commands import guarded
from harness.progress import Bar, output
from harness.tl.mutation_figures import markdown, measure
from tasks import discover, oracle
from tasks.spec import Task, Workload

_QUICK = 2  # mutants of each kind


def mutants(quick: bool, as_json: bool) -> None:
    """Print the table of figures, then every defect that was missed and every false alarm."""
    tasks = guarded(discover)
    if not quick:
        print("attnbench: this takes minutes; --quick takes two of each kind", file=sys.stderr)
    torch.set_num_threads(1)  # the programs are small
    with Bar(output(as_json=True), "mutants") as bar:
        figures = measure(tasks, _expected, per_kind=_QUICK if quick else None, moved=bar.moved)
    missed = [f"{v.program}:{v.mutant.line}: {v.mutant.kind}: {v.mutant.title}" for v in figures.missed]
    if as_json:
        record = {
            "kinds": [asdict(row) for row in figures.kinds],
            "total": asdict(figures.total),
            "missed": missed,
            "programs": figures.programs,
            "false_alarms": list(figures.false_alarms),
        }
        print(json.dumps(record, indent=1))
        return
    print(markdown(figures), end="")
    for title, lines in (("missed", missed), ("false alarms", figures.false_alarms)):
        for line in lines:
            print(f"{title}: {line}")


def _expected(task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> Any:
    return oracle.expected(task, workload, inputs, torch.float64)
