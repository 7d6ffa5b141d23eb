"""Owns how tiles lie in memory in a Numba kernel: which need no copy, which are kept transposed."""

from __future__ import annotations

from collections.abc import Iterator

from harness.tl import ir


def aliases(body: tuple[ir.Node, ...]) -> dict[ir.Tile, ir.Tile]:
    """Tiles that a Move fills and nothing else, with the tile they can share memory with.

    Safe where every read of the target comes after the move, in the move's own block, and nothing
    there writes the source meanwhile: copies from shared to register before a GEMM, mostly.
    """
    writers = [tile for node in ir.nodes(body) for tile in ir.writes(node)]
    readers = [tile for node in ir.nodes(body) for tile in ir.reads(node)]
    found: dict[ir.Tile, ir.Tile] = {}
    for block in _blocks(body):
        for at, node in enumerate(block):
            if not isinstance(node, ir.Move) or node.tile == node.target:
                continue
            rest = list(ir.nodes(block[at + 1 :]))
            read = sum(tile == node.target for later in rest for tile in ir.reads(later))
            if (
                node.tile.shape == node.target.shape
                and node.target.dtype in (None, node.tile.dtype)
                and writers.count(node.target) == 1
                and readers.count(node.target) == read
                and not any(node.tile in ir.writes(later) for later in rest)
            ):
                found[node.target] = found.get(node.tile, node.tile)
    return found


def _blocks(body: tuple[ir.Node, ...]) -> Iterator[tuple[ir.Node, ...]]:
    yield body
    for node in body:
        if isinstance(node, ir.For):
            yield from _blocks(node.body)
        elif isinstance(node, ir.If):
            yield from _blocks(node.then)
            yield from _blocks(node.otherwise)


def transposed(body: tuple[ir.Node, ...], shared: dict[ir.Tile, ir.Tile]) -> frozenset[ir.Tile]:
    """Tiles that are best kept transposed: only loaded, only read as the transposed right operand of GEMMs.

    The right operand is read along its rows, eight rows of the result at a time; turning the tile
    once as it is loaded costs one pass.
    """
    fitting: dict[ir.Tile, bool] = {}
    for node in ir.nodes(body):
        if isinstance(node, ir.Gemm):
            right = shared.get(node.b.tile, node.b.tile)
            fitting[right] = fitting.get(right, True) and node.b.transposed
        others = [node.a.tile, node.result] if isinstance(node, ir.Gemm) else [*ir.reads(node)]
        if isinstance(node, ir.Move) and node.target in shared:
            others = []
        elif isinstance(node, ir.Init):
            others = (
                [node.tile]
                if node.value is not None
                and any(isinstance(p, ir.Ref | ir.Place) for p in ir.walk(node.value))
                else []
            )
        elif not isinstance(node, ir.Load | ir.Gemm):
            others += ir.writes(node)
        for tile in others:
            fitting[shared.get(tile, tile)] = False
    return frozenset(tile for tile, fits in fitting.items() if fits)
