"""Owns how many keys the longest loop goes over, by which a table of choices is looked up.

That is the longer of both sequences, unless every loop begins later for later query rows, as those of a
window do. It is counted in the smallest tiles, since the choice of tiles comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.evaluate import evaluate, substitute
from harness.tl.lower.gluon_view import view
from harness.tl.lower.host import python_text
from harness.tl.problem import WorkloadLike, scalars


@dataclass(frozen=True, slots=True)
class Reach:
    """A loop's bounds in rounds of `width` keys, for each of `count` tiles of query rows, numbered `row`."""

    row: str
    count: ir.Expr
    start: ir.Expr
    stop: ir.Expr
    width: ir.Expr

    def keys(self, sizes: Mapping[str, int | float]) -> int:
        """That the longest loop goes over; `sizes` gives what the bounds depend on."""
        tiles = ({**sizes, self.row: tile} for tile in range(evaluate(self.count, sizes)))
        rounds = max(evaluate(self.stop, tile) - evaluate(self.start, tile) for tile in tiles)
        return max(0, int(rounds * evaluate(self.width, sizes)))

    def lines(self, longest: str) -> list[str]:
        """The same on the host, statements that make a variable the largest so far."""
        return [
            f"for {self.row} in range({python_text(self.count)}):",
            f"    start = {python_text(self.start)}",
            f"    stop = {python_text(self.stop)}",
            f"    {longest} = max({longest}, (stop - start) * {python_text(self.width)})",
        ]

    @property
    def symbols(self) -> set[str]:
        """What the bounds depend on, beside the tile."""
        found = (self.count, self.start, self.stop, self.width)
        return {p.name for e in found for p in ir.walk(e) if isinstance(p, ir.Sym)} - {self.row}


def reaches(program: ir.Program) -> tuple[Reach, ...]:
    """Of every loop; none where one of them does not slide with the query rows."""
    smallest = {name: ir.Const(min(values)) for name, values in program.parameters}
    found = []
    for kernel in program.kernels:
        axis = view(kernel).axis
        for loop in (n for n in ir.nodes(kernel.body) if isinstance(n, ir.For)):
            slides = all(ir.Sym(axis.name) in set(ir.walk(bound)) for bound in (loop.start, loop.stop))
            widths = [n.tile.shape[0] for n in ir.nodes(loop.body) if isinstance(n, ir.Load)]
            known = not any(
                isinstance(p, ir.Op) and p.fn == "where"
                for bound in (loop.start, loop.stop)
                for p in ir.walk(bound)
            )
            if not (slides and widths and known):
                return ()
            found.append(
                Reach(
                    axis.name,
                    *(substitute(e, smallest) for e in (axis.extent, loop.start, loop.stop, widths[0])),
                )
            )
    return tuple(found)


def length(program: ir.Program, workload: WorkloadLike) -> int:
    """What a table is looked up by."""
    sizes = scalars(workload)
    longer = int(max(sizes["seq_q"], sizes["seq_k"]))
    return min(longer, max((r.keys(sizes) for r in reaches(program)), default=longer))
