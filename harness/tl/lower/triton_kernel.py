"""Owns the Triton text of one kernel's statements: what each operation of the resolved form becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from harness.tl import ir
from harness.tl.lower.lowered import LowerError, comment
from harness.tl.lower.peel import Peeled, peel
from harness.tl.lower.triton_memory import Access, Accesses
from harness.tl.lower.triton_values import LOG2_E, ONE, Values, bare
from harness.tl.syntax import Level, Statement

RESERVED = frozenset("tl triton torch q k v out scale OPERAND PRECISION TMA FOLD EVEN pid".split())


@dataclass
class KernelText:
    """Writes one kernel; `lines` is its body. `sizes` collects the axis sizes that need a constexpr."""

    kernel: ir.Kernel
    parameters: frozenset[str]
    floats: frozenset[str]  # scalars that are no whole numbers
    overlap: bool = False
    lines: list[str] = field(default_factory=list)
    sizes: dict[ir.Expr, str] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)  # argument -> host text of a score factor
    evens: dict[str, tuple[ir.Expr, ir.Expr]] = field(default_factory=dict)  # constexpr -> (whole rounds end, loop ends)
    depth: int = 1

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
        self.values = Values(names, self.block, _may_be_minus_infinity(self.kernel), self._element)
        self._masked = True  # whether dead positions and masks must be looked at here
        self._sliced = _only_sliced(self.kernel)
        self._loads: dict[ir.Tile, ir.Load] = {}
        self._clean: set[ir.Tile] = set()  # zero past the true size, where an axis is padded
        self._dead_zero: set[ir.Tile] = set()  # zero at dead positions, as a softmax leaves them

    # --- text ---

    def put(self, line: str) -> None:
        self.lines.append("    " * self.depth + line if line else "")

    def note(self, node: ir.Node, extra: str = "") -> None:
        text = comment(node)
        if text:
            self.put(f"# {text}{extra}")

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

    # --- statements ---

    def run(self) -> None:
        self.body(self.kernel.body)

    def body(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: ir.Node) -> None:
        match node:
            case ir.Init():
                self._init(node)
            case ir.Load():
                self._load(node)
            case ir.Store():
                self._store(node)
            case ir.Move():
                self._move(node)
            case ir.Gemm():
                self._gemm(node)
            case ir.Map():
                self._map(node)
            case ir.Reduce():
                self._reduce(node)
            case ir.Mask():
                self._mask(node)
            case ir.Softmax():
                self._softmax(node)
            case ir.Reshape():
                self.note(node, "  (the compiler converts the layout)")
            case ir.For():
                self._for(node)
            case ir.If():
                self._if(node)

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
        self.put(f"{values.names[tile]} = {bare(text)}")

    def _init(self, node: ir.Init) -> None:
        if node.value is None:
            return
        self.note(node)
        text = bare(self.values.value(node.value, False, node.source))
        self._assign(node.tile, f"tl.full([{', '.join(self.shape(node.tile))}], {text}, tl.float32)", node.value == ir.Const(0))

    def _place(self, access: Access, row: ir.Expr, col: ir.Expr) -> tuple[list[str], str, str]:
        index = self.values.index
        matrix = access.matrix
        fixed = [bare(index(axis)) for axis in matrix.axes if not isinstance(axis, str)]
        return fixed, bare(index(row)), bare(index(col))

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
        rows, cols = self.block(shape[0]), self.block(shape[1])
        extents = f"{bare(self.values.index(node.matrix.rows))}, {bare(self.values.index(node.matrix.cols))}"
        pad = bare(self.values.value(node.pad, False, node.source))
        check = "True" if self._masked or self._padded(shape[1]) else "False"
        if check == "True" and not self._masked:
            check = f"{self.true_size(shape[1])} != {cols}"
        strides = f"{access.argument}_s{access.row_axis}, {access.argument}_s{access.col_axis}"
        pointer = (f"load_tile({self._base(access, fixed)}, {row}, {column}, {strides}, {extents}, {pad}, "
                   f"{rows}, {cols}, {check})")  # fmt: skip
        if access.tma:
            self.put("if TMA:")
            self.put(f"    {name} = {access.argument}.load([{', '.join([*fixed, row, column])}]).reshape([{rows}, {cols}])")
            self.put("else:")
            self.put(f"    {name} = {pointer}")
        else:
            self.put(f"{name} = {pointer}")

    def _load_vector(self, name: str, node: ir.Load, access: Access, fixed: list[str], row: str) -> None:
        at = f"({row} + tl.arange(0, {self.block(node.tile.shape[0])}))"
        pad = bare(self.values.value(node.pad, False, node.source))
        self.put(f"{name} = tl.load({self._base(access, fixed)} + {at} * {access.argument}_s{access.row_axis}, "
                 f"mask={at} < {bare(self.values.index(node.matrix.rows))}, other={pad})")  # fmt: skip

    def _store(self, node: ir.Store) -> None:
        self.note(node)
        shape = node.tile.shape
        access = self.accesses.of(node.matrix, shape, node.source)
        fixed, row, column = self._place(access, node.row, node.col)
        value = self.values.ref(node.tile, False)
        if shape[1] == ONE:
            at = f"({row} + tl.arange(0, {self.block(shape[0])}))"
            pointers = f"{self._base(access, fixed)} + {at} * {access.argument}_s{access.row_axis}"
            self.put(f"tl.store({pointers}, {value}, mask={at} < {bare(self.values.index(node.matrix.rows))})")
            return
        rows, cols = self.block(shape[0]), self.block(shape[1])
        extents = f"{bare(self.values.index(node.matrix.rows))}, {bare(self.values.index(node.matrix.cols))}"
        strides = f"{access.argument}_s{access.row_axis}, {access.argument}_s{access.col_axis}"
        plain = f"store_tile({self._base(access, fixed)}, {row}, {column}, {strides}, {extents}, {value}, {rows}, {cols})"
        if access.tma:
            ones = "1, " * len(fixed)
            self.put("if TMA:")
            self.put(f"    {access.argument}.store([{', '.join([*fixed, row, column])}], "
                     f"{value}.to({access.argument}.dtype).reshape([{ones}{rows}, {cols}]))")  # fmt: skip
            self.put("else:")
            self.put(f"    {plain}")
        else:
            self.put(plain)

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

    # --- products ---

    def _operand(self, operand: ir.Operand, contracted: int, axis: ir.Axis | None, source: Statement | None) -> str:
        """Text of an operand; `contracted`: which of its axes as written in the tile is summed over."""
        tile, values = operand.tile, self.values
        if operand.columns is not None:
            load = self._loads.get(tile)
            if load is None:
                raise LowerError(f"columns of `{tile.name}`, which was not just loaded, have no Triton code", source,
                                 "slice what a Copy from global brought")  # fmt: skip
            start, stop = operand.columns
            width = ir.Op("sub", (stop, start)) if start != ir.Const(0) else stop
            if isinstance(start, ir.Const) and isinstance(stop, ir.Const):
                width = ir.Const(stop.value - start.value)
            name = f"{values.names[tile]}_slice"
            self._load_into(name, load, (tile.shape[0], width), _plus(load.col, start))
            return f"{name}.T" if operand.transposed else name
        text = values.names[tile]
        typed = tile in values.operand_typed and tile not in values.pending
        if not typed:
            text = values.ref(tile, False)
        size = tile.shape[contracted]
        if size in self.sizes and tile not in self._clean:
            cols = "[None, :]" if contracted == 1 else "[:, None]"
            text = f"tl.where(tl.arange(0, {self.block(size)}){cols} < {self.true_size(size)}, {bare(text)}, 0.0)"
        if axis is not None and self._masked:
            at = "[None, :]" if contracted == 1 else "[:, None]"
            alive = f"({self._alive(axis, size)}){at}"
            if tile not in values.operand_typed and tile not in self._dead_zero:
                text = f"tl.where({alive}, {bare(text)}, 0.0)"
        if not typed:
            text = f"({text}).to(OPERAND)" if not text.startswith("tl.where") else f"{text}.to(OPERAND)"
        return f"{text}.T" if operand.transposed else text

    def _alive(self, axis: ir.Axis, size: ir.Expr) -> str:
        base = self.values.index(axis.base)
        return f"{bare(base)} + tl.arange(0, {self.block(size)}) < {axis.role}"

    def _gemm(self, node: ir.Gemm) -> None:
        self.note(node)
        values = self.values
        left = self._operand(node.a, 0 if node.a.transposed else 1, node.contracted, node.source)
        dead = node.contracted if node.a.tile in values.operand_typed else None  # a loaded tile is 0 there
        right = self._operand(node.b, 1 if node.b.transposed else 0, dead, node.source)
        if node.accumulate:
            if node.result in values.pending:
                self._settle(node.result)
            self._assign(node.result, f"tl.dot({left}, {right}, {values.names[node.result]}, input_precision=PRECISION)")
        else:
            self._assign(node.result, f"tl.dot({left}, {right}, input_precision=PRECISION)")

    # --- element-wise ---

    def _map(self, node: ir.Map) -> None:
        factor = self._factor(node)
        if factor is not None:
            self._open_factor(node, *factor)
            return
        self.note(node)
        self._check_places(node)
        wide = ONE not in node.result.shape
        values = self.values
        text = self._with_places(node.expr, node.result.shape, wide, node.source)
        if not ir.refs(node.expr) or not any(_covers(t, node.result) for t in ir.refs(node.expr)):
            text = f"tl.zeros([{', '.join(self.shape(node.result))}], tl.float32) + {text}"
        clean = _keeps_zero(node.expr, self._clean)
        if isinstance(node.expr, ir.Ref) and node.expr.tile == node.result and node.result not in values.operand_typed:
            return
        self._assign(node.result, text, clean)

    def _with_places(self, expr: ir.Expr, shape: tuple[ir.Expr, ir.Expr], wide: bool, source: Statement | None) -> str:
        original = self.values.place
        self.values.place = lambda e, w, extent=None: original(e, w, shape[e.axis])  # type: ignore[method-assign]
        try:
            return self.values.value(expr, wide, source)
        finally:
            self.values.place = original  # type: ignore[method-assign]

    def _check_places(self, node: ir.Map) -> None:
        for part in ir.walk(node.expr):
            if isinstance(part, ir.Element):
                raise LowerError("single elements of a tensor have no Triton code yet", node.source)

    def _factor(self, node: ir.Map) -> tuple[ir.Tile, ir.Expr] | None:
        """A score times scalars: (the scores, the scalar)."""
        expr = node.expr
        if not (isinstance(expr, ir.Op) and expr.fn == "mul" and len(expr.args) == 2) or node.result.dtype:
            return None
        for tile, other in (expr.args, expr.args[::-1]):
            if isinstance(tile, ir.Ref) and not ir.refs(other) and tile.tile == node.result and ONE not in tile.tile.shape:
                if tile.tile in self.values.operand_typed or self._loop_carried(tile.tile):
                    return None
                ok = all(isinstance(p, ir.Sym | ir.Const | ir.Op) for p in ir.walk(other))
                host = all(not isinstance(p, ir.Sym) or p.name in self.floats for p in ir.walk(other))
                return (tile.tile, other) if ok and host else None
        return None

    def _loop_carried(self, tile: ir.Tile) -> bool:
        return any(isinstance(n, ir.Init) and n.tile == tile and n.value is not None for n in ir.nodes(self.kernel.body))

    def _open_factor(self, node: ir.Map, tile: ir.Tile, factor: ir.Expr) -> None:
        """The factor waits until the scores are exponentiated, where it costs nothing; it must be positive."""
        text = bare(self.values.value(factor, False, node.source))
        name = next((n for n, t in self.factors.items() if t == text), "")
        if not name:
            name = f"factor_{text}" if text.isidentifier() else f"factor_{len(self.factors) + 1}"
            self.factors[name] = text
        self.note(node, "  (waits until it can be folded into exp2)")
        self.put("if not FOLD:")
        self.put(f"    {self.values.names[tile]} = {self.values.names[tile]} * ({text})")
        old = self.values.pending.get(tile)
        self.values.pending[tile] = f"({old} * {name})" if old else name

    def _settle(self, tile: ir.Tile) -> None:
        """Carry out what is still open on a tile."""
        if tile in self.values.pending:
            text = self.values.ref(tile, False)
            self._assign(tile, text, tile in self._clean)

    # --- reductions, masks, softmax ---

    def _reduce(self, node: ir.Reduce) -> None:
        self.note(node)
        lowest = "max" if node.fn == "max" else "sum"
        fill = 'float("-inf")' if node.fn == "max" else "0.0"
        factor = ""
        if isinstance(node.expr, ir.Ref) and node.fn == "max" and node.expr.tile in self.values.pending:
            text = self.values.names[node.expr.tile]
            factor = f" * {self.values.pending[node.expr.tile]}"
        else:
            text = self._with_places(node.expr, node.shape, True, node.source)
        if node.across is not None and self._masked:
            text = f"tl.where(({self._alive(node.across, node.shape[1])})[None, :], {bare(text)}, {fill})"
        elif node.across is None and self._padded(node.shape[1]):
            size = node.shape[1]
            inside = f"(tl.arange(0, {self.block(size)}) < {self.true_size(size)})[None, :]"
            text = f"tl.where({inside}, {bare(text)}, {fill})"
        text = f"tl.{lowest}({bare(text)}, 1){factor}"
        if node.start is not None:
            start = bare(self.values.value(node.start, False, node.source))
            text = f"tl.maximum({start}, {text})" if node.fn == "max" else f"{start} + {text}"
        self._assign(node.result, text)

    def _mask(self, node: ir.Mask) -> None:
        if not self._masked and ir.refs(node.cond) == ():
            self.note(node, "  (holds for every element here)")
            if node.tile != node.result:
                self._carry_over(node.tile, node.result)
            return
        self.note(node)
        cond = self._with_places(node.cond, node.tile.shape, True, node.source)
        if node.tile in self.values.operand_typed:
            raise LowerError("a mask on a tile just loaded has no Triton code", node.source, "mask the scores")
        pending = self.values.pending.get(node.tile)
        text = f'tl.where({bare(cond)}, {self.values.names[node.tile]}, float("-inf"))'
        self._assign(node.result, text)
        if pending is not None:
            self.values.pending[node.result] = pending

    def _carry_over(self, tile: ir.Tile, result: ir.Tile) -> None:
        pending = self.values.pending.get(tile)
        self._assign(result, self.values.names[tile])
        if pending is not None:
            self.values.pending[result] = pending

    def _softmax(self, node: ir.Softmax) -> None:
        self.note(node)
        values = self.values
        factor = values.pending.get(node.tile)
        scores = values.names[node.tile]
        if node.tile in values.operand_typed:
            scores = f"{scores}.to(tl.float32)"
        m, l = values.names[node.m], values.names[node.l]  # noqa: E741
        if self._masked and node.across is not None:
            alive = self._alive(node.across, node.tile.shape[1])
            self.put(f'{scores} = tl.where(({alive})[None, :], {scores}, float("-inf"))')
        times = f" * {factor}" if factor else ""
        log2 = f"({factor} * {LOG2_E})" if factor else LOG2_E
        self.put(f"m_next = tl.maximum({m}, tl.max({scores}, 1){times})")
        if self._masked:
            self.put("m_used = finite(m_next)")
        else:
            self.put("m_used = m_next")
        self.put(f"decay = tl.math.exp2(({m} - m_used) * {LOG2_E})")
        self._assign(node.result, f"tl.math.exp2({scores} * {log2} - (m_used * {LOG2_E})[:, None])")
        self._dead_zero.add(node.result)
        self.put(f"{l} = {l} * decay + tl.sum({values.names[node.result]}, 1)")
        for tile in node.rescale:
            self._settle(tile)
            at = "[:, None]" if tile.shape[1] != ONE else ""
            self.put(f"{values.names[tile]} = {values.names[tile]} * decay{at}")
        if node.alpha is not None:
            self._assign(node.alpha, "decay")
        self.put(f"{m} = m_next")

    # --- control ---

    def _if(self, node: ir.If) -> None:
        for tile in list(self.values.pending):
            self._settle(tile)
        self.note(node)
        self.put(f"if {bare(self.values.index(node.cond))}:")
        self.depth += 1
        self.body(node.then or ())
        self.put("pass")
        self.depth -= 1
        if node.otherwise:
            self.put("else:")
            self.depth += 1
            self.body(node.otherwise)
            self.put("pass")
            self.depth -= 1

    def _for(self, node: ir.For) -> None:
        for tile in list(self.values.pending):
            self._settle(tile)
        ahead = _ahead(node) if self.overlap and node.step == ONE else None
        peeled = peel(node)
        was, v = self._masked, node.var
        start, stop = bare(self.values.index(node.start)), bare(self.values.index(node.stop))
        unmasked = peeled is not None and not (peeled.lows or peeled.highs)
        if (peeled is None or unmasked or node.step != ONE) and ahead is None:
            self.note(node)
            self._masked = was if unmasked else True
            self._loop(node, start, stop)
            self._masked = was
            return
        self.note(node, "  (rounds that need no mask apart)")
        self.put(f"{v}_start, {v}_stop = {start}, {stop}")
        spans = self._spans(v, peeled)
        self._even(node, peeled)
        if ahead is None:
            self._in_turn(node, spans)
        else:
            self.put("if OVERLAP:")
            self.depth += 1
            state = self._state()
            self._overlapped(node, spans, *ahead)
            self._restore(state)
            self.depth -= 1
            self.put("else:")
            self.depth += 1
            self._in_turn(node, spans)
            self.depth -= 1
        self._masked = was

    def _spans(self, v: str, peeled: Peeled | None) -> list[tuple[str, str, bool]]:
        """The loop cut into (start, stop, masked), in order; the bounds are written before."""
        index = self.values.index
        if peeled is None:
            return [(f"{v}_start", f"{v}_stop", True)]
        spans: list[tuple[str, str, bool]] = []
        whole = f"{v}_start"
        if peeled.lows:
            for low in peeled.lows:
                whole = f"tl.maximum({whole}, {bare(index(low))})"
            self.put(f"{v}_whole = tl.minimum({whole}, {v}_stop)")
            whole = f"{v}_whole"
            spans.append((f"{v}_start", whole, True))
        if not peeled.highs:
            return [*spans, (whole, f"{v}_stop", False)]
        tail = f"{v}_stop"
        for high in peeled.highs:
            tail = f"tl.minimum({tail}, {bare(index(high))})"
        self.put(f"{v}_tail = tl.maximum({tail}, {whole})")
        return [*spans, (whole, f"{v}_tail", False), (f"{v}_tail", f"{v}_stop", True)]

    def _even(self, node: ir.For, peeled: Peeled | None) -> None:
        """Where the end of the rounds without a mask is known before the launch, so is whether any are left."""
        known = {"seq_q", "seq_k", "dim", "dim_v", "batch", "heads", "kv_heads", "group", *self.parameters}
        if peeled is None or peeled.lows or not peeled.highs or node.start != ir.Const(0):
            return
        whole = peeled.highs[0]
        for high in peeled.highs[1:]:
            whole = ir.Op("min", (whole, high))
        symbols = {p.name for e in (whole, node.stop) for p in ir.walk(e) if isinstance(p, ir.Sym)}
        if symbols <= known and not any(isinstance(p, ir.Op) and p.fn == "where" for p in ir.walk(whole)):
            self.evens[f"EVEN_{node.var}"] = (whole, node.stop)

    def _in_turn(self, node: ir.For, spans: list[tuple[str, str, bool]]) -> None:
        even = f"EVEN_{node.var}"
        for n, (start, stop, masked) in enumerate(spans):
            self._masked = masked
            if n and masked and even in self.evens:
                self.put(f"if not {even}:")
                self.depth += 1
                self._loop(node, start, stop)
                self.depth -= 1
            else:
                self._loop(node, start, stop)

    def _overlapped(
        self, node: ir.For, spans: list[tuple[str, str, bool]], head: tuple[ir.Node, ...], rest: tuple[ir.Node, ...]
    ) -> None:
        """Each round computes the next round's first products before it works on its own."""
        v = node.var
        made = [n.result for n in head if isinstance(n, ir.Gemm)]
        self._head(head, made, v, f"{v}_start", "  (of the first round)")
        for start, stop, masked in spans:
            self.put(f"for {v} in range({start}, tl.minimum({stop}, {v}_stop - 1)):")
            self.depth += 1
            state = self._state()
            for tile in made:
                self._assign(tile, f"{self.values.names[tile]}_ahead")
            self._head(head, made, v, f"({v} + 1)", "  (of the next round)")
            self._masked = masked
            self.body(rest)
            self._settle_all()
            self.depth -= 1
            self._restore(state)
        self.put(f"if {v}_start < {v}_stop:  # the last round has no next")
        self.depth += 1
        state = self._state()
        self._masked = True
        self.put(f"{v} = {v}_stop - 1")
        for tile in made:
            self._assign(tile, f"{self.values.names[tile]}_ahead")
        self.body(rest)
        self._settle_all()
        self.depth -= 1
        self._restore(state)

    def _head(self, head: tuple[ir.Node, ...], made: list[ir.Tile], var: str, at: str, extra: str) -> None:
        values = self.values
        names, renamed, masked = dict(values.names), values.renamed, self._masked
        values.names.update({tile: f"{names[tile]}_ahead" for tile in made})
        values.renamed = {**renamed, var: at}
        self._masked = True  # a tile past the end reads as zeros
        for node in head:
            mark = len(self.lines)
            self.statement(replace(node, contracted=None) if isinstance(node, ir.Gemm) else node)
            if len(self.lines) > mark and self.lines[mark].lstrip().startswith("#"):
                self.lines[mark] += extra
        values.names, values.renamed, self._masked = names, renamed, masked

    def _state(self) -> tuple[set[ir.Tile], set[ir.Tile], dict[ir.Tile, ir.Load], set[ir.Tile]]:
        return set(self.values.operand_typed), set(self._clean), dict(self._loads), set(self._dead_zero)

    def _restore(self, state: tuple[set[ir.Tile], set[ir.Tile], dict[ir.Tile, ir.Load], set[ir.Tile]]) -> None:
        self.values.operand_typed, self._clean, self._loads, self._dead_zero = (
            set(state[0]), set(state[1]), dict(state[2]), set(state[3]),
        )  # fmt: skip

    def _settle_all(self) -> None:
        for tile in list(self.values.pending):
            self._settle(tile)

    def _loop(self, node: ir.For, start: str, stop: str) -> None:
        step = "" if node.step == ONE else f", {bare(self.values.index(node.step))}"
        self.put(f"for {node.var} in range({start}, {stop}{step}):")
        self.depth += 1
        state = self._state()
        self.body(node.body)
        self._settle_all()
        self.depth -= 1
        self._restore(state)


