"""Owns the Gluon text of a consumer's tiles in shared memory, and of the products that take them."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.extremes import positive_in, within
from harness.tl.lower.facts import leaves_through
from harness.tl.lower.gluon_channels import Channel, Piece, taken
from harness.tl.lower.gluon_prelude import in_gluon
from harness.tl.lower.gluon_values import GluonValues
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.triton_loops import KernelText
from harness.tl.lower.triton_values import ONE
from harness.tl.syntax import Level, Statement


@dataclass
class ProductText(KernelText):
    """Writes copies and products of one consumer; `channels` by tile of the group.

    `reuse`: whether some choice lets results leave through places that are read no more.
    """

    channels: dict[ir.Tile, Channel] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)  # name -> columns
    reuse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        v = self.values
        self.values: GluonValues = GluonValues(
            v.names, v.block, v.minus_infinity, v.element, layout=self.layout
        )
        self.outputs: dict[ir.Tile, str] = {}  # stored tile -> its buffer
        self.through = self._through() if self.reuse else None  # the tile whose place the result leaves by
        products = [n for n in ir.nodes(self.kernel.body) if isinstance(n, ir.Gemm)]
        if not products:
            raise LowerError("a kernel without a product has no Gluon code", None, "use the Triton compiler")
        self._home = self.block(products[0].result.shape[1])
        self.layout(products[0].result.shape[1])

    def _through(self) -> ir.Tile | None:
        """The tile, where each consumer has its own rows of it and its tensor has as many axes."""
        tile = leaves_through(self.kernel)
        if tile is None or not self.channels[tile].grouped:
            return None
        nodes = list(ir.nodes(self.kernel.body))
        axes = {len(n.matrix.axes) for n in nodes if isinstance(n, ir.Load) and n.tile == tile}
        axes |= {len(n.matrix.axes) for n in nodes if isinstance(n, ir.Store) and n.tile.shape[1] != ONE}
        return tile if len(axes) == 1 else None

    # --- text ---

    def put(self, line: str) -> None:
        super().put(line if line.startswith("#") else in_gluon(line))

    def block(self, size: ir.Expr) -> str:
        if isinstance(size, ir.Sym) and size.name.endswith(("_1", "_2")):
            return size.name
        return super().block(size)

    def layout(self, columns: ir.Expr) -> str:
        """The name of the layout that products leave a tile with so many columns in."""
        size = self.block(columns)
        name = f"TILE_{size}"
        self.layouts[name] = size
        return name

    # --- memory ---

    def _load(self, node: ir.Load) -> None:
        """Wait until the producer has brought the tile."""
        self.note(node, "  (waits for the producer)")
        channel = self.channels[node.tile]
        self.put(f"mbarrier.wait({channel.name}_full.index({channel.place('WHICH')}), {channel.name}_turn)")
        self._clean.add(node.tile)
        self.values.operand_typed.add(node.tile)

    def release(self, tile: ir.Tile) -> None:
        """Let the producer fill the place again."""
        channel = self.channels[tile]
        self.put(channel.release("WHICH"))
        self.put(channel.onward)

    def _in_place(self, channel: Channel, piece: Piece) -> str:
        rows = "64" if channel.grouped else self.block(channel.tile.shape[0])
        places = f"{channel.name}_places{piece.suffix}"
        return f"tile_in({places}, {channel.place('WHICH')}, {rows}, {self.block(piece.width)})"

    def _read(self, tile: ir.Tile, source: Statement | None) -> None:
        """A channel's tile that is computed on comes to registers."""
        channel = self.channels[tile]
        if len(channel.pieces) != 1 or not channel.grouped:
            raise LowerError(
                f"`{tile.name}` is computed on, which has Gluon code for whole tiles of query rows only",
                source,
            )
        self.put(f"{self.values.names[tile]} = {self._in_place(channel, channel.pieces[0])}"
                 f".load({self.layout(tile.shape[1])})")  # fmt: skip

    def _read_all(self, node: ir.Node) -> None:
        for tile in ir.reads(node):
            if tile in self.channels:
                self._read(tile, getattr(node, "source", None))

    def _store(self, node: ir.Store) -> None:
        self.note(node)
        shape = node.tile.shape
        if shape[1] == ONE or node.matrix.workspace:
            raise LowerError("only tiles of the task's outputs are stored by Gluon code", node.source)
        access = self.accesses.of(node.matrix, shape, node.source)
        fixed, row, column = self._place(access, node.row, node.col)
        buffer = self.outputs.setdefault(node.tile, f"{node.tile.name}_buffer{len(self.outputs) or ''}")
        cols = self.block(shape[1])
        value = self.values.ref(node.tile, False)
        at, left = "WHICH", "tma.store_wait(0)  # the buffer's last tile has left"
        if self.through is None:
            self.put(left)
        else:
            at = f"{buffer}_place"
            with self.under("if REUSE:"):
                self.put(f"{at} = {self.channels[self.through].place('WHICH')}  # that nobody reads any more")
            with self.under("else:"):
                self.put(left)
                self.put(f"{at} = WHICH")
        self.put("thread_barrier()")
        self.put(f"tile_in({buffer}, {at}, 64, {cols}).store(({value}).to({access.argument}.dtype))")
        self.put("fence_async_shared()")
        self.put("thread_barrier()")
        corner = ", ".join([*fixed, row, column])
        self.put(f"tma_store({access.argument}, [{corner}], {buffer}.index({at}))")
        if self.through is not None:
            with self.under("if REUSE:"):
                self.put("tma.store_wait(0)  # the place can be filled when the tile has left")
                self.release(self.through)

    def _move(self, node: ir.Move) -> None:
        if node.tile == node.target:
            self.note(node)
            return
        if node.tile in self.channels and node.target.level is Level.SHARED:
            raise LowerError("a copy of a tile inside shared memory has no Gluon code", node.source)
        if node.tile in self.channels:
            self.note(node)
            self._read(node.tile, node.source)
            self._assign(node.target, f"{self.values.names[node.tile]}.to(tl.float32)", True)
            return
        super()._move(node)

    # --- products ---

    def _left(
        self, operand: ir.Operand, result: ir.Expr, axis: ir.Axis | None, source: Statement | None
    ) -> str:
        """Text of a left operand in registers, rounded, in the layout that products take it in."""
        values, tile = self.values, operand.tile
        if operand.transposed or operand.columns is not None:
            raise LowerError(f"`{tile.name}` in registers enters a product as it is, or not at all", source)
        text = values.ref(tile, False)
        size = tile.shape[1]
        if size in self.sizes and tile not in self._clean:
            columns = f"tl.arange(0, {self.block(size)}, gl.SliceLayout(0, {self.layout(size)}))"
            text = f"tl.where(({columns} < {self.true_size(size)})[None, :], {text}, 0.0)"
        if axis is not None and self._masked and tile not in self._dead_zero:
            self.put(f"alive = {text}")
            self._drop_dead("alive", axis, size, "0.0")
            text = "alive"
        layout = f"gl.DotOperandLayout(0, {self.layout(result)}, 2)"
        return f"as_operand({text}, {layout}, OPERAND)"

    def _last_alive(self, axis: ir.Axis) -> str:
        return f"{axis.role} - 1 - ({self.values.index(axis.base)})"

    def operand_name(self, tile: ir.Tile) -> str:
        return f"{self.values.names[tile]}_operand"

    def prepare(self, node: ir.Gemm, name: str = "") -> None:
        """Write the left operand, if it is in registers; under its own name or that one."""
        if node.a.tile not in self.channels:
            text = self._left(node.a, node.result.shape[1], node.contracted, node.source)
            self.put(f"{name or self.operand_name(node.a.tile)} = {text}")

    def issue(self, node: ir.Gemm, result: str) -> None:
        """Write the product without waiting for it."""
        if node.b.tile not in self.channels:
            raise LowerError(
                f"`{node.b.tile.name}` is no copy in shared memory, where second operands come from",
                node.source, "multiply by what a Copy from global to shared brought",
            )  # fmt: skip
        columns, name = node.result.shape[1], self.values.names[node.result]
        started = f"gl.full([64, {self.block(columns)}], 0.0, gl.float32, {self.layout(columns)})"
        total = name if node.accumulate else ""
        for left, right in self._pairs(node):
            how = "" if total else ", use_acc=False"
            self.put(f"{result} = warpgroup_mma({left}, {right}, {total or started}{how}, is_async=True)")
            total = result

    def _pairs(self, node: ir.Gemm) -> list[tuple[str, str]]:
        """The operands, piece by piece of what is summed over."""
        a, b = self.channels.get(node.a.tile), self.channels[node.b.tile]
        rights = taken(b, node.b.columns)
        if node.b.transposed:
            right = [f"{self._in_place(b, p)}.permute((1, 0))" for p in rights]
        elif len(rights) == 1:
            right = [self._in_place(b, rights[0])]
        else:
            raise LowerError(f"a product with `{b.tile.name}` would come in pieces", node.source)
        if a is None:
            left = [self.operand_name(node.a.tile)]
        elif node.a.transposed or not a.grouped:
            raise LowerError(f"`{a.tile.name}` does not give the product its query rows", node.source)
        else:
            left = [self._in_place(a, p) for p in taken(a, node.a.columns)]
        if len(left) != len(right):
            raise LowerError("the operands come in pieces that do not fit each other", node.source)
        return list(zip(left, right, strict=True))

    def wait(self, node: ir.Gemm, result: str, pending: int = 0, beside: str = "") -> None:
        """Until all but so many products are done; `beside` is made before."""
        deps = [result]
        name = self.values.names[node.result]
        if node.a.tile not in self.channels:
            deps.append(self.operand_name(node.a.tile))
        deps += [beside] if beside else []
        targets = ", ".join([name, *deps[1:]])
        self.put(f"{targets} = warpgroup_mma_wait({pending}, deps=[{', '.join(deps)}])")

    def settled(self, node: ir.Gemm) -> None:
        """The tile is what the product left."""
        self.values.pending.pop(node.result, None)
        self._dead_zero.discard(node.result)
        self._clean.discard(node.result)
        self.values.operand_typed.discard(node.result)
        if node.a.tile in self._clean and node.b.tile in self._clean and not node.b.transposed:
            self._clean.add(node.result)  # what is past the columns was read as zeros

    def _gemm(self, node: ir.Gemm) -> None:
        self.note(node)
        if node.accumulate and node.result in self.values.pending:
            self._settle(node.result)
        self.prepare(node)
        name = self.values.names[node.result]
        self.issue(node, name)
        self.wait(node, name)
        self.settled(node)

    # --- dead positions ---

    def _evenly(self, axis: ir.Axis, columns: ir.Expr) -> str | None:
        """The constexpr that says that no tile along the axis has dead positions, if it can be known."""
        match axis.base:
            case ir.Op(fn="mul", args=args) if columns in args and self._stays(args, columns, axis.role):
                name = f"EVEN_{axis.role}_{self.block(columns)}"
                self.evens[name] = (ir.Op("mod", (ir.Sym(axis.role), columns)), ir.Const(0))
                return name
        return None

    def _stays(self, factors: tuple[ir.Expr, ...], columns: ir.Expr, role: str) -> bool:
        """Whether no tile that begins at the product of these begins past the end of the axis."""
        symbols = {p for f in factors for p in ir.walk(f) if isinstance(p, ir.Sym)}
        loops = [n for n in ir.nodes(self.kernel.body) if isinstance(n, ir.For) and ir.Sym(n.var) in symbols]
        positive = positive_in(self.kernel)
        row = next(a for a in self.kernel.grid if a.role == "rows")
        return all(
            ir.Sym(n.var) in factors and within(n, ir.Sym(role), columns, positive, row) for n in loops
        )

    def _drop_dead(self, name: str, axis: ir.Axis | None, columns: ir.Expr, fill: str) -> None:
        """Dead positions of a tile take the value that changes nothing."""
        if axis is None or not self._masked:
            return
        line = f"{name} = keep_until({name}, {self._last_alive(axis)}, 0, {fill})"
        even = self._evenly(axis, columns)
        if even is None:
            self.put(line)
        else:
            with self.under(f"if not {even}:"):
                self.put(line)
