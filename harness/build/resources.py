"""Owns what a compiled CUDA kernel takes of a multiprocessor: registers, spills, shared memory, occupancy.

Limits of a multiprocessor are those of NVIDIA's CUDA C++ Programming Guide, table "Technical Specifications
per Compute Capability", and of the occupancy calculator for the granularity in which registers are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.build.nvrtc import CompileError, Recipe, Wrap, compiled
from harness.build.products import Product

_ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_PTX_ENTRY = re.compile(r"^\s*(?:\.visible |\.weak )?\.entry (\w+)", re.MULTILINE)
_TENSOR_CORE = re.compile(r"\b((?:mma\.sync|wgmma\.mma_async|wmma\.mma|tcgen05\.mma)[\w.:]*)")
_COPIES = re.compile(r"\b(cp\.async(?:\.\w+)*|ldmatrix|stmatrix)\b")
WARP = 32
WARPS_AT_ONCE = 4  # one for each of the four parts of a multiprocessor


@dataclass(frozen=True)
class KernelFacts:
    """One kernel on one architecture. `spill_bytes`: stores and loads of registers that did not fit."""

    symbol: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int  # static: what a launch asks for besides is not in it
    tensor_core: tuple[str, ...]  # instructions in its PTX, most frequent first; empty: none
    copies: tuple[str, ...]  # cp.async, ldmatrix, ...: how it moves tiles


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor of an architecture."""

    threads: int
    blocks: int
    shared_bytes: int  # of all blocks together
    reserved_bytes: int  # of shared memory, by the driver, for each block
    registers: int = 65536
    registers_of_warp: int = 256  # granularity
    shared_granularity: int = 128


MULTIPROCESSORS: Mapping[str, Multiprocessor] = {
    "sm_75": Multiprocessor(1024, 16, 64 << 10, 0, shared_granularity=256),
    "sm_80": Multiprocessor(2048, 32, 164 << 10, 1 << 10),
    "sm_86": Multiprocessor(1536, 16, 100 << 10, 1 << 10),
    "sm_89": Multiprocessor(1536, 24, 100 << 10, 1 << 10),
    "sm_90": Multiprocessor(2048, 32, 228 << 10, 1 << 10),
}


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a launch one multiprocessor holds, and what stops it at that."""

    blocks: int
    warps: int
    share: float  # of the warps there could be
    limited_by: str  # threads, blocks, registers or shared memory


def facts(product: Product) -> tuple[KernelFacts, ...]:
    """Of every kernel of a product; registers and spills only where machine code was made (0 for PTX)."""
    used = _ptxas(product.log)
    found = []
    for symbol, text in _entries(product.ptx).items():
        registers, spills, stack, shared = used.get(symbol, (0, 0, 0, 0))
        found.append(
            KernelFacts(
                symbol, product.arch, registers, spills, stack, shared, _counted(_TENSOR_CORE, text),
                _counted(_COPIES, text),
            )
        )  # fmt: skip
    return tuple(found)


def first_without_spills(
    recipes: Sequence[Recipe], cache: Path, *, ready: Path | None = None, wrap: Wrap = list
) -> tuple[Recipe, Product]:
    """Compiled in turn until kernels keep all in registers; the last where none does. Raises CompileError.

    `ready`, `wrap` as for `compiled`.
    """
    if not recipes:
        raise CompileError("name at least one level of ptxas")
    for recipe in recipes:
        product = compiled(recipe, cache, ready=ready, wrap=wrap)
        if not product.cubin or not any(kernel.spill_bytes for kernel in facts(product)):
            break
    return recipe, product


def _ptxas(log: str) -> dict[str, tuple[int, int, int, int]]:
    """Symbol -> registers, spilled bytes, stack, static shared memory, as ptxas -v says it."""
    starts = list(_ENTRY.finditer(log))
    found = {}
    for n, start in enumerate(starts):
        text = log[start.end() : starts[n + 1].start() if n + 1 < len(starts) else len(log)]
        used, spills, shared = _USED.search(text), _SPILLS.search(text), _SHARED.search(text)
        found[start[1]] = (
            int(used[1]) if used else 0,
            int(spills[2]) + int(spills[3]) if spills else 0,
            int(spills[1]) if spills else 0,
            int(shared[1]) if shared else 0,
        )
    return found


def _entries(ptx: str) -> dict[str, str]:
    starts = list(_PTX_ENTRY.finditer(ptx))
    ends = [s.start() for s in starts[1:]] + [len(ptx)]
    return {start[1]: ptx[start.end() : end] for start, end in zip(starts, ends, strict=True)}


def _counted(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for match in pattern.finditer(text):
        counts[match[1]] = counts.get(match[1], 0) + 1
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def occupancy(arch: str, registers: int, threads: int, shared_bytes: int) -> Occupancy:
    """Of blocks of so many threads with so much shared memory (static and dynamic); 0 blocks: does not fit.

    Raises KeyError for an architecture whose limits are not known.
    """
    sm = MULTIPROCESSORS[arch.removesuffix("a").replace("compute_", "sm_")]
    warps = -(-threads // WARP)
    of_warp = _rounded(max(registers, 1) * WARP, sm.registers_of_warp)
    shared = _rounded(shared_bytes + sm.reserved_bytes, sm.shared_granularity)
    limits = {
        "threads": sm.threads // (warps * WARP),
        "blocks": sm.blocks,
        "registers": sm.registers // of_warp // WARPS_AT_ONCE * WARPS_AT_ONCE // warps,
        "shared memory": sm.shared_bytes // shared if shared else sm.blocks,
    }
    blocks = min(limits.values())
    limited_by = next(name for name, n in limits.items() if n == blocks)
    return Occupancy(blocks, blocks * warps, blocks * warps * WARP / sm.threads, limited_by)


def _rounded(value: int, to: int) -> int:
    return -(-value // to) * to
