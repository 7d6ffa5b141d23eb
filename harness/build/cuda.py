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
from typing import Any

import torch
from torch import Tensor

from harness.build.nvrtc import CompileError, CompilerMissing, Recipe, compiled
from harness.build.products import Product

__all__ = ["CompileError", "CompilerMissing", "Kernel", "LaunchError", "Source", "device_arch", "tensor_map"]

# Set by whoever runs candidates: where products are kept, and which architecture is compiled for.
CACHE_VARIABLE, ARCH_VARIABLE = "ATTNBENCH_CUDA_CACHE", "ATTNBENCH_CUDA_ARCH"
HEADER_SUFFIXES = (".cuh", ".h", ".hpp")
STATIC_SHARED_BYTES = 48 << 10  # beyond that a kernel has to opt in

Dim = int | tuple[int, ...]


class LaunchError(RuntimeError):
    """The driver refused code or a launch; the text says what was asked for."""


def device_arch() -> str:
    """What to compile for: the variable's word, else the current device's, with its own instructions."""
    given = os.environ.get(ARCH_VARIABLE)
    if given:
        return given
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


class Source:
    """A CUDA file beside `file`; headers beside it can be included by name."""

    def __init__(self, file: str, name: str = "kernel.cu") -> None:
        self._path = Path(file).parent / name
        self._kernels: dict[tuple[str, tuple[tuple[str, str], ...], str, int], Kernel] = {}

    def recipe(self, name: str, arch: str, defines: Mapping[str, object] | None = None) -> Recipe:
        """What a compilation of one kernel depends on; raises CompileError where the file is missing."""
        folder = self._path.parent
        try:
            text = self._path.read_text(encoding="utf-8")
            beside = sorted(f for f in folder.iterdir() if f.suffix in HEADER_SUFFIXES)
            headers = tuple((f.name, f.read_text(encoding="utf-8")) for f in beside)
        except (OSError, UnicodeDecodeError) as error:
            raise CompileError(f"{self._path.name} cannot be read: {error}") from error
        pairs = tuple(sorted((key, str(value)) for key, value in (defines or {}).items()))
        return Recipe(text, arch, (name,), pairs, headers, self._path.name)

    def kernel(self, name: str, defines: Mapping[str, object] | None = None) -> Kernel:
        """The kernel that C++ calls `name` (`f`, `ns::f`, `f<64, half>`), with macros; compiled once.

        Raises CompileError with the compiler's log, CompilerMissing, LaunchError.
        """
        device = torch.cuda.current_device()
        key = (name, tuple(sorted((k, str(v)) for k, v in (defines or {}).items())), device_arch(), device)
        found = self._kernels.get(key)
        if found is None:
            cache = Path(os.environ.get(CACHE_VARIABLE) or _own_cache())
            product = compiled(self.recipe(name, device_arch(), defines), cache)
            found = self._kernels[key] = Kernel(product, name)
        return found


def _own_cache() -> Path:
    """A folder of this user's alone, where nobody said which."""
    return Path(tempfile.gettempdir()) / f"attnbench-cuda-{os.getuid()}"


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

    def __getitem__(self, launch: tuple[Dim, Dim] | tuple[Dim, Dim, int]) -> Launch:
        grid, block, *shared = launch
        return Launch(self, _three(grid), _three(block), shared[0] if shared else 0)

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


def _three(dim: Dim) -> tuple[int, int, int]:
    sizes = (dim,) if isinstance(dim, int) else tuple(dim)
    if not 1 <= len(sizes) <= 3 or any(n < 1 for n in sizes):
        raise LaunchError(f"a grid or a block has one to three sizes from 1 on, not {dim!r}")
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def passed(argument: object) -> Any:
    """An argument as C has it; raises TypeError for what has no such form."""
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, bool):
        return ctypes.c_bool(argument)
    if isinstance(argument, int):
        if not -(2**31) <= argument < 2**31:
            raise TypeError(f"{argument} is no 32-bit int; pass ctypes.c_int64({argument}) for a 64-bit one")
        return ctypes.c_int32(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, ctypes._SimpleCData | ctypes.Structure | ctypes.Array):
        return argument
    raise TypeError(f"a kernel takes no {type(argument).__name__}; pass a tensor, a number or a ctypes value")


# --- tensor maps, for the copy engine of sm_90 ------------------------------------------------------------


class TensorMap(ctypes.Structure):
    """A CUtensorMap, to be declared as `const __grid_constant__ CUtensorMap`."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


SWIZZLES = (0, 32, 64, 128)  # bytes


def tensor_map(tensor: Tensor, box: Sequence[int], swizzle: int = 128) -> TensorMap:
    """Of a tensor, its last axis contiguous, in boxes of so many elements along each axis (at most five).

    What lies outside the tensor is read as 0. Raises LaunchError.
    """
    from cuda.bindings import driver

    rank = tensor.dim()
    if len(box) != rank or swizzle not in SWIZZLES or tensor.stride(-1) != 1:
        raise LaunchError(
            f"a box of {len(box)} sizes, swizzle {swizzle}, strides {tensor.stride()}: no tensor map"
        )
    kinds = driver.CUtensorMapDataType
    kind = {
        torch.float16: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        torch.bfloat16: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float32: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }[tensor.dtype]
    sizes = [driver.cuuint64_t(n) for n in reversed(tensor.shape)]
    strides = [driver.cuuint64_t(s * tensor.element_size()) for s in reversed(tensor.stride()[:-1])]
    boxes, ones = [driver.cuuint32_t(n) for n in reversed(box)], [driver.cuuint32_t(1)] * rank
    status, made = driver.cuTensorMapEncodeTiled(
        kind, rank, tensor.data_ptr(), sizes, strides, boxes, ones,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle(SWIZZLES.index(swizzle)),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip
    if int(status) != 0:
        raise LaunchError(f"no tensor map of {tuple(tensor.shape)} in boxes of {tuple(box)}: {status!r}")
    return TensorMap((ctypes.c_uint64 * 16)(*(int(word) for word in made.opaque)))
