"""Owns TL8xx: types that a target does not compute, sums below f32, operands of different types."""

from __future__ import annotations

from collections.abc import Iterator

from harness.targets import Target
from harness.tl import ir
from harness.tl.diagnostics import Finding, finding
from harness.tl.syntax import Pos

_SINCE = {"bf16": (8, 0), "tf32": (8, 0), "fp8": (8, 9)}
_NARROW = frozenset({"fp16", "bf16", "fp8"})


def check_types(program: ir.Program, target: Target | None, dtype: str = "fp16") -> list[Finding]:
    """What is wrong with the types that the program asks for; `dtype` is that of the task's operands."""
    found: list[Finding] = []
    places: dict[ir.Tile, Pos] = {}
    if target is not None:
        found += _unsupported(dtype, Pos(1, 1), "operands have it", target)
    for kernel in program.kernels:
        for node in ir.nodes(kernel.body):
            pos = node.source.pos if node.source is not None else Pos(1, 1)
            for tile in ir.writes(node):
                places.setdefault(tile, pos)
            if target is not None:
                for asked in _casts(node):
                    found += _unsupported(asked, pos, "a cast makes it", target)
            if isinstance(node, ir.Gemm):
                found += _gemm(node, pos, places)
        if target is not None:
            for tile in kernel.tiles:
                if tile.dtype is not None:
                    found += _unsupported(
                        tile.dtype, places.get(tile, Pos(1, 1)), f"`{tile.name}` has it", target
                    )
    return list(dict.fromkeys(found))


def _gemm(node: ir.Gemm, pos: Pos, places: dict[ir.Tile, Pos]) -> Iterator[Finding]:
    result, a, b = node.result, node.a.tile, node.b.tile
    if result.dtype in _NARROW:
        yield finding(
            "TL802",
            places.get(result, pos),
            f"`{result.name}` sums up products in {result.dtype}",
            f"allocate `{result.name}` without a dtype, or as fp32",
        )
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:
        yield finding(
            "TL803",
            pos,
            f"`{a.name}` is {a.dtype} and `{b.name}` is {b.dtype}; a product takes one type",
            f"Compute Cast {a.name} to {b.dtype}, or leave both types open",
        )


def _casts(node: ir.Node) -> Iterator[str]:
    if isinstance(node, ir.Map):
        for part in ir.walk(node.expr):
            if isinstance(part, ir.Op) and part.fn.startswith("cast_") and part.fn != "cast_operand":
                yield part.fn.removeprefix("cast_")


def _unsupported(dtype: str, pos: Pos, why: str, target: Target) -> Iterator[Finding]:
    since, has = _SINCE.get(dtype), target.capability
    if since is not None and has is not None and has < since:
        yield finding(
            "TL801",
            pos,
            f"{target.name} ({target.arch}) does not compute {dtype}; {why}",
            f"{dtype} needs sm_{since[0]}{since[1]} or later; use fp16",
        )
