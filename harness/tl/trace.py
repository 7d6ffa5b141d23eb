"""Owns one block's work as a trace: what is copied, read and written, loops unrolled, fills numbered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.channels import Channel, Kind, channels
from harness.tl.evaluate import evaluate
from harness.tl.lower.copies import without_copies
from harness.tl.lower.facts import ahead
from harness.tl.schedule import ROWS, Schedule

_MOST_ROUNDS = 64  # of a loop; a few show all that many do


@dataclass(frozen=True, slots=True)
class Use:
    reads: tuple[tuple[Channel, int], ...]  # with the number of the fill
    product: bool


@dataclass(frozen=True, slots=True)
class Made:
    channel: Channel
    fill: int


@dataclass(frozen=True, slots=True)
class Written:
    channel: Channel
    tag: int


@dataclass(frozen=True, slots=True)
class Round:
    head: tuple[Item, ...]  # what can run a round ahead; all of it where nothing can
    rest: tuple[Item, ...]
    dead: frozenset[int]  # consumers to whose rows the mask leaves nothing


@dataclass(frozen=True, slots=True)
class Rounds:
    rounds: tuple[Round, ...]
    rotates: bool
    turns: bool  # whether a round holds a product


Item = Use | Made | Written | Rounds


class Trace:
    """Walks a kernel for one grid point after another and numbers the fills of each channel."""

    def __init__(self, kernel: ir.Kernel, schedule: Schedule) -> None:
        self.schedule = schedule
        self.kernel = without_copies(kernel)
        self.channels = channels(kernel, schedule)
        self.by_tile = {c.tile: c for c in self.channels if c.tile is not None and c.kind is not Kind.OUTPUT}
        self.by_matrix = {c.name: c for c in self.channels if c.kind is Kind.OUTPUT}
        self.count: dict[str, int] = {}
        self.copies: list[Made] = []

    def walk(self, body: Sequence[ir.Node], env: dict[str, object]) -> tuple[Item, ...]:
        return tuple(item for node in body for item in self._node(node, env))

    def _node(self, node: ir.Node, env: dict[str, object]) -> Iterator[Item]:
        if isinstance(node, ir.For):
            yield self._loop(node, env)
            return
        if isinstance(node, ir.If):
            yield from self.walk(node.then if evaluate(node.cond, env) else node.otherwise, env)
            return
        if isinstance(node, ir.Load) and node.tile in self.by_tile:
            made = Made(self.by_tile[node.tile], self._next(self.by_tile[node.tile]))
            self.copies.append(made)
            yield made
            return
        held = [self.by_tile[t] for t in dict.fromkeys(ir.reads(node)) if t in self.by_tile]
        reads = tuple((c, self.count[c.name] - 1) for c in held if self.count.get(c.name))
        if reads:
            yield Use(reads, isinstance(node, ir.Gemm))
        if isinstance(node, ir.Store):
            output = self.by_matrix.get(f"{node.matrix.name} out")
            if output is not None:
                yield Written(output, self._next(output))
            return
        if not isinstance(node, ir.Init):
            own = (self.by_tile[t] for t in ir.writes(node) if t in self.by_tile)
            yield from (Written(c, self._next(c)) for c in own if c.kind is Kind.OWN)

    def _next(self, channel: Channel) -> int:
        number = self.count.get(channel.name, 0)
        self.count[channel.name] = number + 1
        return number

    def _loop(self, loop: ir.For, env: dict[str, object]) -> Rounds:
        parts = ahead(loop) if self.schedule.overlap else None
        start, stop, step = (int(evaluate(e, env)) for e in (loop.start, loop.stop, loop.step))
        rounds = []
        if stop - start > _MOST_ROUNDS * max(1, step):
            raise ValueError(f"{loop.var} takes more than {_MOST_ROUNDS} rounds")
        for value in range(start, stop, max(1, step)):
            inside = {**env, loop.var: value}
            dead = frozenset(
                c for c in range(self.schedule.consumers) if masked(loop.body, inside, c * ROWS, ROWS)
            )
            items = [(node, tuple(self._node(node, inside))) for node in loop.body]
            head = parts[0] if parts is not None else loop.body
            first = tuple(i for node, made in items for i in made if any(node is h for h in head))
            rest = tuple(i for node, made in items for i in made if not any(node is h for h in head))
            rounds.append(Round(first, rest, dead))
        products = any(isinstance(n, ir.Gemm) for n in ir.nodes(loop.body))
        return Rounds(tuple(rounds), parts is not None, products)


def masked(body: Sequence[ir.Node], env: Mapping[str, object], row: int, rows: int) -> bool:
    """Whether some mask of the round leaves nothing of these rows of the tile.

    A comparison that is linear in its positions fails everywhere where it fails in all four corners.
    """
    for mask in (n for n in body if isinstance(n, ir.Mask)):
        try:
            columns = int(evaluate(mask.tile.shape[1], env))
            corners = [(r, c) for r in (row, row + rows - 1) for c in (0, columns - 1)]
            for part in _parts(mask.cond):
                if not any(evaluate(_placed(part, corner, env), env) for corner in corners):
                    return True
        except (KeyError, ValueError, ArithmeticError, TypeError):
            continue
    return False


def _parts(cond: ir.Expr) -> Iterator[ir.Expr]:
    if isinstance(cond, ir.Op) and cond.fn == "and":
        for arg in cond.args:
            yield from _parts(arg)
    else:
        yield cond


def _placed(expr: ir.Expr, corner: tuple[int, int], env: Mapping[str, object]) -> ir.Expr:
    match expr:
        case ir.Place(axis=axis, base=base):
            return ir.Const(int(evaluate(base, env)) + corner[axis])
        case ir.Op(fn=fn, args=args):
            return ir.Op(fn, tuple(_placed(arg, corner, env) for arg in args))
    return expr
