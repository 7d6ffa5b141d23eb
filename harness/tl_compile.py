"""Owns what `attnbench tl lower --compile` shows: a compiled program on every architecture, without a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness.exits import EXIT_FOUND, EXIT_MACHINE, EXIT_USAGE, fail
from harness.presses import described, machine_arch
from harness.targets import TARGETS, Target
from harness.tl.lower.lowered import Lowered
from tasks import Task
from tasks.spec import DTYPES, Workload

ON = ("t4", "a100", "l40s", "h100")  # targets whose architectures CUDA is compiled for


def show(lowered: Lowered, task: Task, workload: Workload, target: Target | None, as_json: bool) -> None:
    """Compile and print a line a kernel and architecture; ends the command where that is refused."""
    if lowered.backend == "cuda":
        rows = _cuda(lowered, task, workload, target)
    elif lowered.backend == "gluon":
        rows = _gluon(lowered, task, workload)
    else:
        rows = _triton(lowered, task, workload, target)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    names = [name for name in rows[0] if name not in ("copies", "limited_by")]
    for name in names:
        right = isinstance(rows[0][name], int | float)
        table.add_column(name.replace("_", " "), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in names))
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
    console.print(f"head dimensions {workload.dim} and {workload.dim_v}, {workload.dtype}", style="dim")


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)


def _triton(lowered: Lowered, task: Task, workload: Workload, target: Target | None) -> list[dict[str, Any]]:
    try:
        from harness.tl.lower.triton_aot import CompileError, architectures, compile_for

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Triton's own, about its next release
            rows = compile_for(lowered, task, workload, architectures(target or TARGETS["h100"]))
    except ImportError as error:
        fail(f"--compile needs Triton, which this machine lacks ({error})", EXIT_MACHINE)
    except CompileError as error:
        fail(f"the Triton compiler refuses {lowered.name}: {error}", EXIT_FOUND)
    return [{k: v for k, v in asdict(row).items() if k != "ptx"} for row in rows]


def _gluon(lowered: Lowered, task: Task, workload: Workload) -> list[dict[str, Any]]:
    """For the one architecture that there is."""
    try:
        from harness.tl.lower.gluon_aot import compile_for_hopper
        from harness.tl.lower.triton_aot import CompileError

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = compile_for_hopper(lowered, task, workload)
    except ImportError as error:
        fail(f"--compile needs Triton 3.6 or later, which this machine lacks ({error})", EXIT_MACHINE)
    except CompileError as error:
        fail(f"the Gluon compiler refuses {lowered.name}: {error}", EXIT_FOUND)
    return [{k: v for k, v in asdict(row).items() if k not in ("ptx", "cubin")} for row in rows]


def _cuda(lowered: Lowered, task: Task, workload: Workload, target: Target | None) -> list[dict[str, Any]]:
    """For the target, or for one of each architecture."""
    from harness.build.launches import planning
    from harness.build.nvrtc import CompileError, CompilerMissing
    from harness.build.resources import first_without_spills

    tensors = {
        t.name: torch.empty(t.shape(workload), dtype=DTYPES[t.dtype_of(workload)], device="meta")
        for t in task.tensors
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        attention = _attention(lowered.write(Path(folder) / "candidate"))
        for goal in [target] if target is not None else [TARGETS[name] for name in ON]:
            if not goal.supports(workload.dtype):
                continue
            try:
                with planning(machine_arch(goal)) as plans:
                    attention(**tensors, **task.scalars(workload))
            except TypeError as error:  # what the candidate says of a dtype that it does not take
                fail(f"{lowered.name}: {error}; choose --dtype fp16 or bf16", EXIT_USAGE)
            for plan in plans:
                try:
                    made = first_without_spills(plan.recipes, Path(folder) / "cache")
                except CompilerMissing as error:
                    fail(str(error), EXIT_MACHINE)
                except CompileError as error:
                    fail(f"the CUDA compiler refuses {lowered.name}: {error}", EXIT_FOUND)
                rows += [k.model_dump(mode="json", exclude={"name"}) for k in described(plan, made)]
    if not rows:
        fail(f"no target asked for has tensor cores for {workload.dtype}; choose --dtype fp16", EXIT_USAGE)
    return rows


def _attention(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("lowered_cuda", folder / "attention.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.attention
