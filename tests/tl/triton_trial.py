"""What the Triton tests share: a lowered program run on a workload, beside the interpreter and the oracle."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import torch

from harness.tl import ir
from harness.tl.corpus_index import Entry, corpus
from harness.tl.interpret import interpret
from harness.tl.lower.backends import lower
from harness.tl.lower.lowered import Lowered
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from tasks import Task, Workload, find

# Largest difference from the interpreter: operands and outputs are rounded, P in another scale.
TOLERANCE = {"fp32": 2e-5, "fp16": 6e-3, "bf16": 4e-2}


def program_of(entry: Entry) -> tuple[Task, ir.Program]:
    task = find(entry.task)
    return task, resolve(parse(entry.text), task)


def program(style: str, task: str) -> tuple[Task, ir.Program]:
    return program_of(next(e for e in corpus(style) if e.task == task))


def load(lowered: Lowered, folder: Path) -> ModuleType:
    path = (
        lowered.write(folder / f"{lowered.name}_{abs(hash(lowered.files['attention.py']))}") / "attention.py"
    )
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(task: Task, w: Workload, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.shape(w), generator=generator).to(w.torch_dtype) for t in task.inputs}


def shape(task: Task, seq_q: int, seq_k: int, dtype: str, heads: int = 2, batch: int = 1) -> Workload:
    """A small workload of the task; the last hidden size of its parameters, a window that cuts."""
    like = task.workload_set("smoke")[-1]
    kv = {"mha": heads, "mha_causal": heads, "mqa_causal": 1}.get(task.name, max(1, heads // 2))
    kv = heads if like.heads == like.kv_heads and task.name != "mqa_causal" else kv
    parameters = tuple((k, 40 if k == "window" else v) for k, v in like.parameters)
    return like.with_(
        batch=batch, heads=heads, kv_heads=kv, seq_q=seq_q, seq_k=seq_k, dtype=dtype, parameters=parameters
    )


def difference(
    module: ModuleType, task: Task, prog: ir.Program, w: Workload, choice: Mapping[str, int], device: str
) -> float:
    """Largest difference between the kernel's output and the interpreter's, NaN counted as infinite."""
    given = inputs(task, w)
    out = torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype, device=device)
    module.attention(**{n: t.to(device) for n, t in given.items()}, out=out, **task.scalars(w))
    tiles = {n: choice.get(n, c) for n, c in prog.defaults.items()}
    expected = interpret(prog, task, w, given, tiles).outputs["out"]
    gap = (out.cpu().double() - expected.double()).abs().max().item()
    return gap if gap == gap else float("inf")


@dataclass(frozen=True)
class Trial:
    """A program's text, lowered with one choice and run on some workloads; picklable."""

    task: str
    text: str
    workloads: tuple[Workload, ...]
    choice: tuple[tuple[str, int], ...] = ()
    device: str = "cpu"
    backend: str = "triton"


def run_trial(trial: Trial) -> list[float]:
    """Largest differences from the interpreter, one for each workload."""
    torch.set_num_threads(1)
    task = find(trial.task)
    prog = resolve(parse(trial.text), task)
    choice = dict(trial.choice) or dict(prog.defaults)
    with tempfile.TemporaryDirectory() as folder:
        module = load(lower(prog, task, trial.backend, choice=choice), Path(folder))
        return [difference(module, task, prog, w, choice, trial.device) for w in trial.workloads]


def text_of(style: str, task: str) -> str:
    return next(e.text for e in corpus(style) if e.task == task)


@contextmanager
def workers(count: int, interpreted: bool) -> Iterator[ProcessPoolExecutor]:
    """Processes in which Triton interprets, or compiles: it decides that when it is imported."""
    was = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1" if interpreted else "0"
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if was is not None:
            os.environ["TRITON_INTERPRET"] = was


def run_all(trials: Sequence[Trial], count: int, interpreted: bool) -> list[list[float] | str]:
    """Every trial's differences, or the error's text where it raised."""
    with workers(count, interpreted) as pool:
        pending = [pool.submit(run_trial, t) for t in trials]
        out: list[list[float] | str] = []
        for job in pending:
            error = job.exception()
            out.append(f"{type(error).__name__}: {error}" if error else job.result())
        return out
