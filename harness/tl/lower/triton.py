"""Owns a Triton candidate as a whole: its file, its kernels, its table of tile choices. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower.carried import carried, given_keys
from harness.tl.lower.choices import Row, default_table
from harness.tl.lower.facts import grows
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.order import forwards
from harness.tl.lower.python_layout import call
from harness.tl.lower.triton_host import host_side
from harness.tl.lower.triton_loops import KernelText
from harness.tl.lower.triton_prelude import helpers
from harness.tl.lower.triton_signature import Signature
from harness.tl.problem import TaskLike, symbols

HEAD = '''"""{title}, compiled from the LLM-TL program `{name}`.

{about}
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = tl.constexpr(1.4426950408889634)
'''

ABOUT = """\
One block of the grid does what the program does; each statement stands above its code. Rounds of a loop
that need no mask have a loop of their own. Where the device moves tiles by descriptor (TMA, Hopper and
later) tiles of 16-bit elements do, and its bounds checks take care of the tails."""

CHOICES = '''

class Choice(NamedTuple):
    """Tile parameters and launch."""

{fields}


# Bytes of an element, head dimension up to, sequence length from: the choice.
CHOICES = (
{lines}
)
'''


def lower_triton(
    program: ir.Program,
    task: TaskLike,
    target: Target | None = None,
    table: Sequence[Row] | None = None,
    choice: Mapping[str, int] | None = None,
) -> Lowered:
    """The candidate's files; tiles by the table, or one choice for all, or the default. Raises LowerError."""
    if target is not None and (target.capability is None or target.capability < (8, 0)):
        raise LowerError(
            f"Triton makes no tensor-core code for {target.name}", None, "choose a target from sm_80 on"
        )
    rows = _rows(program, target, table, choice)
    overlap = any(dict(row.choice).get("overlap") for row in rows)
    program = replace(program, kernels=tuple(map(forwards, program.kernels)))
    texts = [_kernel_text(program, kernel, task, overlap) for kernel in program.kernels]
    parts = [(text, Signature.of(program, text, symbols(task))) for text in texts]
    kernels = "".join(_source(text, signature) for text, signature in parts)
    source = (
        HEAD.format(title=getattr(task, "title", task.name), name=program.name, about=ABOUT),
        _choices(rows),
        helpers(kernels),
        kernels,
        host_side(program, task, parts),
    )
    name = f"tl_{program.name}_triton"
    manifest = (
        f'name = "{name}"\ndescription = "Compiled from the LLM-TL program {program.name}."\n'
        f'task = "{task.name}"\nbackend = "triton"\n'
    )
    files = {"candidate.toml": manifest, "attention.py": "".join(source)}
    told = carried(program, "triton", {"attention.py": rows}, given_keys(table, choice))
    return Lowered.of(name, "triton", files, dict(rows[0].choice), told)


# --- the choices ------------------------------------------------------------------------------------


def _rows(
    program: ir.Program,
    target: Target | None,
    table: Sequence[Row] | None,
    choice: Mapping[str, int] | None,
) -> Sequence[Row]:
    """The table; raises LowerError for tiles that Triton cannot have."""
    if table:
        rows = tuple(table)
    elif choice:
        rows = (Row.of(2, 256, 0, _full(program, choice)),)
    else:
        rows = default_table(program, target)
    names = {name for name, _ in program.parameters}
    for row in rows:
        for name, value in row.choice:
            if name in names and (value < 16 or value & (value - 1)):
                raise LowerError(f"tile {name} = {value}: Triton wants powers of two from 16 on")
    return rows


def _full(program: ir.Program, choice: Mapping[str, int]) -> dict[str, int]:
    """The choice with defaults for what it leaves open."""
    launch = {"warps": 4, "stages": 2}
    for key, (first, *_) in program.schedule:
        if key in launch and isinstance(first, int):
            launch[key] = first
    return {**program.defaults, **launch, **choice}


def _choices(rows: Sequence[Row]) -> str:
    fields = "\n".join(f"    {name}: int" for name, _ in rows[0].choice)
    lines = "\n".join(
        f"    ({r.bytes}, {r.dim}, {r.seq}, Choice({', '.join(f'{n}={v}' for n, v in r.choice)})),"
        for r in sorted(rows, key=lambda r: (r.bytes, r.dim, r.seq))
    )
    return CHOICES.format(fields=fields, lines=lines)


# --- the kernels ------------------------------------------------------------------------------------


def _kernel_text(program: ir.Program, kernel: ir.Kernel, task: TaskLike, overlap: bool) -> KernelText:
    floats = frozenset(name for name, kind in symbols(task).items() if kind == "float")
    text = KernelText(kernel, frozenset(name for name, _ in program.parameters), floats, overlap)
    _grid_indices(kernel, text)
    text.run()
    return text


def _source(text: KernelText, signature: Signature) -> str:
    head = call(f"def {text.function}", signature.groups, 0, "):")
    return "\n\n@triton.jit\n" + "\n".join([*head, *text.lines]) + "\n"


def _grid_indices(kernel: ir.Kernel, text: KernelText) -> None:
    """One flat grid: rows run fastest, so that blocks of one head share its keys in the cache."""
    rows = [a for a in kernel.grid if a.role == "rows"]
    axes = [*rows, *(a for a in reversed(kernel.grid) if a.role != "rows")]
    rest = "tl.program_id(0)"
    for n, axis in enumerate(axes):
        extent = text.values.index(axis.extent)
        if n == len(axes) - 1:
            text.put(f"{axis.name} = {rest}")
        else:
            text.put(f"pid = {rest}")
            text.put(f"{axis.name} = pid % ({extent})")
            rest = f"pid // ({extent})"
        if axis.role == "rows" and grows(kernel, axis.name):
            why = "the last rows have most to do: they start first"
            text.put(f"{axis.name} = {extent} - 1 - {axis.name}  # {why}")
