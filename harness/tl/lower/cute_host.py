"""Owns the host side of a CuTe candidate: `attention`, which chooses tiles and launches the kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.cute_loops import KernelText
from harness.tl.lower.cute_tiles import CONSTANT_SIZES
from harness.tl.lower.host import declaration, largest, python_text, sizes
from harness.tl.lower.python_layout import call, expression, statement
from harness.tl.problem import TaskLike
from harness.tl.syntax import Level

CDIV = "_ceil_div"

HOST = '''

def _choose(dim: int, seq: int) -> Choice:
    """That of the smallest head dimension large enough, and there of the longest sequences not longer."""
    dims = [row[0] for row in CHOICES if row[0] >= dim] or [max(row[0] for row in CHOICES)]
    rows = [row for row in CHOICES if row[0] == min(dims)]
    started = [row for row in rows if row[1] <= seq] or rows
    return max(started, key=lambda row: row[1])[2]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _aligned(*tensors: Tensor) -> bool:
    """Whether every row begins at a multiple of 16 bytes and is made of whole pieces of 16."""
    return all(
        t.data_ptr() % 16 == 0 and t.shape[-1] % 8 == 0 and all(n % 8 == 0 for n in t.stride()[:-1])
        for t in tensors
    )


def _bytes(rows: int, cols: int, places: int = 1) -> int:
    """Of a tile in shared memory: panels of 64 columns of two bytes."""
    return 2 * places * rows * _ceil_div(cols, 64) * 64


TYPES = {torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
'''


@dataclass(frozen=True, slots=True)
class Signature:
    """What a generated kernel takes, in order; of a tensor a matrix and the axes whose stride is passed."""

    tensors: tuple[tuple[str, ir.Matrix, tuple[int, ...]], ...]
    scalars: tuple[tuple[str, str], ...]  # name, C++ type
    factors: tuple[str, ...]
    constants: tuple[str, ...]  # template parameters that are numbers

    @classmethod
    def of(cls, program: ir.Program, text: KernelText, symbols: dict[str, str]) -> Signature:
        """The arguments that occur in the kernel's text."""
        words = set(re.findall(r"[A-Za-z_]\w*", "\n".join(text.lines)))
        tensors = []
        for name, matrix in text.used_tensors.items():
            passed = tuple(n for n in range(len(matrix.axes)) if f"{text.tensor_name(name)}_s{n}" in words)
            tensors.append((name, matrix, passed))
        scalars = [(n, k) for n, k in symbols.items() if n in words and n not in CONSTANT_SIZES]
        constants = [n for n in CONSTANT_SIZES if n in words]
        return cls(
            tuple(tensors),
            tuple(scalars),
            tuple(f for f in text.factors if f in words),
            (*constants, *(name for name, _ in program.parameters)),
        )

    def parameters(self, text: KernelText, outputs: set[str]) -> list[str]:
        """C++ declarations, those of a tensor in one line."""
        lines = []
        for name, matrix, axes in self.tensors:
            pointer = text.tensor_name(name)
            kind = "float" if matrix.workspace else "T"
            const = "" if matrix.workspace or name in outputs else "const "
            row = matrix.axes.index("row")
            strides = [f"{'int' if n == row else 'long long'} {pointer}_s{n}" for n in axes]
            lines.append(", ".join([f"{const}{kind}* {pointer}", *strides]))
        numbers = [f"{kind} {name}" for name, kind in self.scalars]
        numbers += [f"float {name}" for name in self.factors]
        return [*lines, ", ".join(numbers)] if numbers else lines


