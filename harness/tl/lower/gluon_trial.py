"""Owns whether a loop's rounds may run backwards, and whether those may be left out whose masks keep nothing.

Both hold for every online softmax, however it is spelled out, and for hardly anything else. The language's
interpreter is asked: the loop is rewritten and must give the same result on small shapes, or it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from harness.tl import ir
from harness.tl.evaluate import op
from harness.tl.interpret import InterpretError, interpret
from harness.tl.lower.gluon_view import view
from harness.tl.lower.rewrite import rewritten, with_symbols
from harness.tl.problem import TaskLike, WorkloadLike, all_workloads

_SHAPES = ((19, 37), (37, 19))
_TILE = 16
_MOST = 256  # answers that are kept
_CLOSE = 1e-4
_NEVER = ir.Op("lt", (ir.Const(1), ir.Const(0)))


@dataclass(frozen=True, slots=True)
class Freedom:
    """Of a kernel's loops: `order`: rounds may run backwards; `skip`: fully masked ones may be left out."""

    order: bool
    skip: bool


_KNOWN: dict[tuple[ir.Program, int, str], Freedom] = {}


def freedom(program: ir.Program, number: int, task: TaskLike) -> Freedom:
    """What may be done to the loops of the program's kernel of that number."""
    key = program, number, task.name
    if key not in _KNOWN:
        if len(_KNOWN) == _MOST:
            _KNOWN.clear()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the tensors are tiny
        try:
            _KNOWN[key] = _freedom(program, number, task)
        finally:
            torch.set_num_threads(threads)
    return _KNOWN[key]


def _freedom(program: ir.Program, number: int, task: TaskLike) -> Freedom:
    for narrow in (True, False):  # slices at fixed columns need the task's own head dimensions
        trial = _Trial(program, number, task, [(w, _inputs(task, w)) for w in _workloads(task, narrow)])
        expected = trial.results(lambda n: n)
        if expected:
            return Freedom(
                _same(expected, trial.results(_backwards)), _same(expected, trial.results(_with_dead_rounds))
            )
    return Freedom(False, False)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A program with a kernel to rewrite, and what it runs on."""

    program: ir.Program
    number: int
    task: TaskLike
    runs: list[tuple[WorkloadLike, dict[str, torch.Tensor]]]

    def results(self, rewrite: Callable[[ir.Node], ir.Node]) -> list[torch.Tensor]:
        """The outputs with every statement rewritten; none where the interpreter refuses it."""
        kernels = list(self.program.kernels)
        kernel = view(kernels[self.number]).whole
        kernels[self.number] = replace(kernel, body=tuple(rewrite(n) for n in kernel.body))
        other = replace(self.program, kernels=tuple(kernels))
        tiles = {name: _TILE for name, choices in self.program.parameters if len(choices) > 1}
        try:
            found = [interpret(other, self.task, w, given, tiles) for w, given in self.runs]
        except InterpretError:
            return []
        return [t for run in found for t in run.outputs.values()]


def _same(expected: list[torch.Tensor], found: list[torch.Tensor]) -> bool:
    return bool(found) and all(
        torch.allclose(a.float(), b.float(), rtol=_CLOSE, atol=_CLOSE)
        for a, b in zip(found, expected, strict=True)
    )


def _backwards(node: ir.Node) -> ir.Node:
    match node:
        case ir.For(var=var, start=start, stop=stop):
            mirrored = op("sub", op("sub", op("add", start, stop), ir.Const(1)), ir.Sym(var))
            values = {var: mirrored}
            body = (rewritten(n, lambda t: t, lambda e: with_symbols(e, values)) for n in node.body)
            return replace(node, body=tuple(body))
    return node


def _with_dead_rounds(node: ir.Node) -> ir.Node:
    """Every round between two copies in which no mask holds anywhere."""
    match node:
        case ir.For(body=body):
            dead = tuple(replace(n, cond=_NEVER) if isinstance(n, ir.Mask) else n for n in body)
            return replace(node, body=(*dead, *body, *dead))
    return node


def _workloads(task: TaskLike, narrow: bool) -> list[WorkloadLike]:
    known = all_workloads(task)
    if not known:
        return []
    like = known[0]
    heads = 2 if like.sizes["kv_heads"] < like.sizes["heads"] else 1
    small: dict[str, object] = {"batch": 1, "heads": heads, "kv_heads": 1, "dtype": "fp32"}
    if narrow:
        small |= {"dim": 24 if like.sizes["dim"] > like.sizes["dim_v"] else 16, "dim_v": 16}
    if like.params:
        small["parameters"] = tuple(
            (name, 9 if isinstance(value, int) else value) for name, value in like.params.items()
        )
    return [like.with_(**small, seq_q=q, seq_k=k) for q, k in _SHAPES]


def _inputs(task: TaskLike, w: WorkloadLike) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        t.name: torch.randn([w.sizes[a] for a in t.axes], generator=generator)
        for t in task.tensors
        if t.role == "input"
    }
