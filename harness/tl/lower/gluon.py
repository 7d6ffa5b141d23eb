"""Owns a Gluon candidate as a whole: file, kernels, table of choices, fallback. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower.carried import carried, given_keys
from harness.tl.lower.choices import Row
from harness.tl.lower.gluon_carry import CarryingText, cut
from harness.tl.lower.gluon_channels import channels
from harness.tl.lower.gluon_choices import REGISTERS, complete, default_table, settled_rows, unfit
from harness.tl.lower.gluon_host import host_side
from harness.tl.lower.gluon_kernel import Kernel
from harness.tl.lower.gluon_loops import ConsumerText
from harness.tl.lower.gluon_prelude import helpers
from harness.tl.lower.gluon_trial import freedom
from harness.tl.lower.gluon_view import view
from harness.tl.lower.gluon_ways import Ways
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.triton import lower_triton
from harness.tl.problem import TaskLike, symbols
from harness.tl.schedule import OPTIONAL

HEAD = '''"""{title}, compiled for Hopper from the LLM-TL program `{name}`.

{about}
"""

import atexit
import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from fallback import attention as plain
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
{imports}from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Names that Triton 3.7 changed.
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
tma_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

LOG2_E = gl.constexpr(1.4426950408889634)
'''

RESCALING = '''

def _moving() -> str:
    """Assembly: two maxima, and factors for what was summed up; of two that were found, and the two before.

    A maximum stays until one is found that is more than 5.5 above it: powers of e stay below 245, well inside
    fp16. Where no thread of a warp has found one, that is all. Else the four threads of a row, which are
    neighbours, take the greatest of what they have.
    """
    lines = ["{ .reg .pred some, mine; .reg .f32 most, other, factor, limit0, limit1;"]
    lines += [f"add.rn.f32 limit{n}, ${6 + n}, 0f40B00000;" for n in (0, 1)]
    lines += ["setp.gt.f32 some, $4, limit0;", "setp.gt.or.f32 some, $5, limit1, some;"]
    lines += ["vote.sync.any.pred some, some, 0xffffffff;"]
    lines += [f"mov.b32 ${n}, ${6 + n}; mov.b32 ${2 + n}, 0f3F800000;" for n in (0, 1)]
    lines += ["@!some bra.uni KEPT;"]
    for n in (0, 1):
        lines += [
            f"shfl.sync.bfly.b32 other, ${4 + n}, 1, 31, 0xffffffff;", f"max.f32 most, ${4 + n}, other;",
            "shfl.sync.bfly.b32 other, most, 2, 31, 0xffffffff;", "max.f32 most, most, other;",
            f"setp.gt.f32 mine, most, limit{n};", f"sub.rn.f32 factor, ${6 + n}, most;",
            "mul.rn.f32 factor, factor, 0f3FB8AA3B;", "ex2.approx.ftz.f32 factor, factor;",
            f"@mine mov.b32 ${n}, most;", f"@mine mov.b32 ${2 + n}, factor;",
        ]  # fmt: skip
    return " ".join([*lines, "KEPT: }"])


def _rescaling(count: int) -> str:
    """Assembly: so many values by as many factors, of two rows in turn. Warps with nothing but 1 skip it."""
    kept = [f"mov.b32 ${n}, ${count + n};" for n in range(count)]
    times = [f"mul.f32 ${n}, ${n}, ${2 * count + n};" for n in range(count)]
    return " ".join([
        "{ .reg .pred p;", f"setp.neu.f32 p, ${2 * count}, 0f3F800000;",
        f"setp.neu.or.f32 p, ${2 * count + 2}, 0f3F800000, p;", "vote.sync.any.pred p, p, 0xffffffff;",
        *kept, "@!p bra.uni KEPT;", *times, "KEPT: }",
    ])  # fmt: skip


def _registers(count: int) -> str:
    return ",".join(["=f"] * count + ["f"] * (2 * count))


MOVING = gl.constexpr(_moving())
RESCALING_16, REGISTERS_16 = gl.constexpr(_rescaling(16)), gl.constexpr(_registers(16))
RESCALING_32, REGISTERS_32 = gl.constexpr(_rescaling(32)), gl.constexpr(_registers(32))
RESCALING_64, REGISTERS_64 = gl.constexpr(_rescaling(64)), gl.constexpr(_registers(64))
'''

ASYNC_COPY = "from triton.experimental.gluon.language.nvidia.ampere import async_copy\n"

ABOUT = """\
Each block works on tiles of the grid, one after the other. One warp, the producer, copies what the program
loads to shared memory, through channels: rings of places with a barrier for full and one for empty. Every
other statement runs in the consumers, warpgroups with 64 rows of the tile each, and stands above its code.
Rounds of a loop that need no mask have a loop of their own. Devices other than Hopper, other types than fp16
and bf16, and tensors that descriptors cannot serve go to the Triton compiler's kernel in `fallback.py`."""

CHOICES = '''

class Choice(NamedTuple):
    """Tile parameters and schedule."""

{fields}


# Bytes of an element, head dimension up to, sequence length from: the choice.
CHOICES = (
{lines}
)

# Consumers: registers of a thread of theirs, and of the producer's.
REGISTERS = {registers}
'''