def host_side(program: ir.Program, task: TaskLike, parts: Sequence[tuple[KernelText, Signature]]) -> str:
    """Source of `attention` and what it calls; `parts` are the program's kernels in order."""
    tensors = [t.name for t in task.tensors]
    lines: list[str] = [*sizes(task)]
    launches = [line for part in parts for line in _launch(*part, tensors[0])]
    used = set(re.findall(r"\w+", "\n".join(launches)))
    if "group" in used:
        lines.append("group = heads // kv_heads")
    lines.append(f"choice = _choose({largest(task, 'dim', 'dim_v')}, {largest(task, 'seq_q', 'seq_k')})")
    if tiles := [name for name, _ in program.parameters]:
        lines.append(f"{', '.join(tiles)} = {', '.join(f'choice.{name}' for name in tiles)}")
    body = [line for code in lines for line in statement(code, 1)]
    body.append(f"    if {tensors[0]}.dtype not in TYPES:")
    body.append(f'        raise TypeError(f"no tensor core of this code multiplies {{{tensors[0]}.dtype}}")')
    body += statement(f"aligned = _aligned({', '.join(tensors)})", 1)
    body += [*_allocations(parts, tensors[0]), *launches]
    return HOST + "\n\n" + "\n".join([*declaration(task), *body]) + "\n"


def _allocations(parts: Sequence[tuple[KernelText, Signature]], first: str) -> list[str]:
    """Tensors that kernels leave for the kernels after them."""
    found = dict.fromkeys(m for text, _ in parts for m in text.used_tensors.values() if m.workspace)
    lines = []
    for matrix in found:
        shape = ", ".join(python_text(e, CDIV) for e in matrix.workspace)
        made = f"{matrix.tensor} = torch.empty(({shape},), dtype=torch.float32, device={first}.device)"
        lines += statement(made, 1)
    return lines


def _launch(text: KernelText, signature: Signature, first: str) -> list[str]:
    lines: list[str] = []
    if signature.factors:
        values = {name: python_text(text.factors[name], CDIV) for name in signature.factors}
        lines.append(f"fold = {' and '.join(f'{value} > 0' for value in values.values())}")
        lines += [f"{name} = float({value}) if fold else 1.0" for name, value in values.items()]
    lines.append(f"shared = {_shared(text)}")
    constants = ", ".join(f"{{{name}}}" for name in signature.constants)
    fold = "fold" if signature.factors else "True"
    flags = "".join(f", {{str({flag}).lower()}}" for flag in ("aligned", fold, "choice.optimize == 3"))
    head = [line for code in lines for line in statement(code, 1)]
    head += [
        "    name = (",
        f'        f"{text.function}<{{TYPES[{first}.dtype]}}, {constants}, "',
        f'        f"{{choice.warps}}, {{choice.stages - 1}}{flags}>"',
        "    )",
        "    # the highest level, down from this one, at which nothing spills",
        "    kernel = SOURCE.kernel(name, optimize=range(choice.optimize, 0, -1))",
    ]
    grid = ", ".join(expression(python_text(a.extent, CDIV)) for a in text.grid_axes()) or "1"
    groups = [
        [name, *(_stride(name, axis, matrix) for axis in axes)] for name, matrix, axes in signature.tensors
    ]
    groups.append([*(name for name, _ in signature.scalars), *signature.factors])
    return [*head, *call(f"kernel[({grid}), 32 * choice.warps, shared]", groups, 1)]


def _stride(name: str, axis: int, matrix: ir.Matrix) -> str:
    stride = f"{name}.stride({axis})"
    return stride if axis == matrix.axes.index("row") else f"c_int64({stride})"


def _shared(text: KernelText) -> str:
    """Python of the bytes of shared memory a block asks for."""
    parts = []
    for tile in text.live_tiles():
        if tile.level is Level.SHARED:
            rows, cols = (expression(python_text(n, CDIV)) for n in tile.shape)
            places = text.slots.get(tile)
            count = "" if places is None else f", {places.replace('STAGES', 'choice.stages - 1')}"
            if count.endswith("choice.stages - 1 + 1"):
                count = ", choice.stages"
            parts.append(f"_bytes({rows}, {cols}{count})")
    return " + ".join(parts) or "0"