def _ahead(loop: ir.For) -> tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]] | None:
    """The loop's first products with the loads that only they need, and the rest; None where there are none.

    They depend on nothing that the loop computes, so the next round's can be computed in this one.
    """
    if any(isinstance(n, ir.For | ir.If) for n in loop.body):
        return None
    written = {t for n in loop.body for t in ir.writes(n)}
    loads = {n.tile: n for n in loop.body if isinstance(n, ir.Load)}
    products = []
    for n in loop.body:
        if isinstance(n, ir.Gemm) and not n.accumulate:
            operands = (n.a.tile, n.b.tile)
            if n.contracted is None and all(t not in written or t in loads for t in operands):
                products.append(n)
    if not products:
        return None
    made = {n.result for n in products}
    first_writes = {n.result: next(x for x in loop.body if n.result in ir.writes(x)) for n in products}
    if any(first_writes[n.result] is not n and not isinstance(first_writes[n.result], ir.Init) for n in products):
        return None
    needed = {t for n in products for t in (n.a.tile, n.b.tile) if t in loads}
    others = [n for n in loop.body if n not in products]
    if any(needed & set(ir.reads(n)) for n in others) or len(made) != len(products):
        return None
    head = tuple(n for n in loop.body if n in products or (isinstance(n, ir.Load) and n.tile in needed))
    rest = tuple(n for n in loop.body if n not in head)
    return head, rest


