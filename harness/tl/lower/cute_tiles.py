"""Owns the CuTe text of tiles: their names, types and places, and how they move between levels of memory."""

from __future__ import annotations

import re
import textwrap
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.cute_text import ONE, Cpp, Values, index
from harness.tl.lower.facts import may_be_minus_infinity
from harness.tl.lower.lowered import LowerError, comment
from harness.tl.lower.python_layout import WIDTH
from harness.tl.syntax import Level, Statement

CONSTANT_SIZES = ("dim", "dim_v", "group")  # known when a kernel is compiled
# What the generated file and `tile.cuh` use, and words of C++: a tile called so gets an underscore.
RESERVED = frozenset(
    (
        "T mm nn ee hh x q k v out scale auto bool break case char class const continue do double else "
        "enum extern float for goto if int long new operator private public register return short signed "
        "sizeof static struct switch template this throw true try typedef union unsigned using void "
        "volatile while tile shared each fill read store fetch commit arrived reshape rescale operand "
        "matrix lane warp finite inverse rounded packed take put most least padded opaque mma masked "
        "round WARPS STAGES ALIGNED FOLD SPLIT THREADS Accumulator Rows Shared Operand Matrix Known "
        "transpose along_row"
    ).split()
)


@dataclass
class TileText(ABC):
    """Writes how tiles are named, declared and moved; fills `lines` and `strides` meanwhile."""

    kernel: ir.Kernel
    parameters: frozenset[str]
    floats: frozenset[str]  # scalars that are no whole numbers
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    used_tensors: dict[str, ir.Matrix] = field(default_factory=dict)  # tensor -> a matrix of it
    factors: dict[str, ir.Expr] = field(default_factory=dict)  # kernel argument -> the score factor it holds

    def __post_init__(self) -> None:
        taken = {*RESERVED, *self.parameters, *self.floats, *(a.name for a in self.kernel.grid), "i", "j"}
        taken |= {n.var for n in ir.nodes(self.kernel.body) if isinstance(n, ir.For)}
        self.names: dict[ir.Tile, str] = {}
        for tile in self.live_tiles():
            name = re.sub(r"\W", "_", tile.key.replace("'", "_p")).rstrip("_") or tile.key
            while name in taken:
                name += "_"
            taken.add(name)
            self.names[tile] = name
        self._places: dict[str, str] = {}  # C++ of a position -> the variable that holds it, of one statement
        minus_infinity = may_be_minus_infinity(self.kernel)
        self.values = Values(self.element, self._place, minus_infinity, self.floats)
        self.ringed: set[ir.Tile] = (
            set()
        )  # tiles that some loop fetches ahead, so that they have several places
        self.current: set[ir.Tile] = set()  # of these, those that have a name in the round being written
        self._rows: ir.Expr = ONE  # rows of the tile that the statement being written makes
        self.arriving: set[ir.Tile] = set()  # fetched, and not waited for
        self._touched: set[ir.Tile] = set()  # tiles of shared memory that something has read

    @property
    def function(self) -> str:
        """The kernel's name in the generated file."""
        return f"{re.sub(r'[^A-Za-z0-9_]', '_', self.kernel.name)}_kernel"

    def live_tiles(self) -> list[ir.Tile]:
        """Tiles that something reads or writes, in the program's order."""
        used = {t for n in ir.nodes(self.kernel.body) for t in (*ir.reads(n), *ir.writes(n))}
        return [t for t in self.kernel.tiles if t in used]

    # --- text ---

    def put(self, line: str) -> None:
        """A statement, a comment or a part of a block; long ones are broken after a comma."""
        indent = "    " * self.depth
        if len(indent + line) <= WIDTH:
            self.lines.append((indent + line).rstrip())
            return
        if line.startswith("//"):
            wrapper = textwrap.TextWrapper(WIDTH, indent, f"{indent}//     ", break_on_hyphens=False)
            self.lines += wrapper.wrap(line)
            return
        self.lines += _broken(line, indent)

    @contextmanager
    def block(self, head: str, tail: str = "}") -> Iterator[None]:
        self.put(f"{head} {{" if head else "{")
        self.depth += 1
        yield
        self.depth -= 1
        self.put(tail)

    def note(self, node: ir.Node, aside: str = "") -> None:
        """The statement of the program, above its code."""
        text = comment(node)
        if text:
            self.put(f"// {text}{f'  ({aside})' if aside else ''}")

    # --- shapes ---

    def size(self, size: ir.Expr) -> str:
        """An extent that is known at compile time; raises LowerError."""
        for part in ir.walk(size):
            if isinstance(part, ir.Sym) and part.name not in self.parameters | set(CONSTANT_SIZES):
                raise LowerError("a tile as long as a sequence has no fixed size", None, "tile the sequence")
        return index(size).code

    def pieces(self, rows: ir.Expr) -> str:
        """How many pieces of 16 rows a warp has of a register tile."""
        return f"{index(rows).inside(7)} / (16 * WARPS)"

    def type(self, tile: ir.Tile) -> str:
        rows, cols = tile.shape
        if tile.level is Level.SHARED:
            return f"Shared<T, {self.size(rows)}, {self.size(cols)}>"
        self.size(rows)
        if cols == ONE:
            return f"Rows<{self.pieces(rows)}>"
        if rows == ONE:
            raise LowerError(f"`{tile.name}` is a vector over columns, for which there is no CuTe code")
        return f"Accumulator<{self.pieces(rows)}, padded({self.size(cols)}) / 8>"

    def columns(self, tile: ir.Tile) -> str:
        """Pieces of eight columns."""
        return f"padded({self.size(tile.shape[1])}) / 8"

    def declare(self, slots: dict[ir.Tile, str]) -> None:
        """Every tile; `slots`: places of shared memory that a tile has, where that is not one."""
        registers = [t for t in self.live_tiles() if t.level is Level.REGISTER]
        shared = [t for t in self.live_tiles() if t.level is Level.SHARED]
        at = "shared"
        for tile in shared:
            name = self.names[tile]
            self.put(f"using {name}_t = {self.type(tile)};")
            places = slots.get(tile)
            if places is None:
                self.put(f"const {name}_t {name}{{{at}}};")
                at = f"{name}.data + {name}_t::elements"
            else:
                self.put(f"T* const {name}_ring = {at};")
                count = f"({places})" if "+" in places else places
                at = f"{name}_ring + {count} * {name}_t::elements"
        for tile in registers:
            self.put(f"{self.type(tile)} {self.names[tile]};")

    # --- elements ---

    def element(self, tile: ir.Tile, wide: bool) -> Cpp:
        name = self.names[tile]
        if tile.level is Level.SHARED:
            row = self._position(Cpp(f"first_row<{self.pieces(tile.shape[0])}>()"), "row")
            col = self._position(Cpp("first_col()"), "col")
            return Cpp(
                f"float({self.place_of(tile)}({row} + row_of(mm, ee / 2), {col} + col_of(nn, ee % 2)))"
            )
        if tile.shape[1] != ONE:
            if not wide:
                raise LowerError(f"`{tile.name}` has columns and cannot give one number a row")
            return Cpp(f"{name}(mm, nn, ee)")
        return Cpp(f"{name}(mm, ee / 2)" if wide else f"{name}(mm, hh)")

    def _place(self, place: ir.Place, wide: bool) -> Cpp:
        if place.axis == 0:
            start = f"first_row<{self.pieces(self._rows)}>()"
            base = self._position(_plus(index(place.base), start), "row")
            return Cpp(f"{base} + row_of(mm, {'ee / 2' if wide else 'hh'})", 6)
        base = self._position(_plus(index(place.base), "first_col()"), "col")
        return Cpp(f"{base} + col_of(nn, ee % 2)", 6)

    def _position(self, start: Cpp, stem: str) -> str:
        """A variable for where the thread's elements start; `opaque`: what follows stays near its use."""
        if start.code not in self._places:
            number = sum(name.startswith(stem) for name in self._places.values())
            self._places[start.code] = f"{stem}{number}"
        return self._places[start.code]

    @contextmanager
    def positions(self, rows: ir.Expr) -> Iterator[list[str]]:
        """For one statement: the caller writes values first and puts what this gives before its code."""
        self._places, self._rows = {}, rows
        declared: list[str] = []
        yield declared
        declared += [f"const int {name} = opaque({start});" for start, name in self._places.items()]
        self._places = {}

    # --- device memory ---

    def matrix(self, matrix: ir.Matrix, source: Statement | None) -> str:
        """C++ of the matrix; raises LowerError where its last axis is not the tensor's."""
        if any(isinstance(a, ir.Element) for a in matrix.axes):
            raise LowerError("an index read from memory selects the matrix", source)
        row = matrix.axes.index("row")
        if "col" in matrix.axes and matrix.axes.index("col") != len(matrix.axes) - 1:
            raise LowerError("columns that do not run along the last axis have no CuTe code", source)
        name = matrix.tensor
        self.used_tensors.setdefault(name, matrix)
        base = [self.tensor_name(name)]
        for axis, at in enumerate(matrix.axes):
            if not isinstance(at, str) and at != ir.Const(0):
                base.append(f"{index(at).inside(7)} * {self.tensor_name(name)}_s{axis}")
        extents = f"{index(matrix.rows).code}, {index(matrix.cols).code}"
        return f"matrix({' + '.join(base)}, {self.tensor_name(name)}_s{row}, {extents})"

    @staticmethod
    def tensor_name(tensor: str) -> str:
        return f"{tensor}_ptr"

    def fetch(self, load: ir.Load, place: str) -> str:
        """Begin to bring a tile from device memory to shared memory."""
        if load.pad != ir.Const(0):
            raise LowerError("a tile of shared memory is padded with zeros only", load.source)
        where = (
            f"{index(load.row).code}, {index(load.col).code}"
            if load.col != ir.Const(0)
            else index(load.row).code
        )
        return f"fetch<ALIGNED, THREADS>({place}, {self.matrix(load.matrix, load.source)}, {where});"

    def load(self, node: ir.Load) -> None:
        """A load outside of a loop that fetches ahead."""
        if node.via is not None:
            raise LowerError("gathering rows through an index tensor has no CuTe code yet", node.source)
        self.note(node)
        name = self.names[node.tile]
        if node.tile.level is Level.SHARED:
            if node.tile in self._touched:
                self.put("__syncthreads();")
            self.put(self.fetch(node, self.place_of(node.tile)))
            self.put("commit();")
            self.arriving.add(node.tile)
            return
        pad = self.values.value(node.pad, False, node.source).code
        matrix, row = self.matrix(node.matrix, node.source), index(node.row).code
        col = "" if node.tile.shape[1] == ONE else f"{index(node.col).code}, "
        self.put(f"read({name}, {matrix}, {row}, {col}{pad});")

    def place_of(self, tile: ir.Tile) -> str:
        """The tile in shared memory, as an expression."""
        name = self.names[tile]
        return f"{name}_t{{{name}_ring}}" if tile in self.ringed - self.current else name

    def await_tiles(self, tiles: set[ir.Tile]) -> None:
        """Before a statement that reads these: what of them is on its way must have arrived."""
        self._touched |= {t for t in tiles if t.level is Level.SHARED}
        if tiles & self.arriving:
            self.put("arrived<0>();")
            self.arriving.clear()

    def store(self, node: ir.Store) -> None:
        self.note(node)
        tile = node.tile
        matrix, row, col = self.matrix(node.matrix, node.source), index(node.row).code, index(node.col).code
        if tile.level is Level.SHARED:
            self.put(f"store<THREADS>({matrix}, {self.place_of(tile)}, {row}, {col});")
        elif tile.shape[1] == ONE:
            self.put(f"store({matrix}, {self.names[tile]}, {row});")
        else:
            where = row if node.col == ir.Const(0) else f"{row}, {col}"
            self.put(f"store<ALIGNED>({matrix}, {self.names[tile]}, {where});")

    def move(self, node: ir.Move) -> None:
        """Between shared memory and registers, or from a register tile to another."""
        if node.tile == node.target:
            return
        self.note(node)
        source, target = self.names[node.tile], self.names[node.target]
        if node.tile.level is Level.SHARED and node.target.level is Level.SHARED:
            raise LowerError("a copy within shared memory has no CuTe code", node.source)
        if node.tile.level is Level.SHARED:
            self.put(f"take({target}, {self.place_of(node.tile)});")
        elif node.target.level is Level.SHARED:
            self.put("__syncthreads();")
            self.put(f"put({self.place_of(node.target)}, {source});")
            self.put("__syncthreads();")
        else:
            self.put(f"{target} = {source};")


def _plus(a: Cpp, b: str) -> Cpp:
    return Cpp(b) if a.code == "0" else Cpp(f"{a.inside(6)} + {b}", 6)


def _broken(line: str, indent: str) -> list[str]:
    """A long line over several: after a comma where there is one, else before an operator."""
    lines = []
    while len(indent + line) > WIDTH:
        room = line[: WIDTH - len(indent)]
        at = max(room.rfind(", ") + 1, room.rfind(" && "), room.rfind("; ") + 1)
        if at < 20:
            at = max(room.rfind(" + "), room.rfind(" "))
        lines.append(indent + line[:at].rstrip())
        line = line[at:].lstrip()
        if len(lines) == 1:
            indent += "    "
    return [*lines, indent + line]
