"""Owns which compiler makes a program into a candidate of which backend."""

from __future__ import annotations

from collections.abc import Mapping

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower.cute import lower_cute
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.numba import lower_numba
from harness.tl.lower.triton import lower_triton
from harness.tl.problem import TaskLike

COMPILED = ("triton", "cuda", "gluon", "numba")


def lower(
    program: ir.Program,
    task: TaskLike,
    backend: str,
    target: Target | None = None,
    choice: Mapping[str, int] | None = None,
) -> Lowered:
    """The candidate's files; `choice` fixes tiles. Raises LowerError, as for a backend without a compiler."""
    if backend == "triton":
        return lower_triton(program, task, target, None, choice)
    if backend == "cuda":
        return lower_cute(program, task, target, None, choice)
    if backend == "gluon":
        return lower_gluon(program, task, target, None, choice)
    if backend == "numba":
        return lower_numba(program, task, choice)
    raise LowerError(f"there is no compiler to {backend}; there are: {', '.join(COMPILED)}")
