"""Owns a Triton candidate as a whole: its file, its host side, its table of tile choices. Deterministic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower.choices import Row, default_table
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.triton_loops import KernelText
from harness.tl.lower.triton_memory import PRELUDE, Access
from harness.tl.lower.triton_values import bare
from harness.tl.problem import SIZES, TaskLike, symbols

_CONSTEXPR_SIZES = ("dim", "dim_v", "group")
_SCALARS = (*SIZES, "group")

HEAD = '''"""{title}, compiled from the LLM-TL program `{name}`.

{about}
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = tl.constexpr(1.4426950408889634)
'''

ABOUT = """One block of the grid does what the program does; each statement stands above its code. Rounds of a loop
that need no mask have a loop of their own. Where the device moves tiles by descriptor (TMA, Hopper and
later) tiles of 16-bit elements do, and its bounds checks take care of the tails."""

HOST = '''

@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) on a CPU, where Triton interprets."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _choose(element_size: int, dim: int, seq: int) -> Choice:
    """The choice for the smallest head dimension that is large enough, and the longest sequences not longer."""
    rows = [row for row in CHOICES if row[0] == element_size] or list(CHOICES)
    dims = [row[1] for row in rows if row[1] >= dim] or [max(row[1] for row in rows)]
    rows = [row for row in rows if row[1] == min(dims)]
    started = [row for row in rows if row[2] <= seq] or rows
    return max(started, key=lambda row: row[2])[3]


def _padded(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def _aligned(*tensors: Tensor) -> bool:
    """Descriptors want 16-byte addresses and strides, and a contiguous last axis."""
    return all(
        t.stride(-1) == 1 and t.data_ptr() % 16 == 0
        and all(n * t.element_size() % 16 == 0 for n in t.stride()[:-1])
        for t in tensors
    )  # fmt: skip


def _descriptor(t: Tensor, order: tuple[int, ...], block: list[int]) -> TensorDescriptor:
    view = t.permute(order)
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block)


OPERANDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
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
    rows = (
        tuple(table)
        if table
        else (Row.of(2, 256, 0, _full(program, choice)),)
        if choice
        else default_table(program, target)
    )
    _powers_of_two(program, rows)
    overlap = any(dict(row.choice).get("overlap") for row in rows)
    texts = [_kernel(program, kernel, task, overlap) for kernel in program.kernels]
    parts = [
        HEAD.format(title=getattr(task, "title", task.name), name=program.name, about=ABOUT),
        _choices(program, rows),
    ]
    body = "".join(text for text, _ in texts)
    parts.append(_prelude(body))
    parts.append(body)
    parts.append(HOST)
    parts.append(_attention(program, task, [t for _, t in texts]))
    name = f"tl_{program.name}_triton"
    manifest = (
        f'name = "{name}"\ndescription = "Compiled from the LLM-TL program {program.name}."\n'
        f'task = "{task.name}"\nbackend = "triton"\n'
    )
    files = {"candidate.toml": manifest, "attention.py": "".join(parts)}
    return Lowered(name, "triton", files, dict(rows[0].choice))


def _full(program: ir.Program, choice: Mapping[str, int] | None) -> dict[str, int]:
    schedule = {k: c[0] for k, c in program.schedule if k in ("warps", "stages") and isinstance(c[0], int)}
    return {**program.defaults, "warps": 4, "stages": 2, **schedule, **(choice or {})}  # type: ignore[dict-item]


def _powers_of_two(program: ir.Program, rows: Sequence[Row]) -> None:
    names = {name for name, _ in program.parameters}
    for row in rows:
        for name, value in row.choice:
            if name in names and (value < 16 or value & (value - 1)):
                raise LowerError(f"tile {name} = {value}: Triton wants powers of two from 16 on")


def _choices(program: ir.Program, rows: Sequence[Row]) -> str:
    names = list(dict(rows[0].choice))
    fields = "\n".join(f"    {name}: int" for name in names)
    lines = "\n".join(
        f"    ({r.bytes}, {r.dim}, {r.seq}, Choice({', '.join(f'{n}={v}' for n, v in r.choice)})),"
        for r in sorted(rows, key=lambda r: (r.bytes, r.dim, r.seq))
    )
    return (
        f'\n\nclass Choice(NamedTuple):\n    """Tile parameters and launch."""\n\n{fields}\n\n\n'
        f"# Bytes of an element, head dimension up to, sequence length from: the choice.\nCHOICES = (\n{lines}\n)\n"
    )


def _prelude(body: str) -> str:
    """The helpers that the kernels use, and those that these use."""
    blocks = ["@triton.jit" + part for part in PRELUDE.split("@triton.jit")[1:]]
    by_name = {re.search(r"def (\w+)", b)[1]: b.rstrip() for b in blocks}  # type: ignore[index]
    wanted: set[str] = set()
    todo = [n for n in by_name if re.search(rf"\b{n}\(", body)]
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            inner = by_name[name].split("):", 1)[-1]
            todo += [n for n in by_name if n != name and re.search(rf"\b{n}\(", inner)]
    return "".join(f"\n\n{by_name[n]}\n" for n in by_name if n in wanted)


