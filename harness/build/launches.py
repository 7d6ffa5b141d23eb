"""Owns how a CUDA kernel is launched: its sizes, its arguments as C has them, launches only planned."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.build.nvrtc import Recipe

Dim = int | tuple[int, ...]


class LaunchError(RuntimeError):
    """The driver refused code or a launch; the text says what was asked for."""


def three(dim: Dim) -> tuple[int, int, int]:
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


# --- launches that are only planned ----------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A launch that would have been: what is compiled for it, and its sizes."""

    recipes: tuple[Recipe, ...]  # the first that compiles without spills is taken
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int  # what the launch asks for besides what is static

    @property
    def threads(self) -> int:
        x, y, z = self.block
        return x * y * z


@dataclass
class Planner:
    """Where launches go while nothing is compiled and nothing is launched."""

    arch: str
    launches: list[Planned]


PLANNER: ContextVar[Planner | None] = ContextVar("PLANNER", default=None)


@contextmanager
def planning(arch: str) -> Iterator[list[Planned]]:
    """While this lasts, kernels are planned for that architecture; needs no GPU and no compiler.

    Gives the list that the launches are added to, in order.
    """
    planner = Planner(arch, [])
    token = PLANNER.set(planner)
    try:
        yield planner.launches
    finally:
        PLANNER.reset(token)


class PlannedKernel:
    """What stands for a kernel while launches are planned."""

    def __init__(self, recipes: tuple[Recipe, ...], planner: Planner) -> None:
        self._recipes, self._planner = recipes, planner

    def __getitem__(self, launch: tuple[Dim, Dim] | tuple[Dim, Dim, int]) -> Any:
        grid, block, *shared = launch
        planned = Planned(self._recipes, three(grid), three(block), shared[0] if shared else 0)

        def record(*args: object) -> None:
            for argument in args:
                passed(argument)
            self._planner.launches.append(planned)

        return record
