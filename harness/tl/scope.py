"""Owns what each name stands for at a point of a kernel, and what each tile holds there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.evaluate import substitute
from harness.tl.problem import TaskLike, symbols
from harness.tl.shapes import Same, compare, equal
from harness.tl.syntax import Level, Pos

UNKNOWN = ir.Sym("?")  # a size that a sketch leaves open
NOT_KNOWN = ir.Axis("?", ir.Const(0))  # an axis whose positions differ from path to path
Axes = tuple[ir.Axis | None, ir.Axis | None]


@dataclass(frozen=True, slots=True)
class Content:
    """What a tile holds: whether anything, where its rows and columns come from, its register layout.

    `layout`: "accumulator" after a GEMM, "operand" after a Reshape, "" where that does not matter.
    """

    held: bool = False
    axes: Axes = (None, None)
    layout: str = ""


@dataclass
class Scope:
    """Everything known at the statement being read. `sketch`: sizes may be missing."""

    task: TaskLike
    sketch: bool
    findings: list[Finding]
    parameters: dict[str, tuple[int, ...]]
    lets: dict[str, s.Expr] = field(default_factory=dict)
    grid: dict[str, ir.GridAxis] = field(default_factory=dict)
    grid_written: bool = False
    loops: list[str] = field(default_factory=list)
    matrices: dict[str, ir.Matrix] = field(default_factory=dict)
    tiles: dict[tuple[str, Level], ir.Tile] = field(default_factory=dict)
    contents: dict[ir.Tile, Content] = field(default_factory=dict)
    used: set[ir.Tile] = field(default_factory=set)
    written_matrices: set[str] = field(default_factory=set)
    places: dict[ir.Tile, Pos] = field(default_factory=dict)
    _noted: set[tuple[str, str]] = field(default_factory=set)
    _same: dict[tuple[ir.Expr, ir.Expr], Same] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.symbols = symbols(self.task)

    # --- saying something ---

    def report(
        self, code: str, pos: Pos, message: str, fix: str = "", severity: Severity | None = None
    ) -> None:
        self.findings.append(finding(code, pos, message, fix, severity))

    def note(self, code: str, pos: Pos, word: str, meaning: str) -> None:
        """A note, once for each word and meaning."""
        if (word, meaning) not in self._noted:
            self._noted.add((word, meaning))
            self.report(code, pos, f"`{word}` {meaning}")

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is found inside is found again later: forget it."""
        findings, noted, matrices = len(self.findings), set(self._noted), dict(self.matrices)
        yield
        self.matrices = matrices
        del self.findings[findings:]
        self._noted = noted

    # --- sizes ---

    def same(self, a: ir.Expr, b: ir.Expr) -> Same:
        if a == b or UNKNOWN in (a, b):
            return Same.ALWAYS
        if (a, b) not in self._same:
            self._same[a, b] = compare(a, b, self.task, self.parameters)
        return self._same[a, b]

    # --- tiles and matrices ---

    def matrix(self, name: str) -> ir.Matrix | None:
        if name in self.matrices:
            return self.matrices[name]
        found = [m for key, m in self.matrices.items() if key.lower() == name.lower()]
        return found[0] if len(found) == 1 else None

    def tile(self, name: str, level: Level | None = None) -> ir.Tile | None:
        """The tile of that name: at the level, or the nearest copy (register, then shared)."""
        for where in (Level.REGISTER, Level.SHARED) if level is None else (level,):
            if (name, where) in self.tiles:
                tile = self.tiles[name, where]
                if level is None and where is Level.REGISTER and not self.content(tile).held:
                    shared = self.tiles.get((name, Level.SHARED))
                    if shared is not None and self.content(shared).held:
                        return shared  # the copy in registers is for later
                return tile
        return None

    def add_tile(self, tile: ir.Tile, pos: Pos) -> ir.Tile:
        self.tiles[tile.name, tile.level] = tile
        self.places.setdefault(tile, pos)
        return tile

    def content(self, tile: ir.Tile) -> Content:
        return self.contents.get(tile, Content())

    def hold(self, tile: ir.Tile, axes: Axes = (None, None), layout: str = "") -> None:
        self.contents[tile] = Content(True, axes, layout)

    # --- the grid ---

    def grid_of(self, role: str) -> ir.Expr | None:
        """The grid's index of the batch, the head or the row block."""
        for axis in self.grid.values():
            if axis.role == role:
                return ir.Sym(axis.name)
            if axis.role == "batch heads" and role in ("batch", "heads"):
                fn = "floordiv" if role == "batch" else "mod"
                return ir.Op(fn, (ir.Sym(axis.name), ir.Sym("heads")))
        return None

    def ensure_grid(self, role: str, name: str, extent: ir.Expr, pos: Pos) -> ir.Expr:
        """The grid's index in that role; where the program has no Grid, one of that name."""
        known = self.grid_of(role)
        if known is not None:
            return known
        self.grid[name] = ir.GridAxis(name, extent, role)
        if not self.grid_written:
            self.note("TL005", pos, name, f"indexes the grid: one block for each of the {role}")
        return ir.Sym(name)

    # --- loops and branches ---

    def snapshot(self) -> dict[ir.Tile, Content]:
        return dict(self.contents)

    def join_branches(self, one: Mapping[ir.Tile, Content], other: Mapping[ir.Tile, Content]) -> None:
        """After a branch: what both ways agree on."""
        self.contents = {}
        for tile in {**one, **other}:
            a, b = one.get(tile, Content()), other.get(tile, Content())
            if not a.held or not b.held:
                self.contents[tile] = a if a.held else b
            else:
                self.contents[tile] = replace(a, axes=_join(a.axes, b.axes))

    def enter_loop(self, before: Mapping[ir.Tile, Content], var: str, start: ir.Expr, step: ir.Expr) -> None:
        """At the top of a loop: what holds both before it and at the end of its body (now in contents).

        Positions that move with the loop variable agree where the last round's equal what was before
        the first: a tile loaded one round ahead.
        """
        after, self.contents = self.contents, {}
        back = {var: ir.Op("sub", (ir.Sym(var), step))}
        for tile in {**before, **after}:
            first, last = before.get(tile, Content()), after.get(tile, Content())
            axes: list[ir.Axis | None] = []
            for a, b in zip(first.axes, last.axes, strict=True):
                b = ir.Axis(b.role, substitute(b.base, back)) if b is not None else None
                if not first.held or a == b:
                    axes.append(b)
                elif a is None or b is None or a.role != b.role or NOT_KNOWN in (a, b):
                    axes.append(NOT_KNOWN)
                else:
                    at_start = substitute(b.base, {var: start})
                    axes.append(b if equal(at_start, a.base) else NOT_KNOWN)
            self.contents[tile] = Content(first.held, (axes[0], axes[1]), first.layout)

    def leave_loop(self, before: Mapping[ir.Tile, Content], var: str) -> None:
        """After a loop: what the body left, but positions that moved with it are not known."""
        for tile, content in self.contents.items():
            axes = [
                NOT_KNOWN if axis is not None and ir.Sym(var) in set(ir.walk(axis.base)) else axis
                for axis in content.axes
            ]
            was = before.get(tile, Content())
            kept = _join((axes[0], axes[1]), was.axes) if was.held and was.axes != content.axes else axes
            self.contents[tile] = replace(content, axes=(kept[0], kept[1]))

    # --- symbols ---

    def known_names(self) -> list[str]:
        tiles = [name for name, _ in self.tiles]
        return [*self.symbols, *self.parameters, *self.lets, *self.grid, *self.loops, *tiles]

    def symbol(self, name: str, pos: Pos, length: str) -> ir.Sym | None:
        """The scalar of that name, by an alias if need be; `length` is what a bare length means here."""
        if name in self.loops or name in self.grid or name in self.parameters or name in self.symbols:
            return ir.Sym(name)
        word = name.lower()
        meant = None
        if word in aliases.LENGTHS:
            meant = length
        elif word in aliases.SYMBOLS:
            meant = aliases.SYMBOLS[word]
        elif word in aliases.BLOCK_INDICES:
            return self._grid_alias(name, "rows", pos)
        elif word in aliases.BATCH_INDICES:
            return self._grid_alias(name, "batch", pos)
        elif word in aliases.HEAD_INDICES:
            return self._grid_alias(name, "heads", pos)
        else:
            fits = [p for p in (*self.parameters, *self.symbols) if p.lower() == word]
            meant = fits[0] if len(fits) == 1 else None
        if meant is None:
            return None
        self.note("TL004", pos, name, f"is read as `{meant}`")
        return ir.Sym(meant)

    def _grid_alias(self, name: str, role: str, pos: Pos) -> ir.Sym | None:
        known = self.grid_of(role)
        if not isinstance(known, ir.Sym):
            return None
        self.note("TL004", pos, name, f"is read as `{known.name}`, the grid's index of the {role}")
        return known


def _join(a: Axes | list[ir.Axis | None], b: Axes) -> Axes:
    both = [x if x == y else NOT_KNOWN for x, y in zip(a, b, strict=True)]
    return both[0], both[1]
