"""Owns what the code of one Numba kernel may refer to: its lines, names, scalars, tensors, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.evaluate import substitute
from harness.tl.lower.lowered import LowerError, comment
from harness.tl.lower.numba_text import Kind, Names, NoText, Text, Writer
from harness.tl.problem import SIZES, TaskLike, TensorLike, symbols
from harness.tl.syntax import Statement

LOCALS = ("r", "c", "row", "rows", "col", "cols", "live", "total", "x", "first", "first_col", "work")


@dataclass(frozen=True)
class Check:
    """Two extents that must agree for the kernel to be meaningful; what to say where they do not."""

    left: ir.Expr
    right: ir.Expr
    message: str


@dataclass
class Module:
    """What all kernels of a candidate share: the task, the tile parameters, the functions used."""

    task: TaskLike
    choice: Mapping[str, int]
    parameters: Mapping[str, str]  # tile parameter -> module constant
    reserved: frozenset[str]
    workspaces: dict[str, ir.Matrix]
    uses: set[str] = field(default_factory=set)
    checks: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = {name: Kind(kind) for name, kind in symbols(self.task).items()}
        axes = {axis: Kind.INT for tensor in self.task.tensors for axis in tensor.axes}
        self.kinds: dict[str, Kind] = {**axes, **kinds}

    def tensor(self, name: str) -> TensorLike | None:
        return next((t for t in self.task.tensors if t.name == name), None)

    def known(self, expr: ir.Expr) -> ir.Expr:
        """The expression with the tile parameters' values put in."""
        return substitute(expr, {name: ir.Const(value) for name, value in self.choice.items()})

    def same(self, a: ir.Expr, b: ir.Expr) -> bool:
        """Whether two extents are equal whatever the workload."""
        return self.known(a) == self.known(b)

    def one(self, extent: ir.Expr) -> bool:
        return self.known(extent) == ir.Const(1)


class Scope:
    """The function of one block of a kernel's grid while it is written."""

    def __init__(self, kernel: ir.Kernel, module: Module) -> None:
        self.kernel, self.module = kernel, module
        self.lines: list[str] = []
        self.names = Names({*LOCALS, *module.reserved})
        self.tensors: dict[str, str] = {}  # those used -> identifier
        self.symbols: dict[str, str] = {}
        self.grid = {axis.name: self.names("grid", axis.name) for axis in kernel.grid}
        self.loops: dict[str, tuple[str, ir.For]] = {}
        self._depth = 1
        self._source: Statement | None = None
        self._said: Statement | None = None

    # --- lines ---

    def line(self, code: str) -> None:
        self.lines.append("    " * self._depth + code)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Lines inside are one level deeper; an empty block passes."""
        self.line(head)
        self._depth += 1
        before = len(self.lines)
        yield
        if all(line.lstrip().startswith("#") for line in self.lines[before:]):
            self.line("pass")
        self._depth -= 1

    @contextmanager
    def statement(self, node: ir.Node) -> Iterator[None]:
        """Names the statement in a comment, once for all that it stands for, and in errors."""
        outer, self._source = self._source, node.source or self._source
        if node.source is not None and node.source is not self._said:
            self.line(f"# {comment(node)}")
            self._said = node.source
        try:
            yield
        except NoText as error:
            raise LowerError(str(error), self._source) from None
        self._source = outer

    def error(self, message: str, fix: str = "") -> LowerError:
        return LowerError(message, self._source, fix)

    def use(self, text: Text) -> str:
        """The code; what it calls is remembered."""
        self.module.uses |= text.uses
        return text.code

    def call(self, name: str, *args: str) -> str:
        self.module.uses.add(name)
        return f"{name}({', '.join(args)})"

    # --- scalars and tensors ---

    @property
    def scalars(self) -> Writer:
        return Writer(self.symbol, self.element)

    def index(self, expr: ir.Expr) -> str:
        text = self.scalars.write(expr)
        if text.kind is not Kind.INT:
            raise NoText(f"`{text.code}` is no whole number")
        return self.use(text)

    def within(self, expr: ir.Expr, binding: int) -> str:
        """An index as part of a larger expression."""
        text = self.scalars.write(expr)
        self.use(text)
        return text.inside(binding)

    def symbol(self, name: str) -> Text:
        if name in self.loops:
            return Text(self.loops[name][0], Kind.INT)
        if name in self.grid:
            return Text(self.grid[name], Kind.INT)
        if name in self.module.parameters:
            return Text(self.module.parameters[name], Kind.INT)
        if name in self.module.kinds:
            self.symbols.setdefault(name, self.names("symbol", name))
            return Text(self.symbols[name], self.module.kinds[name])
        raise NoText(f"`{name}` has no value here")

    def tensor(self, name: str) -> str:
        """The identifier of a task tensor or a workspace."""
        if name not in self.module.workspaces and self.module.tensor(name) is None:
            raise NoText(f"there is no tensor {name}")
        return self.tensors.setdefault(name, self.names("tensor", name))

    def element(self, name: str, indices: tuple[Text, ...]) -> Text:
        """One element; an index outside the tensor reads the nearest one inside."""
        array, spec = self.tensor(name), self.module.tensor(name)
        if spec is not None and len(spec.axes) != len(indices):
            raise NoText(f"{name} has {len(spec.axes)} axes, not {len(indices)}")
        at = []
        for axis, index in enumerate(indices):
            if index.kind is not Kind.INT:
                raise NoText(f"`{index.code}` is no whole number")
            over = spec.axes[axis] if spec is not None else ""
            safe = any(self.grid[g.name] == index.code and g.extent == ir.Sym(over) for g in self.kernel.grid)
            at.append(index.code if safe else f"clip({index.code}, {array}.shape[{axis}] - 1)")
        uses = frozenset(name for index in indices for name in index.uses)
        uses |= {"clip"} if any(a.startswith("clip(") for a in at) else set()
        if spec is not None and spec.dtype is not None and "int" in spec.dtype:
            return Text(f"np.int64({array}[{', '.join(at)}])", Kind.INT, uses=uses)
        return Text(f"{array}[{', '.join(at)}]", Kind.FLOAT, uses=uses)

    def natural(self, expr: ir.Expr) -> bool:
        """Whether the index is certainly not negative."""
        match expr:
            case ir.Const(value=value):
                return value >= 0
            case ir.Sym(name=name) if name in self.loops:
                return self.natural(self.loops[name][1].start)
            case ir.Sym(name=name):
                return name in (*SIZES, "group", *self.grid, *self.module.parameters)
            case ir.Op(fn="add" | "mul" | "floordiv" | "ceildiv" | "mod" | "min", args=args):
                return all(self.natural(arg) for arg in args)
            case ir.Op(fn="max", args=args):
                return any(self.natural(arg) for arg in args)
        return False

    def require(self, left: ir.Expr, right: ir.Expr, what: str) -> None:
        """Two extents must agree: known now, or checked when the candidate is called."""
        if self.module.same(left, right):
            return
        inside = {e.name for x in (left, right) for e in ir.walk(x) if isinstance(e, ir.Sym)}
        if inside & {*self.grid, *self.loops}:
            raise self.error(f"{what}, and whether they agree depends on the block")
        where = f"line {self._source.pos.line}: " if self._source is not None else ""
        self.module.checks.append(Check(left, right, where + what))
