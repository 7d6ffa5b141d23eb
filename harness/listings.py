"""Owns what `attnbench doctor` and `attnbench tasks` print, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.commands import guarded
from harness.doctor import findings
from tasks import Task, Workload, discover, find


def doctor(as_json: bool) -> None:
    """Print the diagnosis of this machine."""
    rows = findings()
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "state", "what to do"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = "[green]yes[/]" if row.usable else "[yellow]no[/]"
        table.add_row(mark, row.what, escape(row.state), escape(row.advice))
    Console(highlight=False).print(table)


def list_tasks(folders: Sequence[Path], as_json: bool = False) -> None:
    """Print the tasks with their sets."""
    known = guarded(lambda: discover(*folders)).values()
    if as_json:
        print(json.dumps([_brief(task) for task in known], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("task", "title", "workload sets"):
        table.add_column(column)
    for task in known:
        sets = ", ".join(f"{name} ({len(w)})" for name, w in task.workloads.items())
        table.add_row(f"[bold]{task.name}[/]", task.title, sets)
    Console(highlight=False).print(table)


def _brief(task: Task) -> dict[str, object]:
    sets = {name: len(workloads) for name, workloads in task.workloads.items()}
    return {"name": task.name, "title": task.title, "workloads": sets}


def show_task(name: str, folders: Sequence[Path], as_json: bool = False) -> None:
    """Print one task."""
    task = guarded(lambda: find(name, *folders))
    if as_json:
        print(json.dumps(_whole(task), indent=1))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{task.name}[/]  {escape(task.title)}\n\n{escape(task.description)}\n")
    console.print(f"  {escape(task.math)}\n\n{escape(task.signature)}\n", soft_wrap=True)
    for tensor in task.tensors:
        console.print(f"  {tensor.name:<4} ({', '.join(tensor.axes)})  {tensor.role}  {escape(tensor.doc)}")
    for parameter in task.parameters:
        console.print(f"  {parameter.name}: {parameter.type}  {escape(parameter.doc)}")
    for set_name, workloads in task.workloads.items():
        table = Table(title=f"\n{set_name}", box=None, pad_edge=False, title_justify="left")
        for column in ("workload", "GFLOP", "MB", "label"):
            table.add_column(column, justify="left" if column in ("workload", "label") else "right")
        for w in workloads:
            table.add_row(w.key, f"{task.flops(w) / 1e9:.2f}", f"{task.bytes(w) / 1e6:.1f}", escape(w.label))
        console.print(table)


def _whole(task: Task) -> dict[str, object]:
    return {
        "name": task.name,
        "title": task.title,
        "description": task.description,
        "math": task.math,
        "signature": task.signature,
        "tensors": [asdict(tensor) for tensor in task.tensors],
        "parameters": [asdict(parameter) for parameter in task.parameters],
        "workloads": {name: [_shape(task, w) for w in found] for name, found in task.workloads.items()},
    }


def _shape(task: Task, w: Workload) -> dict[str, object]:
    """A workload with what it costs; `flops` counts visible pairs only, `bytes` every tensor once."""
    sizes = {
        name: getattr(w, name)
        for name in ("batch", "heads", "kv_heads", "seq_q", "seq_k", "dim", "dim_v", "dtype")
    }
    told = {"scale": w.softmax_scale, "parameters": w.params, "label": w.label}
    return {"key": w.key, **sizes, **told, "flops": task.flops(w), "bytes": task.bytes(w)}
