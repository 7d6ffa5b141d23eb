"""Owns telling a kernel of one's own from a library's, by the names of what ran and the time it took.

No source is judged: what ran is. Sources only say which names are a candidate's own, so that a kernel of
its own is not taken for a library's that is called alike.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from harness.records import KernelRecord

SHARE = 0.5  # of the time: operators and products that take more have done the work
# A kernel of one's own has no use for a whole attention kernel of a library; what decoys and preparations
# take beside it excuses nothing.
ATTENTION_SHARE = 0.1
# The same of operators on a CPU, where calling one costs more than a small one's work. Who hides a library's
# attention behind fifty times as much work has gained nothing.
ATTENTION_SHARE_CPU = 0.02

# Parts of attention kernels' names in libraries, as seen in kernel records of a GPU. All are C++ or
# generated names that a function of one's own has no reason to carry.
_ATTENTION = {
    "cuDNN": ("cudnn_generated", "cudnn::"),
    "flash-attention": ("flash::flash_", "flash::compute", "pytorch_flash::", "FlashAttentionForward"),
    "PyTorch's efficient attention": ("fmha_cutlass", "PyTorchMemEffAttention"),
    "FlexAttention": ("triton_tem_fused", "flex_attention"),
}
# Kernels that are PyTorch's or a library's and no attention: work done by them is not work of a kernel that
# claims to be written in Triton or CUDA.
_PLAIN = {
    "PyTorch's own operators": ("at::native::", "at_cuda_detail", "cub::", "Memcpy", "Memset", "triton_poi_",
                                "triton_red_", "triton_per_", "triton_mm"),
    "cuBLAS": ("nvjet", "gemm", "gemv", "xmma", "cublas", "splitKreduce"),
}  # fmt: skip
# The same as PyTorch's profiler names operators on a CPU.
_ATTENTION_ON_A_CPU = "PyTorch's attention"
_ATTENTION_OPERATORS = ("scaled_dot_product", "flash_attention", "flex_attention", "Torch-Compiled")

OWN_LANGUAGE = ("triton", "cuda", "gluon", "numba")  # backends whose kernels are written, not composed


def dispatched_to(
    kernels: Sequence[KernelRecord], backend: str, own: Sequence[str] = (), compiled: Sequence[str] = ()
) -> str | None:
    """The library that did the work by its share of the device time, or None.

    `own`: names of the kernels that the candidate's sources define; `compiled`: of those that the judge
    compiled of it, as C++ names them. A candidate of the torch backend is made of PyTorch's operators;
    only whole attention kernels are a library's there.
    """
    shares: dict[str, float] = {}
    paths = {_path(name) for name in compiled}
    for kernel in kernels:
        library = None if _path(kernel.name) in paths else _library(kernel.name, backend, own)
        if library:
            shares[library] = shares.get(library, 0.0) + kernel.time_ms
    return _most(shares, sum(k.time_ms for k in kernels))


def dispatched_operators(operators: Mapping[str, float], wall_ms: float, backend: str) -> str | None:
    """The same on a CPU, of outermost operators of PyTorch in a call, in ms.

    Whole attention operators beside the other operators, where a kernel is made of such; in a language of
    its own, all operators beside what the call took.
    """
    shares: dict[str, float] = {}
    for name, ms in operators.items():
        if any(mark in name for mark in _ATTENTION_OPERATORS):
            shares[_ATTENTION_ON_A_CPU] = shares.get(_ATTENTION_ON_A_CPU, 0.0) + ms
        elif backend in OWN_LANGUAGE:
            shares["PyTorch's own operators"] = shares.get("PyTorch's own operators", 0.0) + ms
    return _most(shares, wall_ms if backend in OWN_LANGUAGE else sum(operators.values()))


def own_kernels(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Names of the kernels that sources define: `__global__` functions, functions under a jit."""
    found: list[str] = []
    for name, content in files.items():
        text = content.decode(errors="replace")
        if name.endswith((".cu", ".cuh", ".h")):
            found += re.findall(r"__global__[^;{(]*?(?:\([^)]*\)[^;{(]*?)*?(\w+)\s*\(", text)
        elif name.endswith(".py"):
            found += re.findall(r"__global__[^;{(]*?\b(\w+)\s*\(", text)  # CUDA within a string
            found += _under_a_jit(text)
    return tuple(dict.fromkeys(found))


def _under_a_jit(text: str) -> list[str]:
    try:
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [f.name for f in functions if any("jit" in ast.unparse(d) for d in f.decorator_list)]


def _library(name: str, backend: str, own: Sequence[str]) -> str | None:
    for library, marks in _ATTENTION.items():
        if any(mark in name for mark in marks):
            return library
    if backend not in OWN_LANGUAGE or _base(name) in own:
        return None
    return next((lib for lib, marks in _PLAIN.items() if any(mark in name for mark in marks)), None)


def _path(name: str) -> str:
    """`ns::attention` of `void ns::attention<float, 64>(float const*)`."""
    return name.removeprefix("void ").partition("<")[0].partition("(")[0].strip()


def _base(name: str) -> str:
    return _path(name).rpartition("::")[2]


def _most(shares: Mapping[str, float], total: float) -> str | None:
    whole = {name: ms for name, ms in shares.items() if name in (*_ATTENTION, _ATTENTION_ON_A_CPU)}
    least = ATTENTION_SHARE_CPU if _ATTENTION_ON_A_CPU in whole else ATTENTION_SHARE
    for found, share in ((whole, least), (shares, SHARE)):
        if found and total > 0 and sum(found.values()) > share * total:
            return max(found, key=lambda library: found[library])
    return None
