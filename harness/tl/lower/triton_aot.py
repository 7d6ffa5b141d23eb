"""Owns compiling a Triton candidate on a machine without a GPU, and what the compiler says of it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from harness.targets import Target
from harness.tl.lower.lowered import Lowered
from harness.tl.problem import TaskLike, WorkloadLike

_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_POINTER = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|mma\.sync\S*|tcgen05\.mma)")
_AGAIN = threading.Lock()  # one compilation at a time, where several at once went wrong
_USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


class CompileError(ValueError):
    """The Triton compiler refused the candidate; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel compiled for one architecture. `spill_bytes`: local memory a thread needs, by ptxas."""

    kernel: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core: str  # the instruction in the PTX, "" where there is none
    warps: int
    stages: int
    ptx: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a candidate launches one of its kernels."""

    kernel: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def launches(
    lowered: Lowered,
    task: TaskLike,
    workload: WorkloadLike,
    capability: tuple[int, int],
    device: Mapping[str, Any] | None = None,
) -> tuple[ModuleType, list[Launch]]:
    """What `attention` would launch on a device of that capability, without launching it.

    `device`: what the module is to find, by name, in place of what asks the device.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = lowered.write(Path(folder)) / "attention.py"
        spec = importlib.util.spec_from_file_location(
            f"lowered_{abs(hash(lowered.files['attention.py']))}", path
        )
        if spec is None or spec.loader is None:
            raise CompileError(f"{lowered.name} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # the compiler reads the source through the module
        sys.path.insert(0, folder)  # for what it imports from beside it
        try:
            with _compiling():
                spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
            sys.modules.pop("fallback", None)
        found: list[Launch] = []
        kernels = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
        for name in kernels:
            setattr(module, name, Recorder(name, found))
        vars(module).update({"_capability": lambda _: capability, **(device or {})})
        sizes = workload.sizes
        tensors = {
            t.name: torch.empty([sizes[a] for a in t.axes], dtype=_TORCH[workload.dtype])
            for t in task.tensors
        }
        module.attention(**tensors, scale=workload.softmax_scale, **workload.params)
        for name, kernel in kernels.items():
            kernel.src  # noqa: B018 - read while the file is there
            setattr(module, name, kernel)
    return module, found


class Recorder:
    """In a kernel's place: notes how it is launched, and launches nothing."""

    def __init__(self, name: str, found: list[Launch]) -> None:
        self._name, self._found = name, found

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self._found.append(Launch(self._name, args, kwargs))


@contextmanager
def _compiling() -> Iterator[None]:
    """Triton's interpreter off while kernels are defined, whatever the environment says."""
    import triton

    knobs = getattr(triton, "knobs", None)
    if knobs is None:
        yield
        return
    was = knobs.runtime.interpret
    knobs.runtime.interpret = False
    try:
        yield
    finally:
        knobs.runtime.interpret = was


def compile_for(
    lowered: Lowered, task: TaskLike, workload: WorkloadLike, targets: Mapping[str, tuple[int, int]]
) -> list[Compiled]:
    """Every kernel of the candidate for every architecture; raises CompileError."""
    jobs = []
    for arch, capability in targets.items():
        module, found = launches(lowered, task, workload, capability)
        jobs += [(arch, capability, module, launch) for launch in found]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda job: _compile(*job), jobs))


def architectures(target: Target) -> dict[str, tuple[int, int]]:
    """The architectures that Triton's output is compiled for beside the target's own."""
    known = {"sm_80": (8, 0), "sm_89": (8, 9), "sm_90": (9, 0)}
    if target.capability is not None:
        known[target.arch] = target.capability
    return dict(sorted(known.items()))


def _compile(arch: str, capability: tuple[int, int], module: ModuleType, launch: Launch) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(module, launch.kernel)
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    options = {k: launch.kwargs[k] for k in ("num_warps", "num_stages")}
    given = dict(zip(kernel.arg_names, launch.args, strict=False)) | dict(launch.kwargs)
    for at, param in enumerate(kernel.params):
        value = given[param.name]
        kind = "constexpr" if param.is_constexpr or (isinstance(value, int) and value == 1) else _type(value)
        signature[param.name] = kind
        if kind == "constexpr":
            constants[at,] = value
        elif kind.startswith("*") or (kind == "i32" and value % 16 == 0):
            attrs[at,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attrs)
    number = capability[0] * 10 + capability[1]
    try:
        try:
            done = triton.compile(source, target=GPUTarget("cuda", number, 32), options=options)
        except SystemError:  # CPython 3.11: threads that parse at once may disturb each other
            with _AGAIN:
                done = triton.compile(source, target=GPUTarget("cuda", number, 32), options=options)
    except Exception as error:  # whatever the compiler raises is its answer
        raise CompileError(f"{launch.kernel} for {arch}: {type(error).__name__}: {error}") from error
    registers, spills = resources(done.asm["cubin"])
    ptx = done.asm["ptx"]
    core = _TENSOR_CORE.search(ptx)
    return Compiled(launch.kernel, arch, registers, spills, done.metadata.shared, core[1] if core else "",
                    options["num_warps"], options["num_stages"], ptx)  # fmt: skip


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTER[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    dtype = _POINTER[value.base.dtype].removeprefix("*")
    return f"tensordesc<{dtype}{list(value.block_shape)}>"


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory it needs (its stack), by cuobjdump of Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return 0, 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=False
        ).stdout
    found = _USAGE.search(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
