"""Owns the trials that show whether a program computes what its task says: shapes, tiles, values.

The shapes stay inside what the task's own workloads say: where all of them have as many heads for keys
as for queries, or equal widths, so have these. A program that is wrong elsewhere only is not wrong.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.tl import ir
from harness.tl.interpret import InterpretError, interpret
from harness.tl.problem import TaskLike, all_workloads

Expected = Callable[[Any, Any, Mapping[str, Tensor]], Mapping[str, Tensor]]

# Largest relative difference of a correct program. Measured on the corpus: 4e-5, on scores near 150
# (in f32 their own spacing is 1.5e-5); a state kept in fp16 makes more than 3e-4.
TOLERANCE = 1e-4
_EXTREME = 150.0  # exp of it leaves f32 on both sides
# (batch, kv heads, heads per kv head, seq_q, seq_k, BM, BN): equal and unequal lengths, with and without
# tails, more queries than keys, more than one of everything, tiles of either shape, a single block, and
# a diagonal that ends on the first key of a tile, where a bound that is one short loses that key.
_SHAPES = (
    (2, 2, 3, 21, 37, 8, 16),
    (1, 3, 2, 37, 21, 16, 8),
    (2, 1, 2, 32, 32, 8, 8),
    (1, 2, 2, 14, 31, 8, 8),
    (1, 2, 1, 24, 24, 32, 32),
)
_RECIPES = ("normal", "falling", "sunk", "lifted", "peaked", "rising")
_FIRST = (
    (0, "normal"),
    (1, "normal"),
    (3, "normal"),
    (0, "peaked"),
    (2, "sunk"),
    (1, "lifted"),
    (0, "rising"),
    (2, "falling"),
    (4, "normal"),
)


@dataclass(frozen=True)
class Trial:
    """One workload with inputs, a tile choice, and what must come out."""

    task: TaskLike
    workload: Any
    choice: Mapping[str, int]
    recipe: str
    seed: int
    expected: Expected

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return _inputs(self.task, self.workload, self.recipe, self.seed)

    @cached_property
    def wanted(self) -> Mapping[str, Tensor]:
        return self.expected(self.task, self.workload, self.inputs)

    def passes(self, program: ir.Program) -> bool:
        """Whether the program runs on it and gives the expected values."""
        choice = {name: self.choice.get(name, 16) for name in program.defaults}
        try:
            got = interpret(program, self.task, self.workload, self.inputs, choice).outputs
        except InterpretError:
            return False
        return all(_close(got[name], want) for name, want in self.wanted.items())


def _close(got: Tensor, want: Tensor) -> bool:
    difference = (got.to(want.dtype) - want).abs()
    return bool((difference <= TOLERANCE * (1 + want.abs())).all())  # NaN compares false


def first_trials(task: TaskLike, expected: Expected) -> tuple[Trial, ...]:
    """A few small workloads chosen for their edges."""
    trials = []
    for number, (at, recipe) in enumerate(_FIRST):
        *sizes, bm, bn = _SHAPES[at]
        workload = _workload(task, sizes, number)
        trials.append(Trial(task, workload, {"BM": bm, "BN": bn}, recipe, number, expected))
    return tuple(trials)


def second_trials(task: TaskLike, expected: Expected, count: int = 16) -> tuple[Trial, ...]:
    """Larger random workloads, the same ones each time, none of them among the first."""
    draw = random.Random(zlib.crc32(task.name.encode()))
    trials = []
    for number in range(count):
        seq_q, seq_k = draw.randint(1, 90), draw.randint(1, 90)
        if number % 3 == 0:
            seq_k = seq_q
        sizes = [draw.randint(1, 2), draw.randint(1, 2), draw.randint(1, 3), seq_q, seq_k]
        workload = _workload(task, sizes, draw.randrange(60))
        choice = {"BM": draw.choice((4, 8, 16, 32)), "BN": draw.choice((4, 8, 16, 32))}
        recipe = _RECIPES[number % len(_RECIPES)]
        trials.append(Trial(task, workload, choice, recipe, 100 + number, expected))
    return tuple(trials)


def _workload(task: TaskLike, sizes: list[int], number: int) -> Any:
    """A workload in f32 of these (batch, kv heads, group, seq_q, seq_k), as far as the task has such ones."""
    batch, kv_heads, group, seq_q, seq_k = sizes
    known = all_workloads(task)
    if all(w.heads == w.kv_heads for w in known):
        kv_heads, group = kv_heads * group, 1
    elif all(w.kv_heads == 1 for w in known):
        kv_heads, group = 1, kv_heads * group
    if all(w.seq_q == w.seq_k for w in known):
        seq_q = seq_k
    dim = 16 if number % 2 else 8
    dim_v = dim if all(w.dim == w.dim_v for w in known) else dim - 4
    return known[0].with_(
        batch=batch, heads=kv_heads * group, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k,
        dim=dim, dim_v=dim_v, dtype="fp32", parameters=_parameters(task, known[0], number), label="",
        scale=0.3 if number % 3 == 2 else None,
    )  # fmt: skip


def _parameters(task: TaskLike, workload: Any, number: int) -> tuple[tuple[str, int | float], ...]:
    """Whole numbers are widths of something and get near the tiles' size, others span two magnitudes."""
    types = {parameter.name: parameter.type for parameter in task.parameters}
    whole, real = (5, 3, 11, 1, 17, 100), (20.0, 2.0, 300.0, 50.0)
    return tuple(
        (name, whole[number % len(whole)] if types[name] == "int" else real[number % len(real)])
        for name in workload.params
    )


def _inputs(task: TaskLike, workload: Any, recipe: str, seed: int) -> dict[str, Tensor]:
    """Normal values. Where scores are made extreme, one coordinate of queries and keys does it.

    peaked: scores spread over tens, so that the maximum moves. sunk: all far below 0, where a maximum
    that starts at 0 underflows. lifted: all far above, where an exponential without a maximum overflows.
    falling: the first half of the keys lifted, the rest sunk, where a maximum that does not last overflows.
    rising: the other way, where a maximum over keys that a row must not see wipes out those that it may.
    """
    draw = torch.Generator().manual_seed(seed)
    inputs = {}
    for tensor in task.tensors:
        if tensor.role != "input":
            continue
        shape = [workload.sizes[axis] for axis in tensor.axes]
        values = torch.randn(shape, generator=draw)
        if "dim" in tensor.axes and recipe == "peaked":
            values *= 3
        elif "dim" in tensor.axes and recipe != "normal":
            height = (_EXTREME / workload.softmax_scale) ** 0.5
            values[..., 0] = height
            if "seq_k" in tensor.axes:
                half = workload.sizes["seq_k"] // 2
                low, high = values.tensor_split([half], tensor.axes.index("seq_k"))
                if recipe in ("sunk", "rising"):
                    low[..., 0] = -height
                if recipe in ("sunk", "falling"):
                    high[..., 0] = -height
        inputs[tensor.name] = values
    return inputs


def fails(program: ir.Program, trials: tuple[Trial, ...]) -> bool:
    """Whether the program gives a wrong result, or none, on any of the trials."""
    return not all(trial.passes(program) for trial in trials)
