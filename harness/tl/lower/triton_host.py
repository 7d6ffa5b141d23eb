"""Owns the host side of a Triton candidate: `attention`, which chooses tiles and launches the kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.tl import ir
from harness.tl.lower.host import declaration, largest, python_text, sizes
from harness.tl.lower.python_layout import call, expression, statement
from harness.tl.lower.triton_loops import KernelText
from harness.tl.lower.triton_memory import Access
from harness.tl.lower.triton_signature import Signature
from harness.tl.problem import SIZES, TaskLike

HOST = '''

@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) on a CPU, where Triton interprets."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _choose(element_size: int, dim: int, seq: int) -> Choice:
    """That of the smallest head dimension large enough, and there of the longest sequences not longer."""
    rows = [row for row in CHOICES if row[0] == element_size] or list(CHOICES)
    dims = [row[1] for row in rows if row[1] >= dim] or [max(row[1] for row in rows)]
    rows = [row for row in rows if row[1] == min(dims)]
    started = [row for row in rows if row[2] <= seq] or rows
    return max(started, key=lambda row: row[2])[3]


def _padded(n: int) -> int:
    """The extent of a tile that holds n elements: a power of two."""
    return max(16, triton.next_power_of_2(n))


def _aligned(*tensors: Tensor) -> bool:
    """Descriptors want 16-byte addresses and strides, and a contiguous last axis."""
    return all(
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(n * t.element_size() % 16 == 0 for n in t.stride()[:-1])
        for t in tensors
    )


def _descriptor(t: Tensor, order: tuple[int, ...], block: list[int]) -> TensorDescriptor:
    """Tiles of the tensor, its axes in that order."""
    view = t.permute(order)
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block)


OPERANDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
'''


def host_side(program: ir.Program, task: TaskLike, parts: Sequence[tuple[KernelText, Signature]]) -> str:
    """Source of `attention` and what it calls; `parts` are the program's kernels in order."""
    launches = [_launch(kernel, *part, task) for kernel, part in zip(program.kernels, parts, strict=True)]
    lines = [*_allocations(parts, task), *(line for launch in launches for line in launch)]
    used = set(re.findall(r"\w+", "\n".join(lines)))
    opening = [line for name, line in _opening(task).items() if name in used]
    if tiles := [name for name, _ in program.parameters if name in used]:
        opening.append(f"{', '.join(tiles)} = {', '.join(f'choice.{name}' for name in tiles)}")
    lines = [line for code in [*sizes(task), *opening] for line in statement(code, 1)] + lines
    return HOST + "\n\n" + "\n".join([*declaration(task), *lines]) + "\n"


def _opening(task: TaskLike) -> dict[str, str]:
    """What the launches may need, by name: those that none needs are left out."""
    tensors = [t.name for t in task.tensors]
    first = tensors[0]
    dims, lengths = largest(task, "dim", "dim_v"), largest(task, "seq_q", "seq_k")
    hopper = f"_capability({first}.device) >= (9, 0)"
    return {
        "group": "group = heads // kv_heads",
        "choice": f"choice = _choose({first}.element_size(), {dims}, {lengths})",
        "tma": f"tma = {hopper} and {first}.element_size() == 2 and _aligned({', '.join(tensors)})",
        "precision": f'precision = "ieee" if {first}.dtype == torch.float32 else "tf32"',
    }


def _allocations(parts: Sequence[tuple[KernelText, Signature]], task: TaskLike) -> list[str]:
    """Tensors that kernels leave for the kernels after them."""
    matrices = [a.matrix for text, _ in parts for a in text.accesses.all() if a.matrix.workspace]
    lines = []
    for matrix in dict.fromkeys(matrices):
        shape = ", ".join(python_text(e) for e in matrix.workspace)
        device = f"{task.tensors[0].name}.device"
        made = f"{matrix.tensor} = torch.empty(({shape},), dtype=torch.float32, device={device})"
        lines += statement(made, 1)
    return lines


def _launch(kernel: ir.Kernel, text: KernelText, signature: Signature, task: TaskLike) -> list[str]:
    grid = expression(" * ".join(python_text(a.extent) for a in kernel.grid) or "1")
    lines = [line for code in _preparation(text, signature) for line in statement(code, 1)]
    operands = _operands(text, signature, task.tensors[0].name)
    return [*lines, *call(f"{text.function}[({grid},)]", operands, 1)]


def _preparation(text: KernelText, signature: Signature) -> list[str]:
    """What a launch passes that has no name yet: padded sizes, factors of scores, descriptors."""
    lines = [f"{name} = {python_text(size)}" for size, name in text.sizes.items() if name not in SIZES]
    padded = [name for name in text.sizes.values() if f"{name}_p" in signature.constants]
    if padded:
        calls = ", ".join(f"_padded({name})" for name in padded)
        lines.append(f"{', '.join(f'{name}_p' for name in padded)} = {calls}")
    if signature.factors:
        lines.append(f"fold = {' and '.join(f'{text.factors[f]} > 0' for f in signature.factors)}")
        lines += [f"{f} = {text.factors[f]} if fold else 1.0" for f in signature.factors]
    for access, _ in signature.matrices:
        tensor = access.matrix.tensor
        if _by_descriptor(access):
            order = (*access.fixed, access.row_axis, access.col_axis)
            block = ", ".join([*("1" for _ in access.fixed), *(text.block(n) for n in access.shape)])
            made = f"_descriptor({tensor}, {order}, [{block}])"
            lines.append(f"{access.argument} = {made} if tma else {tensor}")
    return lines


def _by_descriptor(access: Access) -> bool:
    return access.tma and not access.matrix.workspace


def _operands(text: KernelText, signature: Signature, first: str) -> list[list[str]]:
    """What is passed for each group of the kernel's parameters."""
    inputs = [a.matrix.tensor for a, _ in signature.matrices if not a.matrix.workspace]
    given = {
        "OPERAND": f"OPERANDS[{inputs[0] if inputs else first}.dtype]",
        "PRECISION": "precision",
        "TMA": "tma",
        "FOLD": "fold",
        "OVERLAP": "bool(choice.overlap)",
    }
    for name, (whole, stop) in text.evens.items():
        given[name] = expression(f"{python_text(whole)} >= {python_text(stop)}")
    groups = []
    for access, strides in signature.matrices:
        tensor = access.matrix.tensor
        axes = (stride.rsplit("_s", 1)[1] for stride in strides)
        passed = access.argument if _by_descriptor(access) else tensor
        groups.append([passed, *(f"{tensor}.stride({axis})" for axis in axes)])
    groups.append([*signature.scalars, *signature.factors])
    groups.append([f"{name}={given.get(name, name)}" for name in signature.constants])
    groups.append(["num_warps=choice.warps", "num_stages=choice.stages"])
    return groups
