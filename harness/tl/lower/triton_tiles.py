"""Owns the Triton text of tiles: their variables, their sizes, and how they come from memory and go back."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.facts import may_be_minus_infinity, only_sliced
from harness.tl.lower.lowered import LowerError, comment
from harness.tl.lower.python_layout import WIDTH, call, expression, statement
from harness.tl.lower.triton_memory import Access, Accesses
from harness.tl.lower.triton_values import ONE, Values
from harness.tl.syntax import Level

RESERVED = frozenset(
    {"tl", "triton", "torch", "pid", "q", "k", "v", "out", "scale"}
    | {"OPERAND", "PRECISION", "TMA", "FOLD", "EVEN"}
)


@dataclass
class TileText(ABC):
    """Writes how tiles are named, made and moved; fills `lines`, `sizes`, `factors` and `evens` meanwhile."""

    kernel: ir.Kernel
    parameters: frozenset[str]
    floats: frozenset[str]  # scalars that are no whole numbers
    overlap: bool = False  # whether some choice has the first products a round ahead
    lines: list[str] = field(default_factory=list)  # the kernel's body
    sizes: dict[ir.Expr, str] = field(default_factory=dict)  # axis sizes padded by a constexpr -> its stem
    factors: dict[str, str] = field(default_factory=dict)  # argument -> host text of a score factor
    # Constexpr that says that no round needs a mask -> (end of the rounds without, end of the loop).
    evens: dict[str, tuple[ir.Expr, ir.Expr]] = field(default_factory=dict)
    depth: int = 1
    aside: str = ""  # what the next statement's comment says at its end

    def __post_init__(self) -> None:
        self.accesses = Accesses(self.kernel)
        names: dict[ir.Tile, str] = {}
        taken = set(RESERVED) | self.parameters | self.floats | {a.name for a in self.kernel.grid}
        taken |= {n.var for n in ir.nodes(self.kernel.body) if isinstance(n, ir.For)}
        for tile in self.kernel.tiles:
            name = tile.key.replace("'", "_p").rstrip("_") or tile.key
            while name in taken:
                name += "_"
            taken.add(name)
            names[tile] = name
        self.values = Values(names, self.block, may_be_minus_infinity(self.kernel), self._element)
        self._masked = True  # whether dead positions and masks must be looked at here
        self._sliced = only_sliced(self.kernel)
        self._loads: dict[ir.Tile, ir.Load] = {}
        self._clean: set[ir.Tile] = set()  # zero past the true size, where an axis is padded
        self._dead_zero: set[ir.Tile] = set()  # zero at dead positions, as a softmax leaves them

    @property
    def function(self) -> str:
        """The kernel's name in the generated file."""
        return f"{re.sub(r'[^A-Za-z0-9_]', '_', self.kernel.name)}_kernel"

    # --- text ---

    def put(self, line: str) -> None:
        """Write a statement, or the head of a block."""
        self.lines += statement(line, self.depth)

    @contextmanager
    def under(self, head: str) -> Iterator[None]:
        """The head of a block; what is written meanwhile stands in the block."""
        self.put(head)
        self.depth += 1
        yield
        self.depth -= 1

    def note(self, node: ir.Node, extra: str = "") -> None:
        """The statement of the program, above its code."""
        text = comment(node)
        if text:
            self.put(f"# {text}{extra}{self.aside}")
            self.aside = ""

    def block(self, size: ir.Expr) -> str:
        """The constexpr of a tile's axis: a tile parameter, or a size padded to a power of two."""
        if isinstance(size, ir.Sym) and size.name in self.parameters:
            return size.name
        if isinstance(size, ir.Const):
            padded = max(16, 1 << (int(size.value) - 1).bit_length())
            if padded == size.value:
                return str(padded)
        if any(isinstance(p, ir.Sym) and p.name in ("seq_q", "seq_k") for p in ir.walk(size)):
            raise LowerError("a tile as long as a sequence has no fixed size", None, "tile the sequence")
        if size not in self.sizes:
            named = isinstance(size, ir.Sym)
            self.sizes[size] = size.name if isinstance(size, ir.Sym) else f"n{len(self.sizes) + 1}"
            if not named and self.sizes[size] in self.parameters:
                self.sizes[size] += "_"
        return f"{self.sizes[size]}_p"

    def true_size(self, size: ir.Expr) -> str:
        """The size itself, without padding."""
        self.block(size)
        return self.sizes.get(size, self.values.index(size))

    def shape(self, tile: ir.Tile) -> list[str]:
        """Extents of the variable: vectors have one."""
        return [self.block(n) for n in tile.shape if n != ONE] or ["1"]

    def _padded(self, size: ir.Expr) -> bool:
        self.block(size)
        return size in self.sizes

    def _element(self, element: ir.Element) -> str:
        raise LowerError(f"single elements of `{element.tensor}` have no Triton code yet")

    # --- tiles ---

    def _assign(self, tile: ir.Tile, text: str, clean: bool = False, operand: bool = False) -> None:
        values = self.values
        values.pending.pop(tile, None)
        self._loads.pop(tile, None)
        self._dead_zero.discard(tile)
        (self._clean.add if clean else self._clean.discard)(tile)
        (values.operand_typed.add if operand else values.operand_typed.discard)(tile)
        if tile.dtype in ("fp16", "bf16"):
            kind = "tl.float16" if tile.dtype == "fp16" else "tl.bfloat16"
            text = f"({text}).to({kind}).to(tl.float32)"
        self.put(f"{values.names[tile]} = {text}")

    def _init(self, node: ir.Init) -> None:
        if node.value is None:
            return
        self.note(node)
        text = self.values.value(node.value, False, node.source)
        self._assign(
            node.tile,
            f"tl.full([{', '.join(self.shape(node.tile))}], {text}, tl.float32)",
            node.value == ir.Const(0),
        )

    def _place(self, access: Access, row: ir.Expr, col: ir.Expr) -> tuple[list[str], str, str]:
        index = self.values.index
        matrix = access.matrix
        fixed = [index(axis) for axis in matrix.axes if not isinstance(axis, str)]
        return fixed, index(row), index(col)

    def _base(self, access: Access, fixed: list[str]) -> str:
        offsets = [f"wide({text}) * {access.argument}_s{axis}"
                   for axis, text in zip(access.fixed, fixed, strict=True)]  # fmt: skip
        return " + ".join([access.argument, *offsets])

    def _load(self, node: ir.Load) -> None:
        self.note(node)
        self._loads[node.tile] = node
        if node.tile in self._sliced:
            self.put("pass  # its slices are loaded where they are used" if self.depth > 1 else "")
            self.values.operand_typed.add(node.tile)
            return
        self._load_into(self.values.names[node.tile], node, node.tile.shape, node.col)
        self.values.pending.pop(node.tile, None)
        self._clean.add(node.tile)
        self.values.operand_typed.add(node.tile)

    def _load_into(self, name: str, node: ir.Load, shape: tuple[ir.Expr, ir.Expr], col: ir.Expr) -> None:
        if node.via is not None:
            raise LowerError("gathering rows through an index tensor has no Triton code yet", node.source)
        access = self.accesses.of(node.matrix, shape, node.source)
        fixed, row, column = self._place(access, node.row, col)
        if shape[1] == ONE:
            self._load_vector(name, node, access, fixed, row)
            return
        cols = self.block(shape[1])
        block = [self.block(shape[0]), cols]
        check = str(self._masked)
        if not self._masked and self._padded(shape[1]):
            check = f"{self.true_size(shape[1])} != {cols}"
        pad = self.values.value(node.pad, False, node.source)
        groups = self._pointer(access, fixed), [row, column, *self._extents(node.matrix), pad, *block, check]
        if not access.tma:
            self._call(f"{name} = load_tile", *groups)
            return
        with self.under("if TMA:"):
            corner = ", ".join([*fixed, row, column])
            self.put(f"{name} = {access.argument}.load([{corner}]).reshape([{', '.join(block)}])")
        with self.under("else:"):
            self._call(f"{name} = load_tile", *groups)

    def _call(self, head: str, *groups: list[str]) -> None:
        """A call in one line, or with a line for each group of arguments."""
        parts = [[expression(part) for part in group] for group in groups]
        one = f"{head}({', '.join(part for group in parts for part in group)})"
        if 4 * self.depth + len(one) <= WIDTH:
            self.put(one)
        else:
            self.lines += call(head, parts, self.depth)

    def _pointer(self, access: Access, fixed: list[str]) -> list[str]:
        """Where the matrix begins, and its strides."""
        strides = (f"{access.argument}_s{axis}" for axis in (access.row_axis, access.col_axis))
        return [self._base(access, fixed), *strides]

    def _extents(self, matrix: ir.Matrix) -> list[str]:
        return [self.values.index(matrix.rows), self.values.index(matrix.cols)]

    def _load_vector(self, name: str, node: ir.Load, access: Access, fixed: list[str], row: str) -> None:
        at = f"({row} + tl.arange(0, {self.block(node.tile.shape[0])}))"
        pad = self.values.value(node.pad, False, node.source)
        pointers = f"{self._base(access, fixed)} + {at} * {access.argument}_s{access.row_axis}"
        inside = f"{at} < {self.values.index(node.matrix.rows)}"
        self.put(f"{name} = tl.load({pointers}, mask={inside}, other={pad})")

    def _store(self, node: ir.Store) -> None:
        self.note(node)
        shape = node.tile.shape
        access = self.accesses.of(node.matrix, shape, node.source)
        fixed, row, column = self._place(access, node.row, node.col)
        value = self.values.ref(node.tile, False)
        if shape[1] == ONE:
            at = f"({row} + tl.arange(0, {self.block(shape[0])}))"
            pointers = f"{self._base(access, fixed)} + {at} * {access.argument}_s{access.row_axis}"
            self.put(f"tl.store({pointers}, {value}, mask={at} < {self.values.index(node.matrix.rows)})")
            return
        block = [self.block(n) for n in shape]
        groups = self._pointer(access, fixed), [row, column, *self._extents(node.matrix), value, *block]
        if not access.tma:
            self._call("store_tile", *groups)
            return
        with self.under("if TMA:"):
            corner = ", ".join([*fixed, row, column])
            whole = ", ".join([*("1" for _ in fixed), *block])
            typed = f"{value}.to({access.argument}.dtype)"
            self.put(f"{access.argument}.store([{corner}], {typed}.reshape([{whole}]))")
        with self.under("else:"):
            self._call("store_tile", *groups)

    def _move(self, node: ir.Move) -> None:
        self.note(node)
        source, values = node.tile, self.values
        if source == node.target:
            return
        if source in self._sliced and source in self._loads:
            self._loads[node.target] = self._loads[source]
        operand = source in values.operand_typed
        clean = source in self._clean
        text = values.names[source] if operand and source not in values.pending else values.ref(source, False)
        if node.target.level is Level.SHARED and not operand:
            text, operand = f"({text}).to(OPERAND)", True
        self._assign(node.target, text, clean, operand)
