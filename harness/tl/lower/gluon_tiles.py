"""Owns the Gluon text of the way from tile to tile: indices of the grid, tickets, what is handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.gluon_channels import Channel
from harness.tl.lower.gluon_prelude import in_gluon
from harness.tl.lower.gluon_view import View
from harness.tl.lower.gluon_ways import Ways
from harness.tl.lower.python_layout import statement

_SLOT = "gl.SwizzledSharedLayout(1, 1, 1, [0])"
_WORD = "gl.BlockedLayout([1], [32], [{warps}], [0])"


@dataclass(frozen=True)
class TileText:
    """Writes the loop over a block's tiles around what a role does on each. `index`: text of indices."""

    view: View
    channels: Iterable[Channel]
    grows: bool  # whether loops of later rows are longer
    ways: Ways
    index: Callable[[ir.Expr], str]

    # --- indices ---

    @property
    def axes(self) -> list[str]:
        """Names of the grid's indices."""
        return [self.view.axis.name, *(a.name for a in self.view.whole.grid if a is not self.view.axis)]

    def indices(self, tile: str = "t") -> list[str]:
        """The grid's indices of a tile."""
        axis = self.view.axis
        others = [a for a in reversed(self.view.whole.grid) if a is not axis]
        longest = "LONGEST_FIRST" if self.grows else "False"
        lines = [f"{axis.name}, other = tile_of({tile}, row_tiles, head_group, {longest})"]
        rest = "other"
        for n, other in enumerate(others):
            if n == len(others) - 1:
                lines.append(f"{other.name} = {rest}")
            else:
                extent = self.index(other.extent)
                lines.append(f"{other.name} = {rest} % ({extent})")
                rest = f"{rest} // ({extent})"
        return [in_gluon(line) for line in lines]

    # --- what the producer hands over ---

    def memory(self) -> list[str]:
        """Places and barriers of what is handed over: a tile's number; with `ahead` its indices too."""
        words = f"{1 + len(self.axes)}, 1" if self.ways.ahead else "1"
        return [
            f"next_tile = gl.allocate_shared_memory(gl.int32, [{words}], {_SLOT})",
            "next_full = barriers(1, 1)",
            "next_empty = barriers(1, CONSUMERS)",
        ]

    def received(self, depth: int) -> list[str]:
        """A consumer's next tile, as `t`."""
        word = f".load({_WORD.format(warps=4)})"
        first = "next_tile.index(0)" if self.ways.ahead else "next_tile"
        lines = ["mbarrier.wait(next_full.index(0), tile_turn)", f"t = gl.max({first}{word}, 0)"]
        out = _put(lines, depth)
        if self.ways.ahead:
            taken = [f"{a} = gl.max(next_tile.index({n}){word}, 0)" for n, a in enumerate(self.axes, 1)]
            out += _put(["if AHEAD:"], depth) + _put(taken, depth + 1)
        return out + _put(["mbarrier.arrive(next_empty.index(0), count=1)"], depth)

    def drawn(self, depth: int) -> list[str]:
        """The producer's ticket for the tile after this one, where that is drawn ahead."""
        return (
            _put(["if AHEAD:"], depth) + _put(["drawn = draw(counter)"], depth + 1) if self.ways.ahead else []
        )

    def sent(self, depth: int) -> list[str]:
        """The producer's next tile, as `t`, and how the consumers get it."""
        told = "# a ticket says which tile is next; the consumers get it through shared memory"
        drawn = ['ticket = gl.atomic_add(counter, 1, sem="relaxed")', "t = gl.num_programs(0) + ticket"]
        room = "mbarrier.wait(next_empty.index(0), tile_turn ^ 1)"
        full = "mbarrier.arrive(next_full.index(0), count=1)"

        def store(value: str, at: str = "") -> str:
            return f"next_tile{at}.store(gl.full([1], 0, gl.int32, {_WORD.format(warps=1)}) + {value})"

        if not self.ways.ahead:
            return _put([told, *drawn, room, store("t"), full], depth)
        words = [store(name, f".index({n})") for n, name in enumerate(self.axes, 1)]
        return [
            *_put([told, "if AHEAD:"], depth),
            *_put(["t = gl.num_programs(0) + ticket_of(drawn)", *self.indices()], depth + 1),
            *_put(["else:"], depth), *_put(drawn, depth + 1),
            *_put([room, store("t", ".index(0)"), "if AHEAD:"], depth), *_put(words, depth + 1),
            *_put([full], depth),
        ]  # fmt: skip

    # --- the loop ---

    def opening(self) -> list[str]:
        """Where a role begins: its block's first tile, and the first place of every channel."""
        lines = ["t = gl.program_id(0)", "tile_turn = 0"]
        for channel in self.channels:
            lines += [f"{channel.name}_place = 0", f"{channel.name}_turn = 0"]
        out = _put(lines, 1)
        if self.ways.ahead:
            out += _put(["if AHEAD:"], 1) + _put(self.indices(), 2)
        return out

    def loop(self, inside: list[str], next_tile: list[str], before: list[str] | None = None) -> list[str]:
        """All tiles of a block, after `before` for each; `next_tile`: how tickets tell of the next."""
        out = [*_put(["while t < tiles:"], 1), *self.located(2), *(before or []), *inside]
        return [*out, *self.onward(next_tile)]

    def carrying(
        self, opening: list[str], inside: list[str], ending: list[str], last: list[str]
    ) -> list[str]:
        """A consumer's tiles, each opened before the one before it comes to its end."""
        first = [line.removeprefix("    ") for line in opening]
        done = ", ".join(f"done_{a}" for a in self.axes) + f" = {', '.join(self.axes)}"
        out = [*self.located(1), *_put(["more = t < tiles"], 1), *first, *_put(["while more:"], 1), *inside]
        out += _put([done], 2) + self.onward(self.received(3)) + self.located(2)
        return [*out, *_put(["more = t < tiles"], 2), *opening, *ending, *_put(last, 1)]

    def located(self, depth: int) -> list[str]:
        """The indices of the tile `t`, where they were not handed over."""
        if not self.ways.ahead:
            return _put(self.indices(), depth)
        return [*_put(["if not AHEAD:"], depth), *_put(self.indices(), depth + 1)]

    def onward(self, next_tile: list[str], depth: int = 2) -> list[str]:
        """From one tile to the next."""
        out = [*_put(["if GRID == 2:"], depth), *next_tile]
        out += _put(["tile_turn = tile_turn ^ 1"], depth + 1)
        return [*out, *_put(["else:"], depth), *_put(["t += gl.num_programs(0)"], depth + 1)]


def _put(codes: Iterable[str], depth: int) -> list[str]:
    return [line for code in codes for line in statement(code, depth)]
