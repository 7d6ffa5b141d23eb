"""Owns finding task files: the suite's own and those of a user's folder (`--tasks DIR`)."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from tasks.spec import Task, TaskError, Workload

_OWN = Path(__file__).parent
_NOT_TASKS = {"__init__", "spec", "oracle", "masks", "registry", "grids"}


def discover(*folders: Path) -> dict[str, Task]:
    """All tasks by name: the suite, then each folder; a later one may not reuse a name."""
    found: dict[str, Task] = {}
    for folder in (_OWN, *folders):
        for task in _load_folder(folder.resolve()):
            if task.name in found:
                raise TaskError(f"two task files define {task.name!r}; rename the one in {folder}")
            found[task.name] = task
    return found


def find(name: str, *folders: Path) -> Task:
    """One task by name; raises TaskError that names the nearest ones."""
    known = discover(*folders)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)
    raise TaskError(f"unknown task {name!r}; did you mean {', '.join(near)}? See: attnbench tasks")


@lru_cache
def _load_folder(folder: Path) -> tuple[Task, ...]:
    if not folder.is_dir():
        what = "is a file; give the folder that it is in" if folder.is_file() else "does not exist"
        raise TaskError(f"task folder {folder} {what}")
    paths = sorted(p for p in folder.glob("*.py") if p.stem not in _NOT_TASKS and p.stem[0] != "_")
    return tuple(_load(path) for path in paths)


def _load(path: Path) -> Task:
    if path.parent == _OWN:
        name = f"tasks.{path.stem}"
    else:  # two folders may hold files of one name
        folder = hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]
        name = f"attnbench_user_tasks_{folder}.{path.stem}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise TaskError(f"{path} cannot be imported as a task file; is it a readable .py file?")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise TaskError(
                f"{path} failed to import, correct it: {type(error).__name__}: {error}"
            ) from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise TaskError(f"{path} defines no task; add TASK = Task(...), see docs/tasks.md")
    try:
        _check(task)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    return replace(task, source=path.read_text(encoding="utf-8"))


def _check(task: Task) -> None:
    """Mistakes that would surface late or not at all; raises TaskError with the fix."""
    if not task.name.isidentifier():
        raise TaskError(f"the name {task.name!r} must be letters, digits and underscores")
    if not task.workloads.get("smoke"):
        raise TaskError('workloads needs a non-empty set "smoke": a few small fp32 shapes')
    if not task.outputs or task.outputs[0].name != "out":
        raise TaskError('the first output among tensors must be TensorSpec("out", ..., "output")')
    declared = {p.name for p in task.parameters}
    for group, workloads in task.workloads.items():
        keys = [w.key for w in workloads]
        for w in workloads:
            if w.task != task.name:
                raise TaskError(
                    f"workload {w.key} in set {group!r} is of task {w.task!r}; write {task.name!r}"
                )
            if w.params.keys() != declared:
                raise TaskError(
                    f"workload {w.key} in set {group!r} gives parameters {sorted(w.params)}, the task "
                    f"declares {sorted(declared)}; make them the same"
                )
            if keys.count(w.key) > 1:
                raise TaskError(f"set {group!r} holds workload {w.key} twice; drop one")
    if task.oracle is None:
        _check_pairs(task, task.workloads["smoke"][0])


def _check_pairs(task: Task, workload: Workload) -> None:
    for seq_q, seq_k in ((5, 9), (9, 5)):
        w = workload.with_(seq_q=seq_q, seq_k=seq_k)
        i, j = torch.arange(seq_q)[:, None], torch.arange(seq_k)[None, :]
        pairs = seq_q * seq_k if task.mask is None else int(task.mask(i, j, w).expand(seq_q, seq_k).sum())
        if task.visible_pairs(w) != pairs:
            raise TaskError(
                f"visible_pairs counts {task.visible_pairs(w)} pairs at {seq_q} x {seq_k} where the mask "
                f"allows {pairs}; FLOPs would be wrong: give the count that belongs to the mask"
            )
