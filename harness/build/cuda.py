"""Owns CUDA C++ in a candidate's process: a source file becomes kernels that launch on torch's stream.

A candidate's `attention.py` reads:

    from harness.build.cuda import Source

    SOURCE = Source(__file__, "kernel.cu")

    def attention(q, k, v, out, *, scale):
        kernel = SOURCE.kernel(f"attention<{q.shape[-1]}>")
        kernel[grid, block, shared_bytes](q, k, v, out, scale)

A kernel is compiled when it is first asked for, for the architecture of the device, and found again after.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from harness.build.launches import PLANNER, Dim, LaunchError, PlannedKernel, passed, three
from harness.build.nvrtc import CompileError, CompilerMissing, Recipe
from harness.build.products import ARCH_VARIABLE, CACHE_VARIABLE, READY_VARIABLE, Product
from harness.build.resources import KernelFacts, facts, first_without_spills
from harness.build.tensor_maps import tensor_map

__all__ = ["CompileError", "CompilerMissing", "Kernel", "LaunchError", "Source", "device_arch", "tensor_map"]

HEADER_SUFFIXES = (".cuh", ".h", ".hpp")
STATIC_SHARED_BYTES = 48 << 10  # beyond that a kernel has to opt in


def device_arch() -> str:
    """What to compile for: the variable's word, else the current device's, with its own instructions."""
    planner = PLANNER.get()
    if planner is not None:
        return planner.arch
    given = os.environ.get(ARCH_VARIABLE)
    if given:
        return given
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


class Source:
    """A CUDA file beside `file`; headers beside it can be included by name."""

    def __init__(self, file: str, name: str = "kernel.cu") -> None:
        self._path = Path(file).parent / name
        self._kernels: dict[tuple[object, ...], Kernel] = {}

    def recipe(
        self, name: str, arch: str, defines: Mapping[str, object] | None = None, optimize: int = 3
    ) -> Recipe:
        """What a compilation of one kernel depends on; raises CompileError where the file is missing."""
        folder = self._path.parent
        try:
            text = self._path.read_text(encoding="utf-8")
            beside = sorted(f for f in folder.iterdir() if f.suffix in HEADER_SUFFIXES)
            headers = tuple((f.name, f.read_text(encoding="utf-8")) for f in beside)
        except (OSError, UnicodeDecodeError) as error:
            raise CompileError(f"{self._path.name} cannot be read: {error}") from error
        pairs = tuple(sorted((key, str(value)) for key, value in (defines or {}).items()))
        return Recipe(text, arch, (name,), pairs, headers, self._path.name, optimize)

    def kernel(
        self, name: str, defines: Mapping[str, object] | None = None, optimize: int | Sequence[int] = 3
    ) -> Kernel:
        """The kernel that C++ calls `name` (`f`, `ns::f`, `f<64, half>`), with macros; compiled once.

        `optimize`: ptxas' level, or several: the first at which nothing spills, else the last. Raises
        CompileError with the compiler's log, CompilerMissing, LaunchError. While launches are planned, gives
        what plans them.
        """
        levels = (optimize,) if isinstance(optimize, int) else tuple(optimize)
        planner = PLANNER.get()
        if planner is not None:
            recipes = tuple(self.recipe(name, planner.arch, defines, level) for level in levels)
            return cast(Kernel, PlannedKernel(recipes, planner))
        device = torch.cuda.current_device()
        macros = tuple(sorted((k, str(v)) for k, v in (defines or {}).items()))
        key = (name, macros, device_arch(), levels, device)
        found = self._kernels.get(key)
        if found is None:
            cache = Path(os.environ.get(CACHE_VARIABLE) or _own_cache())
            recipes = tuple(self.recipe(name, device_arch(), defines, level) for level in levels)
            ready = os.environ.get(READY_VARIABLE)
            _, product = first_without_spills(recipes, cache, ready=Path(ready) if ready else None)
            found = self._kernels[key] = Kernel(product, name)
        return found


def _own_cache() -> Path:
    """A folder of this user's alone, where nobody said which."""
    return Path(tempfile.gettempdir()) / f"attnbench-cuda-{os.getuid()}"


LOADED: list[Kernel] = []  # every kernel that this process has loaded, in order


class Kernel:
    """A loaded kernel: `kernel[grid, block, shared_bytes](arguments...)` launches it on torch's stream.

    Arguments: a tensor is its address, int is a 32-bit int, float a float, bool a bool; anything of ctypes
    is passed as it is, so `ctypes.c_int64(n)` is a 64-bit one and `tensor_map(...)` a CUtensorMap.
    """

    def __init__(self, product: Product, name: str) -> None:
        from cuda.bindings import driver

        torch.cuda.current_stream()  # the context must be there
        self.product, self.name, self._driver = product, name, driver
        options: list[list[Any]] = [[], []]
        self._library = self._ask(
            driver.cuLibraryLoadData(product.code, *options, 0, *options, 0),
            f"load {name} for {product.arch}",
        )
        symbol = product.lowered[name].encode()
        self._kernel = self._ask(driver.cuLibraryGetKernel(self._library, symbol), f"find {name}")
        self._function = self._ask(driver.cuKernelGetFunction(self._kernel), f"load {name}")
        self._shared = STATIC_SHARED_BYTES
        self.launched: tuple[int, int] | None = None  # threads, bytes, of the last launch
        LOADED.append(self)

    @property
    def facts(self) -> KernelFacts | None:
        """Registers, spills, tensor-core instructions; None where the driver compiles the PTX."""
        symbol = self.product.lowered[self.name]
        return next((f for f in facts(self.product) if f.symbol == symbol), None)

    def __getitem__(self, launch: tuple[Dim, Dim] | tuple[Dim, Dim, int]) -> Launch:
        grid, block, *shared = launch
        return Launch(self, three(grid), three(block), shared[0] if shared else 0)

    def launch(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, args: Sequence[object]
    ) -> None:
        """Enqueue on torch's current stream; raises LaunchError, TypeError."""
        driver = self._driver
        if shared > self._shared:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            what = f"give {self.name} {shared} bytes of shared memory"
            self._ask(driver.cuFuncSetAttribute(self._function, attribute, shared), what)
            self._shared = shared
        self.launched = (block[0] * block[1] * block[2], shared)
        values = [passed(argument) for argument in args]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
        stream = torch.cuda.current_stream().cuda_stream
        self._ask(
            driver.cuLaunchKernel(
                self._function, *grid, *block, shared, stream, ctypes.addressof(pointers), 0
            ),
            f"launch {self.name} with grid {grid}, block {block}, {shared} bytes of shared memory",
        )

    def _ask(self, answer: tuple[Any, ...], what: str) -> Any:
        if int(answer[0]) != 0:
            name = self._driver.cuGetErrorName(answer[0])[1]
            raise LaunchError(f"cannot {what}: {name.decode() if name else answer[0]}")
        return answer[1] if len(answer) > 1 else None


class Launch:
    """A kernel with its launch settled."""

    def __init__(
        self, kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int
    ) -> None:
        self._kernel, self._grid, self._block, self._shared = kernel, grid, block, shared

    def __call__(self, *args: object) -> None:
        self._kernel.launch(self._grid, self._block, self._shared, args)
