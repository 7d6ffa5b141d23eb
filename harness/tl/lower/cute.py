"""Owns a CuTe candidate as a whole: its files, its kernels, its table of tile choices. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower.carried import carried, given_keys
from harness.tl.lower.choices import ANY_DIM, Row
from harness.tl.lower.copies import without_copies
from harness.tl.lower.cute_choices import complete, default_table, unfit
from harness.tl.lower.cute_host import Signature, host_side
from harness.tl.lower.cute_loops import KernelText
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.order import forwards
from harness.tl.problem import TaskLike, symbols

HEAD = '''"""{title}, compiled from the LLM-TL program `{name}`.

One block of the grid does what the program does: `kernel.cu` has each statement above its code, on the tiles
of `tile.cuh`, which stand on CuTe's atoms. Sizes that are known before a launch are template parameters.
"""

from ctypes import c_int64
from typing import NamedTuple

import torch
from torch import Tensor

from harness.build.cuda import Source

SOURCE = Source(__file__)
'''

CHOICES = '''

class Choice(NamedTuple):
    """Tile parameters and launch.

    `stages`: tiles in flight and in use. `optimize`: ptxas' level; at 3 masked rounds have code of their own.
    """

{fields}


# Head dimension up to, sequence length from: the choice.
CHOICES = (
{lines}
)
'''

KERNELS = """// {title}, compiled from the LLM-TL program `{name}`.
#include "tile.cuh"

using namespace tile;
"""


def lower_cute(
    program: ir.Program,
    task: TaskLike,
    target: Target | None = None,
    table: Sequence[Row] | None = None,
    choice: Mapping[str, int] | None = None,
) -> Lowered:
    """The candidate's files; tiles by the table, or one choice for all, or the default. Raises LowerError."""
    if target is not None and (target.capability is None or target.capability < (7, 5)):
        raise LowerError(f"there is no CuTe code for {target.name}", None, "choose a target from sm_75 on")
    if table:
        rows = tuple(table)
    elif choice:
        rows = (Row.of(2, ANY_DIM, 0, complete(program, choice)),)
    else:
        rows = default_table(program, target)
    for row in rows:
        if problem := unfit(program, dict(row.choice)):
            raise LowerError(problem)
    program = replace(program, kernels=tuple(forwards(without_copies(k)) for k in program.kernels))
    texts = [_kernel_text(program, kernel, task) for kernel in program.kernels]
    known = {name: "float" if kind == "float" else "int" for name, kind in symbols(task).items()}
    parts = [(text, Signature.of(program, text, known)) for text in texts]
    title = getattr(task, "title", task.name)
    outputs = {t.name for t in task.tensors if t.role == "output"}
    name = f"tl_{program.name}_cute"
    kernels = KERNELS.format(title=title, name=program.name)
    kernels += "".join(_source(text, signature, outputs) for text, signature in parts)
    manifest = (
        f'name = "{name}"\ndescription = "Compiled from the LLM-TL program {program.name}."\n'
        f'task = "{task.name}"\nbackend = "cuda"\n'
    )
    sources = {
        "candidate.toml": manifest,
        "attention.py": HEAD.format(title=title, name=program.name)
        + _choices(rows)
        + host_side(program, task, parts),
        "kernel.cu": kernels,
        "tile.cuh": prelude(),
    }
    told = carried(program, "cuda", {"attention.py": rows}, given_keys(table, choice))
    return Lowered.of(name, "cuda", sources, dict(rows[0].choice), told)


@cache
def prelude() -> str:
    """`tile.cuh`: the tiles that generated kernels are written on."""
    return (files("harness.tl.lower") / "tile.cuh").read_text(encoding="utf-8")


def _choices(rows: Sequence[Row]) -> str:
    fields = "\n".join(f"    {name}: int" for name, _ in rows[0].choice)
    lines = "\n".join(
        f"    ({r.dim}, {r.seq}, Choice({', '.join(f'{n}={v}' for n, v in r.choice)})),"
        for r in sorted(rows, key=lambda r: (r.dim, r.seq))
    )
    return CHOICES.format(fields=fields, lines=lines)


def _kernel_text(program: ir.Program, kernel: ir.Kernel, task: TaskLike) -> KernelText:
    floats = frozenset(name for name, kind in symbols(task).items() if kind == "float")
    text = KernelText(kernel, frozenset(name for name, _ in program.parameters), floats)
    text.run()
    return text


def _source(text: KernelText, signature: Signature, outputs: set[str]) -> str:
    constants = "".join(f"int {name}, " for name in signature.constants)
    template = f"template <class T, {constants}int WARPS, int STAGES, bool ALIGNED, bool FOLD, bool SPLIT>"
    parameters = signature.parameters(text, outputs)
    lines = [f"    {line}{',' if n + 1 < len(parameters) else ') {'}" for n, line in enumerate(parameters)]
    head = f"__global__ void __launch_bounds__(32 * WARPS) {text.function}("
    return "\n" + "\n".join([template, head, *lines, *text.lines, "}"]) + "\n"
