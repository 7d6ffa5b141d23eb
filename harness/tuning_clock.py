"""Owns one choice of a candidate on this GPU: compiling it, running it once, timing it by graph replays."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

import torch

from tasks import Task, Workload


def tensors_of(task: Task, w: Workload) -> dict[str, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = {
        t.name: torch.randn(t.shape(w), generator=generator, device="cuda", dtype=torch.float32)
        for t in task.tensors
    }
    return {name: t.to(w.torch_dtype) for name, t in drawn.items()}


_MODULES: dict[str, ModuleType] = {}  # candidates imported in this process, by folder


def _attention(folder: str, choice: Mapping[str, int]) -> Callable[..., None]:
    """The candidate's `attention`, with that choice for every call until the next."""
    if folder not in _MODULES:
        spec = importlib.util.spec_from_file_location(f"tuned_{len(_MODULES)}", f"{folder}/attention.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, folder)  # for what it imports from beside it
        sys.modules.pop("fallback", None)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
        _MODULES[folder] = module
    chosen = _MODULES[folder]
    chosen._choose = lambda *_: chosen.Choice(**choice)  # type: ignore[attr-defined]
    attention: Callable[..., None] = chosen.attention
    return attention


def _call(
    folder: str, task: Task, w: Workload, tensors: Mapping[str, torch.Tensor], choice: Mapping[str, int]
) -> None:
    _attention(folder, choice)(**tensors, **task.scalars(w))


def try_once(job: tuple[str, Workload, str, Mapping[str, int]]) -> str:
    """Compile and run once; what went wrong, or nothing."""
    from tasks import find

    folder, w, name, choice = job
    try:
        task = find(name)
        _call(folder, task, w, tensors_of(task, w), choice)
        torch.cuda.synchronize()
    except Exception as problem:  # the compiler's and the driver's errors are many; the text is kept
        return f"{type(problem).__name__}: {problem}"[:300]
    return ""


def time_choice(
    folder: str,
    task: Task,
    w: Workload,
    tensors: Mapping[str, torch.Tensor],
    choice: Mapping[str, int],
    ms: int,
) -> float:
    """Milliseconds of one call, the median of graph replays that take about that long together."""
    _call(folder, task, w, tensors, choice)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _call(folder, task, w, tensors, choice)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    graph.replay()
    graph.replay()
    end.record()
    end.synchronize()
    once = max(begin.elapsed_time(end) / 2, 1e-3)
    samples: list[float] = []
    for _ in range(max(3, min(200, round(ms / once)))):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end))
    return sorted(samples)[len(samples) // 2]