def lower_gluon(
    program: ir.Program,
    task: TaskLike,
    target: Target | None = None,
    table: Sequence[Row] | None = None,
    choice: Mapping[str, int] | None = None,
) -> Lowered:
    """The candidate's files; tiles by the table, or one choice for all, or the default. Raises LowerError."""
    if target is not None and target.capability != (9, 0):
        raise LowerError(f"Gluon code is for Hopper, not for {target.name}", None, "choose h100 or h200")
    rows = _rows(program, table, choice)
    ways = Ways.of(dict(row.choice) for row in rows)
    kernels = [_kernel(program, n, task, rows, ways) for n in range(len(program.kernels))]
    consumers = tuple(sorted({dict(row.choice)["consumers"] for row in rows}))
    body = "".join(kernel.source(consumers) for kernel in kernels)
    about = {"title": getattr(task, "title", task.name), "name": program.name, "about": ABOUT}
    source = (
        HEAD.format(**about, imports=ASYNC_COPY if ways.arrivals else ""),
        RESCALING if ways.rescale else "",
        _choices(_looked_up(rows, ways)),
        helpers(body, max(consumers)),
        body,
        host_side(program, task, kernels),
    )
    name = f"tl_{program.name}_gluon"
    manifest = (
        f'name = "{name}"\ndescription = "Compiled for Hopper from the LLM-TL program {program.name}."\n'
        f'task = "{task.name}"\nbackend = "gluon"\n'
    )
    fallback = lower_triton(_without_roles(program), task, target)
    files = {
        "candidate.toml": manifest,
        "attention.py": "".join(source),
        "fallback.py": fallback.files["attention.py"],
    }
    tables = {"attention.py": _looked_up(rows, ways)}
    told = carried(program, "gluon", tables, given_keys(table, choice), settled_rows(program))
    told = told.beside(fallback.carried, "fallback.py")
    return Lowered.of(name, "gluon", files, dict(rows[0].choice), told)


def _without_roles(program: ir.Program) -> ir.Program:
    """The program with tiles that the Triton compiler can have: powers of two, no rows of three consumers."""
    tiles = tuple(
        (name, tuple(dict.fromkeys(1 << (value.bit_length() - 1) for value in values)))
        for name, values in program.parameters
    )
    return replace(program, parameters=tiles)


def _rows(
    program: ir.Program, table: Sequence[Row] | None, choice: Mapping[str, int] | None
) -> tuple[Row, ...]:
    """The table with every choice complete; raises LowerError for what Gluon code cannot have."""
    if table:
        rows = tuple(Row.of(r.bytes, r.dim, r.seq, complete(program, dict(r.choice))) for r in table)
    elif choice:
        rows = (Row.of(2, 256, 0, complete(program, choice)),)
    else:
        rows = default_table(program)
    for row in rows:
        reason = unfit(program, dict(row.choice))
        if reason is not None:
            raise LowerError(reason)
    return rows


def _looked_up(rows: Sequence[Row], ways: Ways) -> tuple[Row, ...]:
    """The rows without keys that are off in all of them: the candidate has no code for those."""
    unused = set(OPTIONAL) - ways.used
    return tuple(replace(r, choice=tuple((n, v) for n, v in r.choice if n not in unused)) for r in rows)


def _choices(rows: Sequence[Row]) -> str:
    fields = "\n".join(f"    {name}: int" for name, _ in rows[0].choice)
    lines = []
    for r in sorted(rows, key=lambda r: (r.bytes, r.dim, r.seq)):
        values = ", ".join(f"{n}={v}" for n, v in r.choice)
        lines += [f"    ({r.bytes}, {r.dim}, {r.seq}, Choice(", f"        {values},", "    )),  # fmt: skip"]
    most = max(3, *(dict(r.choice)["consumers"] for r in rows))
    known = {consumers: split for consumers, split in REGISTERS.items() if consumers <= most}
    return CHOICES.format(fields=fields, lines="\n".join(lines), registers=known)


def _kernel(program: ir.Program, number: int, task: TaskLike, rows: Sequence[Row], ways: Ways) -> Kernel:
    seen = view(program.kernels[number])
    whole = channels(seen, task, ways)
    names = tuple(name for name, _ in program.parameters)
    known = symbols(task)
    rescales = frozenset(dict(row.choice)["rescale"] for row in rows)
    by_key = {tile.key: tile for tile in seen.group.tiles}
    given = seen.group, frozenset(names), frozenset(name for name, kind in known.items() if kind == "float")
    text = ConsumerText(
        *given,
        channels={by_key[tile.key]: channel for tile, channel in whole.items()},
        first_row=seen.first,
        freedom=freedom(program, number, task),
        overlaps=frozenset(dict(row.choice)["overlap"] for row in rows),
        depth=2, rescales=rescales, reuse=ways.reuse,
    )  # fmt: skip
    carrying = None
    if ways.carry and cut(seen.group) is not None:
        carrying = CarryingText(
            *given, channels=text.channels, first_row=text.first_row, freedom=text.freedom, depth=2,
            rescales=rescales,
            axes=tuple(a.name for a in seen.group.grid),
        )  # fmt: skip
    return Kernel(seen, text, whole, names, tuple(known), ways, carrying)
