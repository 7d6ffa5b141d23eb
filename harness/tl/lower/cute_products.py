"""Owns the CuTe text of values and products: element-wise work, factors that wait for exp2, GEMMs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.cute_text import ONE, PRODUCT, Cpp, call, index
from harness.tl.lower.cute_tiles import TileText
from harness.tl.lower.facts import keeps_zero, starts_with_value
from harness.tl.lower.lowered import LowerError, comment
from harness.tl.syntax import Level

_CAST = {"fp16": "half_t", "bf16": "bfloat16_t"}


@dataclass
class ProductText(TileText):
    """Writes what gives a tile its value, but for reductions, masks and the softmax.

    `masked`: C++ of whether a mask or a dead position can play a part here; "true" and "false" where known.
    """

    masked: str = "true"
    dead_inf: set[ir.Tile] = field(default_factory=set)  # -inf at positions past the end
    dead_zero: set[ir.Tile] = field(default_factory=set)  # 0 there
    operands: dict[ir.Tile, str] = field(default_factory=dict)  # reshaped, unchanged since: a comment to come
    partial: set[ir.Tile] = field(default_factory=set)  # sums over a thread's own columns, not finished yet

    def changed(self, tile: ir.Tile) -> None:
        """The tile has a new value: what was known of the old one is forgotten."""
        self.values.pending.pop(tile, None)
        self.operands.pop(tile, None)
        self.dead_inf.discard(tile)
        self.dead_zero.discard(tile)

    def _init(self, node: ir.Init) -> None:
        if node.value is None:
            return
        if node.tile.level is Level.SHARED:
            raise LowerError("a tile of shared memory starts with what is copied to it", node.source)
        self.note(node)
        self.changed(node.tile)
        self.put(f"fill({self.names[node.tile]}, {self.values.value(node.value, False, node.source).code});")

    def _moved(self, node: ir.Move) -> None:
        if node.tile in self.values.pending:
            self.settle(node.tile)
        self.changed(node.target)
        self.move(node)

    def _map(self, node: ir.Map) -> None:
        if self._open_factor(node):
            return
        self.note(node)
        result = node.result
        if result.level is Level.SHARED:
            raise LowerError(
                "element-wise work gives a register tile", node.source, "copy it to shared afterwards"
            )
        expr = node.expr
        if isinstance(expr, ir.Ref) and expr.tile == result:
            return
        wide = result.shape[1] != ONE
        dead_inf, dead_zero = self._dead(expr)
        with self.positions(result.shape[0]) as before:
            value = self.values.value(expr, wide, node.source)
        self.changed(result)
        if result.dtype in _CAST:
            value = call(f"rounded<{_CAST[result.dtype]}>", value)
        self._assign(result, value, before)
        if dead_inf:
            self.dead_inf.add(result)
        if dead_zero:
            self.dead_zero.add(result)

    def _assign(self, result: ir.Tile, value: Cpp, before: list[str], when: str = "") -> None:
        """result = value, element by element; `when`: only where this holds."""
        name = self.names[result]
        at, given = (
            ("mm, nn, ee", "int mm, int nn, int ee")
            if result.shape[1] != ONE
            else ("mm, hh", "int mm, int hh")
        )
        assign = f"{name}({at}) = {value.code};"
        if when:
            assign = f"if ({when}) {assign}"
        if not before and len(assign) < 60:
            self.put(f"each({name}, [&]({given}) {{ {assign} }});")
            return
        with self.block("") if before else nullcontext():
            for line in before:
                self.put(line)
            with self.block(f"each({name}, [&]({given})", "});"):
                self.put(assign)

    def _dead(self, expr: ir.Expr) -> tuple[bool, bool]:
        """Whether the value is -inf, and whether it is 0, at every position past the end."""
        match expr:
            case ir.Ref(tile=tile):
                return tile in self.dead_inf, tile in self.dead_zero
            case ir.Op(fn="exp" | "exp2", args=(x,)):
                return False, self._dead(x)[0]
            case ir.Op(fn="sub", args=(a, _)):
                return self._dead(a)[0], False
            case ir.Op(fn="where", args=(_, a, b)):
                both = [self._dead(x) for x in (a, b)]
                return all(x for x, _ in both), all(x for _, x in both)
        return False, keeps_zero(expr, self.dead_zero)

    def _open_factor(self, node: ir.Map) -> bool:
        """Scores times a positive scalar: the factor costs nothing where they are exponentiated."""
        expr = node.expr
        if not (isinstance(expr, ir.Op) and expr.fn == "mul" and len(expr.args) == 2) or node.result.dtype:
            return False
        for tile, other in (expr.args, expr.args[::-1]):
            if not (isinstance(tile, ir.Ref) and tile.tile == node.result and ONE not in tile.tile.shape):
                continue
            if (
                not self._known_to_host(other)
                or starts_with_value(self.kernel, tile.tile)
                or tile.tile.level is Level.SHARED
            ):
                return False
            text = self.values.value(other, False, node.source).inside(PRODUCT + 1)
            name = next((n for n, e in self.factors.items() if e == other), "")
            if not name:
                name = f"factor_{text}" if text.isidentifier() else f"factor_{len(self.factors) + 1}"
                self.factors[name] = other
            self.note(node, "waits until it can be folded into exp2")
            scores = self.names[tile.tile]
            times = f"[&](int mm, int nn, int ee) {{ {scores}(mm, nn, ee) *= {text}; }}"
            self.put(f"if constexpr (!FOLD) each({scores}, {times});")
            old = self.values.pending.get(tile.tile)
            self.operands.pop(tile.tile, None)
            self.values.pending[tile.tile] = f"({old} * {name})" if old else name
            return True
        return False

    def _known_to_host(self, factor: ir.Expr) -> bool:
        """Whether the host can compute the scalar, and so knows its sign."""
        for part in ir.walk(factor):
            match part:
                case ir.Const() | ir.Op(fn="add" | "sub" | "mul" | "div" | "neg"):
                    continue
                case ir.Sym(name=name) if name in self.floats:
                    continue
            return False
        return True

    def settle(self, tile: ir.Tile) -> None:
        """Carry out what is still open on a tile."""
        if tile in self.values.pending:
            value = self.values.ref(tile, True)
            del self.values.pending[tile]
            self._assign(tile, value, [])

    def settle_all(self) -> None:
        for tile in list(self.values.pending):
            self.settle(tile)

    def _reshape(self, node: ir.Reshape) -> None:
        """Its code stands before the product that takes the operand, behind the barrier there.

        Before the barrier it would keep operand and accumulator alive side by side for longer.
        """
        if node.tile.level is Level.SHARED:
            self.note(node, "it comes from shared memory: nothing to do")
            return
        self.settle(node.tile)
        self.operands[node.tile] = f"// {comment(node)}"

    def _operand(self, tile: ir.Tile) -> str:
        """C++ of a register tile as the first operand of a product."""
        if tile not in self.operands:
            return f"reshape<T>({self.names[tile]})"
        name = f"{self.names[tile]}_operand"
        if self.operands[tile]:
            self.put(self.operands[tile])
            self.put(f"const auto {name} = reshape<T>({self.names[tile]});")
            self.operands[tile] = ""
        return name

    def _gemm(self, node: ir.Gemm) -> None:
        a, b, result = node.a, node.b, node.result
        if b.tile.level is not Level.SHARED:
            raise LowerError(
                f"the second operand `{b.tile.name}` is in registers, where no mma can take it whole",
                node.source, "keep it in shared memory",
            )  # fmt: skip
        if a.transposed:
            raise LowerError("a transposed first operand has no CuTe code", node.source)
        if node.contracted is not None and a.tile.level is Level.REGISTER and a.tile not in self.dead_zero:
            self._kill(a.tile, node.contracted, "0.f")
        for tile in (a.tile, *((result,) if node.accumulate else ())):
            self.settle(tile)
        if a.tile.level is Level.SHARED:
            left = f"operand<{self.pieces(a.tile.shape[0])}>({self.place_of(a.tile)})"
        else:
            left = self._operand(a.tile)
        self.note(node)
        name = self.names[result]
        if not node.accumulate:
            self.put(f"fill({name}, 0.f);")
        self.changed(result)
        width = self.size(a.tile.shape[1])
        start, stop = (index(x).code for x in a.columns) if a.columns else ("0", f"padded({width})")
        if a.columns and index(a.columns[1]).code == width:
            stop = f"padded({width})"
        b_start = index(b.columns[0]).code if b.columns else "0"
        right = self.place_of(b.tile)
        if b.transposed:
            self.put(f"gemm_nt<{start}, {stop}, {b_start}>({name}, {left}, {right});")
        elif a.columns:
            raise LowerError("columns of an operand that is summed over keys have no CuTe code", node.source)
        else:
            self.put(f"gemm_nn<{b_start}>({name}, {left}, {right});")

    def _kill(self, tile: ir.Tile, axis: ir.Axis, value: str) -> None:
        """Positions past the end of their sequence get a value that counts for nothing."""
        if self.masked != "false":
            self.settle(tile) if value != "-kInfinity" else None
            with self.positions(tile.shape[0]) as before:
                at = self._place(ir.Place(axis.role, 1, axis.base), True)
            dead = f"{at.code} >= {axis.role}"
            guard = f"if ({self.masked})" if self.masked != "true" else ""
            self.put("// keys past the end count for nothing")
            with self.block(guard):
                for line in before:
                    self.put(line)
                self._assign(tile, Cpp(value), [], dead)
        self.operands.pop(tile, None)
        (self.dead_inf if value == "-kInfinity" else self.dead_zero).add(tile)