def _kernel(program: ir.Program, kernel: ir.Kernel, task: TaskLike, overlap: bool) -> tuple[str, KernelText]:
    kinds = symbols(task)
    floats = frozenset(n for n, kind in kinds.items() if kind == "float")
    text = KernelText(kernel, frozenset(n for n, _ in program.parameters), floats, overlap)
    _grid_indices(kernel, text)
    text.run()
    body = "\n".join(text.lines)
    words = set(re.findall(r"[A-Za-z_]\w*", body))
    arguments = _arguments(text, words, kinds)
    constants = _constants(program, text, words)
    signature = _wrapped([*arguments, *(f"{c}: tl.constexpr" for c in constants)])
    return f"\n\n@triton.jit\ndef {_function(kernel)}({signature}):  # fmt: skip\n{body}\n", text


def _function(kernel: ir.Kernel) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', kernel.name)}_kernel"


def _grid_indices(kernel: ir.Kernel, text: KernelText) -> None:
    """One flat grid: rows run fastest, so that blocks of one head share its keys in the cache."""
    index = text.values.index
    axes = sorted(kernel.grid, key=lambda a: {"rows": 0}.get(a.role or "", 1))
    ordered = [a for a in axes if a.role == "rows"] + [a for a in reversed(kernel.grid) if a.role != "rows"]
    text.put("pid = tl.program_id(0)")
    for n, axis in enumerate(ordered):
        last = n == len(ordered) - 1
        extent = bare(index(axis.extent))
        if last:
            text.put(f"{axis.name} = pid")
        else:
            text.put(f"{axis.name} = pid % ({extent})")
            text.put(f"pid = pid // ({extent})")
        if axis.role == "rows" and _grows(kernel, axis.name):
            text.put(
                f"{axis.name} = {extent} - 1 - {axis.name}  # the last rows have most to do: they start first"
            )


def _grows(kernel: ir.Kernel, row: str) -> bool:
    """Whether later rows have longer loops."""
    return any(
        isinstance(n, ir.For)
        and ir.Sym(row) in set(ir.walk(n.stop))
        and ir.Sym(row) not in set(ir.walk(n.start))
        for n in ir.nodes(kernel.body)
    )


def _arguments(text: KernelText, words: set[str], kinds: Mapping[str, str]) -> list[str]:
    out = []
    for access in text.accesses.all():
        out.append(access.argument)
        out += [s for s in access.strides if s in words]
    out += [s for s in kinds if s in words and s not in _CONSTEXPR_SIZES]
    out += [f for f in text.factors if f in words]
    return out


def _constants(program: ir.Program, text: KernelText, words: set[str]) -> list[str]:
    names = [s for s in _CONSTEXPR_SIZES if s in words]
    for name in text.sizes.values():
        for constant in (name, f"{name}_p"):
            if constant in words and constant not in names:
                names.append(constant)
    names += [n for n, _ in program.parameters if n in words]
    names += [n for n in text.evens if n in words]
    return [*names, *(n for n in ("OPERAND", "PRECISION", "TMA", "FOLD", "OVERLAP") if n in words)]


def _wrapped(parts: Sequence[str], indent: str = "    ", width: int = 104) -> str:
    lines, line = [], indent
    for part in parts:
        if len(line) + len(part) > width:
            lines.append(line.rstrip())
            line = indent
        line += part + ", "
    lines.append(line.rstrip().rstrip(","))
    return "\n" + "\n".join(lines) + ",\n"


# --- the host side ----------------------------------------------------------------------------------


def _attention(program: ir.Program, task: TaskLike, texts: Sequence[KernelText]) -> str:
    tensors = [t.name for t in task.tensors]
    extra = "".join(f", {p.name}: {p.type}" for p in task.parameters)
    lines = [f"def attention({', '.join(f'{t}: Tensor' for t in tensors)}, *, scale: float{extra}) -> None:",
             f'    """Write the attention of `{task.name}` to `{tensors[-1]}` on the current stream."""']  # fmt: skip
    lines += _sizes(task)
    first = tensors[0]
    lines += [
        f"    c = _choose({first}.element_size(), {_widest(task)}, {_length(task)})",
        f"    tma = _capability({first}.device) >= (9, 0) and {first}.element_size() == 2 and _aligned({', '.join(tensors)})",
        f'    precision = "ieee" if {first}.dtype == torch.float32 else "tf32"',
    ]
    lines += [f"    {name} = c.{name}" for name, _ in program.parameters]
    for matrix in dict.fromkeys(
        m for t in texts for a in t.accesses.all() for m in [a.matrix] if m.workspace
    ):
        shape = ", ".join(bare(_python(e)) for e in matrix.workspace)
        lines.append(
            f"    {matrix.tensor} = torch.empty(({shape},), dtype=torch.float32, device={first}.device)"
        )
    for kernel, text in zip(program.kernels, texts, strict=True):
        lines += _launch(program, kernel, text, symbols(task))
    return "\n\n" + "\n".join(lines) + "\n"


