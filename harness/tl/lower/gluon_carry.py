"""Owns the Gluon text of a consumer that carries over: the next tile's first products beside this one's end.

What comes before a tile's first products (bounds, rounds that go by, waiting for the rows) is its opening. A
consumer does the next tile's opening and issues its first products; only then it brings the rows of this
tile to their end and stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.gluon_loops import ConsumerText
from harness.tl.lower.gluon_rounds import Overlap, Rounds, overlap

DONE = "done_"  # the grid's indices of the tile that is being brought to an end


@dataclass(frozen=True, slots=True)
class Cut:
    """A kernel's statements: made and waited for before the loop, the loop, after it."""

    inits: tuple[ir.Node, ...]
    loads: tuple[ir.Load, ...]
    loop: ir.For
    after: tuple[ir.Node, ...]
    rounds: Overlap


def cut(kernel: ir.Kernel) -> Cut | None:
    """The cut; None where the kernel is of another form."""
    loops = [n for n in kernel.body if isinstance(n, ir.For)]
    if len(loops) != 1 or (rounds := overlap(loops[0])) is None:
        return None
    at = kernel.body.index(loops[0])
    before, after = kernel.body[:at], kernel.body[at + 1 :]
    loads = tuple(n for n in before if isinstance(n, ir.Load))
    inits = tuple(n for n in before if not isinstance(n, ir.Load))
    held = {n.tile for n in loads}
    brought = held | {n.tile for n in rounds.first_loads}
    if any(not isinstance(n, ir.Init) for n in inits) or any(p.accumulate for p in rounds.first):
        return None
    if any(o.tile not in brought for p in rounds.first for o in (p.a, p.b)):
        return None
    for node in ir.nodes(after):
        if isinstance(node, ir.Load | ir.For | ir.If) or held & set(ir.reads(node)):
            return None
    return Cut(inits, loads, loops[0], after, rounds)


@dataclass
class CarryingText(ConsumerText):
    """Writes a tile in three parts: `opening`, `lines` up to the result, `ending`.

    `axes`: names of the grid's indices.
    """

    axes: tuple[str, ...] = ()
    opening: list[str] = field(default_factory=list)
    ending: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)  # after the last tile

    def run(self) -> None:
        """Write all parts, two blocks deep."""
        parts = cut(self.kernel)
        assert parts is not None
        rounds = Rounds.of(parts.loop, 0, self.first_row, self.freedom)
        self.loops.append(rounds)
        self.opening = self._opening(parts, rounds)
        names = [self._ahead_name(n) for n in parts.rounds.first]
        self.last = [f"warpgroup_mma_wait(0, deps=[{', '.join(names)}])  # nothing that anyone reads"]
        for node in parts.inits:
            self.statement(node)
        self._tile(parts, rounds)
        main, self.lines = self.lines, []
        values, was = self.values, self.values.renamed
        values.renamed = {**was, **{axis: f"{DONE}{axis}" for axis in self.axes}}
        self.body(parts.after)
        self._settle_all()
        values.renamed = was
        self.ending, self.lines = self.lines, main

    def _opening(self, parts: Cut, rounds: Rounds) -> list[str]:
        """From a tile's indices to its first products; nothing is waited for where `more` is false."""
        v, rest = parts.loop.var, parts.rounds
        self._bounds(parts.loop, rounds)
        with self.under("if more:"):
            mark = len(self.lines)
            self._skip(rounds, parts.loop, "before", rest)
            if len(self.lines) == mark:
                self.lines.pop()
        for load in parts.loads:
            self._wait(load, "more")
        for load in rest.first_loads:
            self._wait(load, f"more & ({v}_count > 0)")
        self._turn("take", parts, rounds)
        for node in rest.first:
            self.note(node, "  (of the first round)")
            self.issue(node, self._ahead_name(node))
        self._turn("pass", parts, rounds)
        out, self.lines = self.lines, []
        return out

    def _turn(self, what: str, parts: Cut, rounds: Rounds) -> None:
        """The first round's turn: had before where all rounds went by; after the last tile all have one."""
        v = parts.loop.var
        with (
            self.under("if PINGPONG:"),
            self.under(
                f"if ({v}_count > 0) | ({v}_stop <= {v}_start) | (t >= tiles) | {rounds.flag('SOME')}:"
            ),
        ):
            self.put(f"{what}_turn(WHICH, CONSUMERS)")

    def _wait(self, load: ir.Load, when: str) -> None:
        channel = self.channels[load.tile]
        self.note(load, "  (waits for the producer)")
        full = f"{channel.name}_full.index({channel.place('WHICH')})"
        self.put(f"mbarrier.wait({full}, {channel.name}_turn, pred={when})")
        self._clean.add(load.tile)
        self.values.operand_typed.add(load.tile)

    def _ahead_name(self, node: ir.Gemm) -> str:
        return f"{self.values.names[node.result]}_next"

    def _tile(self, parts: Cut, rounds: Rounds) -> None:
        """The loop, from what its first products have left to its last product."""
        v, rest, was = parts.loop.var, parts.rounds, self._masked
        spans = self._parts(v, rounds)
        self._masked = any(masked for _, _, masked, _ in spans)
        for node in rest.first:
            self.wait(node, self._ahead_name(node))
            self.settled(node)
        self.part(parts.loop)
        with self.under(f"if ({v}_count > 0) | {rounds.flag('SOME')}:"):
            state = self._state()
            self.put(f"{v}_round = 0")
            self.put(self._variable(rounds))
            for load in rest.first_loads:
                self.release(load.tile)
            self._first_between(rest, rounds)
            self._restore(state)
            self._rest(rounds, rest, spans, state)
        self.join()
        for load in parts.loads:
            self.release(load.tile)
        self._skip(rounds, parts.loop, "after", rest)
        self._masked = was
