"""Owns TL802 of a softmax: maxima, sums, factors and scores kept in registers below f32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.tl import ir
from harness.tl.checks.values import UNKNOWN, Flow
from harness.tl.syntax import Level, Pos

NARROW = frozenset({"fp16", "bf16", "fp8"})


class Narrow:
    """What narrow tiles of one kernel hold; `report` takes code, place, message and fix.

    What only enters products or is stored may be narrow: there it is rounded anyway. So may a maximum that
    is narrow from the start: all that is relative to it is relative to the same number.
    """

    def __init__(self, report: Callable[..., None]) -> None:
        self.report = report
        self.held: dict[ir.Tile, str] = {}

    def written(self, node: ir.Node, tiles: Mapping[ir.Tile, Flow]) -> None:
        """Remembers the narrow tiles that a statement gave a value of the softmax."""
        for tile in ir.writes(node):
            if tile.dtype not in NARROW or tile.level is not Level.REGISTER:
                continue
            what = _of_softmax(node, tile, tiles.get(tile, UNKNOWN))
            if what:
                self.held.setdefault(tile, what)

    def finish(self, kernel: ir.Kernel) -> None:
        """Reports those that are computed on."""
        if not self.held:
            return
        places: dict[ir.Tile, Pos] = {}
        computed: set[ir.Tile] = set()
        products: set[ir.Tile] = set()
        for node in ir.nodes(kernel.body):
            for tile in ir.writes(node):
                places.setdefault(tile, node.source.pos if node.source is not None else Pos(1, 1))
            if isinstance(node, ir.Gemm):
                products.add(node.result)
            if isinstance(node, ir.Map | ir.Reduce | ir.Mask | ir.Softmax):
                computed |= {t for t in ir.reads(node) if t not in ir.writes(node) or _keeps(node)}
        for tile, what in self.held.items():
            if tile in computed and tile not in products:  # of those `types` speaks
                self.report(
                    "TL802",
                    places[tile],
                    f"`{tile.name}` keeps {what} of the softmax in {tile.dtype}",
                    f"allocate `{tile.name}` without a dtype; cast only what enters a product",
                )


def _keeps(node: ir.Node) -> bool:
    """Whether a statement computes on what it overwrites, and does not only round it."""
    expr = node.expr if isinstance(node, ir.Map) else None
    return not (isinstance(expr, ir.Op) and expr.fn.startswith("cast_"))


def _of_softmax(node: ir.Node, tile: ir.Tile, value: Flow) -> str:
    """What of the softmax a statement leaves in a tile, in words; empty where nothing that matters."""
    if isinstance(node, ir.Softmax) and tile in (node.m, node.l, node.alpha):
        return "the state"
    if value.const is not None:
        return ""
    if value.factor:
        return "probabilities" if value.probability else "sums or factors"
    if value.score:
        return "scores"
    copied = isinstance(node, ir.Move) or (isinstance(node, ir.Map) and isinstance(node.expr, ir.Ref))
    return "a copy of the maximum" if value.parts and copied else ""