def _plus(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    return b if a == ir.Const(0) else a if b == ir.Const(0) else ir.Op("add", (a, b))


def _covers(tile: ir.Tile, result: ir.Tile) -> bool:
    return all(r == ONE or t != ONE for t, r in zip(tile.shape, result.shape, strict=True))


def _keeps_zero(expr: ir.Expr, clean: set[ir.Tile]) -> bool:
    """Whether the value is zero wherever the clean tiles are."""
    match expr:
        case ir.Ref(tile=tile):
            return tile in clean
        case ir.Op(fn="mul", args=args):
            return any(_keeps_zero(a, clean) for a in args)
        case ir.Op(fn="div" | "neg", args=args):
            return _keeps_zero(args[0], clean)
        case ir.Op(fn="add" | "sub" | "max" | "min", args=args):
            return all(_keeps_zero(a, clean) for a in args)
        case ir.Op(fn=fn, args=args) if fn.startswith("cast_"):
            return _keeps_zero(args[0], clean)
    return expr == ir.Const(0)


def _may_be_minus_infinity(kernel: ir.Kernel) -> frozenset[ir.Tile]:
    """Tiles that may hold -inf: masked scores, running maxima, and what is made of them."""
    found: set[ir.Tile] = set()
    while True:
        before = len(found)
        for node in ir.nodes(kernel.body):
            match node:
                case ir.Init(tile=tile, value=ir.Const(value=value)) if value == -math.inf:
                    found.add(tile)
                case ir.Mask():
                    found.add(node.result)
                case ir.Reduce(fn="max"):
                    found.add(node.result)
                case ir.Softmax():
                    found.add(node.m)
                case ir.Move() if node.tile in found:
                    found.add(node.target)
                case ir.Map() if not _ends_finite(node.expr) and (
                    found & set(ir.refs(node.expr)) or ir.Const(-math.inf) in set(ir.walk(node.expr))
                ):
                    found.add(node.result)
        if len(found) == before:
            return frozenset(found)


def _ends_finite(expr: ir.Expr) -> bool:
    """Functions that make something finite of -inf."""
    match expr:
        case ir.Op(fn="exp" | "exp2" | "sigmoid" | "tanh" | "relu"):
            return True
        case ir.Op(fn="mul", args=args):
            return any(_ends_finite(a) for a in args)
    return False


def _only_sliced(kernel: ir.Kernel) -> frozenset[ir.Tile]:
    """Loaded tiles of which only columns are ever used."""
    whole: set[ir.Tile] = set()
    sliced: set[ir.Tile] = set()
    for node in ir.nodes(kernel.body):
        if isinstance(node, ir.Gemm):
            for operand in (node.a, node.b):
                (whole if operand.columns is None else sliced).add(operand.tile)
            if node.accumulate:
                whole.add(node.result)
        elif not isinstance(node, ir.Move) or node.tile.name != node.target.name:
            whole.update(ir.reads(node))
    return frozenset(sliced - whole)

