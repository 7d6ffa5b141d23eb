"""Owns leaving out copies from shared memory to registers that only feed products: ldmatrix makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.tl import ir
from harness.tl.syntax import Level


def without_copies(kernel: ir.Kernel) -> ir.Kernel:
    """The kernel with products that take operands from shared memory where a copy of them was asked for."""
    everything = list(ir.nodes(kernel.body))
    sources: dict[ir.Tile, ir.Tile] = {}
    for node in everything:
        match node:
            case ir.Move(tile=tile, target=target) if _to_registers(node):
                sources[target] = tile
    for node in everything:
        for tile in list(sources):
            if not (_makes_copy(node, tile, sources[tile]) and _feeds_products(node, tile)):
                del sources[tile]
    return replace(kernel, body=_replaced(kernel.body, sources)) if sources else kernel


def _to_registers(move: ir.Move) -> bool:
    return move.tile.level is Level.SHARED and move.target.level is Level.REGISTER


def _makes_copy(node: ir.Node, tile: ir.Tile, source: ir.Tile) -> bool:
    """Whether the operation writes nothing to the tile but the copy."""
    match node:
        case ir.Move(tile=moved, target=target) if target == tile:
            return moved == source
        case ir.Init(tile=made, value=None) if made == tile:
            return True
    return tile not in ir.writes(node)


def _feeds_products(node: ir.Node, tile: ir.Tile) -> bool:
    """Whether the operation reads the tile as an operand, if it reads it at all."""
    if isinstance(node, ir.Gemm):
        return tile != node.result
    return isinstance(node, ir.Reshape) or tile not in ir.reads(node)


def _replaced(body: tuple[ir.Node, ...], sources: Mapping[ir.Tile, ir.Tile]) -> tuple[ir.Node, ...]:
    out: list[ir.Node] = []
    for node in body:
        match node:
            case ir.Move(target=target) if target in sources:
                continue
            case ir.Init(tile=tile) | ir.Reshape(tile=tile) if tile in sources:
                continue
            case ir.Gemm(a=a, b=b):
                a, b = (replace(o, tile=sources.get(o.tile, o.tile)) for o in (a, b))
                out.append(replace(node, a=a, b=b))
            case ir.For(body=inner):
                out.append(replace(node, body=_replaced(inner, sources)))
            case ir.If(then=then, otherwise=otherwise):
                then, otherwise = _replaced(then, sources), _replaced(otherwise, sources)
                out.append(replace(node, then=then, otherwise=otherwise))
            case _:
                out.append(node)
    return tuple(out)