def _sizes(task: TaskLike) -> list[str]:
    lines, known = [], set()
    for tensor in task.tensors:
        fresh = [a for a in tensor.axes if a in SIZES and a not in known]
        if fresh and tensor.role == "input":
            lines.append(
                f"    {', '.join(a if a in fresh else '_' for a in tensor.axes)}{',' if len(tensor.axes) == 1 else ''} = {tensor.name}.shape"
            )
            known.update(fresh)
    if {"heads", "kv_heads"} <= known:
        lines.append("    group = heads // kv_heads")
    return lines


def _widest(task: TaskLike) -> str:
    dims = [a for a in ("dim", "dim_v") if any(a in t.axes for t in task.tensors)]
    return f"max({', '.join(dims)})" if len(dims) > 1 else dims[0]


def _length(task: TaskLike) -> str:
    lengths = [a for a in ("seq_q", "seq_k") if any(a in t.axes for t in task.tensors)]
    return f"max({', '.join(lengths)})" if len(lengths) > 1 else lengths[0]


def _python(expr: ir.Expr) -> str:
    """Host text of an index expression: Python's own division already rounds down."""
    match expr:
        case ir.Op(fn="floordiv", args=(a, b)):
            return f"({_python(a)} // {_python(b)})"
        case ir.Op(fn="ceildiv", args=(a, b)):
            return f"(-(-{_python(a)} // {_python(b)}))"
        case ir.Op(fn="min" | "max" as fn, args=args):
            return f"{fn}({', '.join(bare(_python(a)) for a in args)})"
        case ir.Op(fn="add" | "sub" | "mul" | "mod" as fn, args=args):
            sign = {"add": "+", "sub": "-", "mul": "*", "mod": "%"}[fn]
            return f"({f' {sign} '.join(_python(a) for a in args)})"
        case ir.Op(fn="neg", args=(a,)):
            return f"(-{_python(a)})"
        case ir.Const(value=value):
            return str(value)
        case ir.Sym(name=name):
            return name
    raise LowerError(f"{expr} has no host text")


def _launch(program: ir.Program, kernel: ir.Kernel, text: KernelText, kinds: Mapping[str, str]) -> list[str]:
    words = set(re.findall(r"[A-Za-z_]\w*", "\n".join(text.lines)))
    lines = []
    for size, name in text.sizes.items():
        if name not in SIZES:
            lines.append(f"    {name} = {bare(_python(size))}")
    for name in text.factors:
        lines.append(f"    {name} = {text.factors[name]}")
    folds = [n for n in text.factors if n in words]
    if folds:
        lines.append(f"    fold = {' and '.join(f'{n} > 0' for n in folds)}")
        lines += [f"    {n} = {n} if fold else 1.0" for n in folds]
    operands: list[str] = []
    for access in text.accesses.all():
        source = access.matrix.tensor
        if access.tma:
            order = (*access.fixed, access.row_axis, access.col_axis)
            block = ", ".join(
                [*("1" for _ in access.fixed), _extent(text, access, 0), _extent(text, access, 1)]
            )
            if access.matrix.workspace:
                operands.append(source)
            else:
                operands.append(f"_descriptor({source}, {order}, [{block}]) if tma else {source}")
        else:
            operands.append(source)
        operands += [f"{source}.stride({s.rsplit('_s', 1)[1]})" for s in access.strides if s in words]
    operands += [s for s in kinds if s in words and s not in _CONSTEXPR_SIZES]
    operands += [f for f in text.factors if f in words]
    given = {"OPERAND": f"OPERANDS[{_first_tensor(text)}.dtype]", "PRECISION": "precision", "TMA": "tma", "FOLD": "fold",
             "OVERLAP": "bool(c.overlap)"}  # fmt: skip
    given |= {name: f"{_python(whole)} >= {_python(stop)}" for name, (whole, stop) in text.evens.items()}
    for constant in _constants(program, text, words):
        if constant.endswith("_p") and constant[:-2] in text.sizes.values():
            operands.append(f"{constant}=_padded({constant[:-2]})")
        else:
            operands.append(f"{constant}={given.get(constant, constant)}")
    operands += ["num_warps=c.warps", "num_stages=c.stages"]
    grid = " * ".join(_python(a.extent) for a in kernel.grid) or "1"
    lines.append(
        f"    {_function(kernel)}[({grid},)]({_wrapped(operands, indent='        ')}    )  # fmt: skip"
    )
    return lines


def _first_tensor(text: KernelText) -> str:
    return next((a.matrix.tensor for a in text.accesses.all() if not a.matrix.workspace), "q")


def _extent(text: KernelText, access: Access, at: int) -> str:
    name = text.block(access.shape[at])
    return f"_padded({name[:-2]})" if name.endswith("_p") else name
