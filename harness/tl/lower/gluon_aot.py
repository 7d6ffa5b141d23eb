"""Owns compiling a Gluon candidate for Hopper without a GPU, and what the compiler says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from harness.tl.lower.lowered import Lowered
from harness.tl.lower.triton_aot import CompileError, Launch, launches, resources
from harness.tl.problem import TaskLike, WorkloadLike

HOPPER = (9, 0)
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32"}
_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel for sm_90a. `spill_bytes`: local memory a thread needs, by ptxas."""

    kernel: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    cubin: bytes
    ptx: str

    def instructions(self) -> list[str]:
        """The machine code's, in order, without operands; empty without a disassembler."""
        disassembler = tool("nvdisasm")
        if disassembler is None:
            return []
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            run = subprocess.run([disassembler, file.name], capture_output=True, text=True, check=False)
        return [name for name in _OPCODE.findall(run.stdout) if name[0] != "."]

    def opcodes(self) -> Counter[str]:
        """How often each instruction stands in the machine code, whatever its variant."""
        return Counter(name.split(".")[0] for name in self.instructions())


def compile_for_hopper(lowered: Lowered, task: TaskLike, workload: WorkloadLike) -> list[Compiled]:
    """Every kernel that `attention` launches for the workload; raises CompileError."""
    device = {
        "_processors": lambda _: 132,
        "_counter": lambda _: torch.zeros(1, dtype=torch.int32),
        "plain": _no_fallback,
    }
    module, found = launches(lowered, task, workload, HOPPER, device)
    return [_compile(module, launch) for launch in found]


def _no_fallback(*_: Any, **__: Any) -> None:
    raise CompileError("the candidate would fall back to its Triton kernel")


def _compile(module: ModuleType, launch: Launch) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = getattr(module, launch.kernel)
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    given = dict(zip(kernel.arg_names, launch.args, strict=False)) | dict(launch.kwargs)
    for at, param in enumerate(kernel.params):
        value = given[param.name]
        special = isinstance(value, int) and not param.do_not_specialize
        if param.is_constexpr or (special and value == 1):
            signature[param.name] = "constexpr"
            constants[at,] = value
            continue
        signature[param.name] = _type(value)
        if isinstance(value, torch.Tensor) or (special and value % 16 == 0):
            attrs[at,] = [["tt.divisibility", 16]]
    source = GluonASTSource(kernel, signature, constants, attrs)
    try:
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    except Exception as error:  # whatever the compiler raises is its answer
        raise CompileError(f"{launch.kernel}: {type(error).__name__}: {error}") from error
    registers, spills = resources(done.asm["cubin"])
    return Compiled(
        launch.kernel, registers, spills, done.metadata.shared, done.asm["cubin"], done.asm["ptx"]
    )


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"


def tool(name: str) -> str | None:
    """The path of a tool of Triton's own, such as `nvdisasm`; None where it has none."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if path.exists() else None
