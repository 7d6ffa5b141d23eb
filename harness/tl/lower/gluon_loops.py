"""Owns the Gluon text of a consumer's loops and branches, and of when it gives places back."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.facts import begun
from harness.tl.lower.gluon_rounds import Overlap, Rounds, overlap
from harness.tl.lower.gluon_softmax import SoftmaxText
from harness.tl.lower.gluon_trial import Freedom
from harness.tl.lower.lowered import LowerError

ZERO = ir.Const(0)
Span = tuple[str, str, bool, str]  # rounds from and to, whether they have a mask, the flag without which none
State = tuple[set[ir.Tile], set[ir.Tile], dict[ir.Tile, ir.Load], set[ir.Tile]]


@dataclass
class ConsumerText(SoftmaxText):
    """Writes all of a consumer's work on a tile."""

    first_row: ir.Expr | None = ZERO  # of the group
    freedom: Freedom = field(default=Freedom(False, False))
    overlaps: frozenset[int] = frozenset({0, 1})  # values of the choices
    loops: list[Rounds] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._open: Overlap | None = None  # a product that may still be running
        self._rounded = ""  # the next left operand, where a choice rounds it before that product is done

    # --- places ---

    def body(self, body: tuple[ir.Node, ...]) -> None:
        """The statements; a tile's place is given back after the last that needs it."""
        last: dict[ir.Tile, int] = {}
        loads = {n.tile: n for n in body if isinstance(n, ir.Load)}
        for n, node in enumerate(body):
            for inner in ir.nodes((node,)):
                last |= {t: n for t in ir.reads(inner) if t in loads}
        for load in loads.values():
            if load.tile not in last:
                raise LowerError(f"`{load.tile.name}` is used outside of where it is loaded", load.source)
        for n, node in enumerate(body):
            self.statement(node)
            for tile in [t for t, at in last.items() if at == n]:
                if tile == self.through:
                    with self.under("if not REUSE:"):
                        self.release(tile)
                else:
                    self.release(tile)

    def control(self, node: ir.For | ir.If) -> None:
        self._settle_all()
        if isinstance(node, ir.For):
            self._rounds(node)
            return
        self.note(node)
        self._branch(f"if {self.values.index(node.cond)}:", node.then)
        if node.otherwise:
            self._branch("else:", node.otherwise)

    # --- loops ---

    def _rounds(self, node: ir.For) -> None:
        rounds = next((r for r in self.loops if r.loop == node), None)
        if rounds is None:
            number = sum(r.loop.var == node.var for r in self.loops)
            rounds = Rounds.of(node, number, self.first_row, self.freedom)
            self.loops.append(rounds)
        cut = overlap(node) if 1 in self.overlaps else None
        was = self._masked
        self._bounds(node, rounds)
        self._skip(rounds, node, "before", cut)
        self.part(node)
        if cut is None or 0 in self.overlaps:
            if cut is not None:
                self.put("if not OVERLAP:")
                self.depth += 1
            self._one_by_one(rounds)
            self.depth -= cut is not None
        if cut is not None:
            with self.under("if OVERLAP:"):
                self._ahead(rounds, cut)
        self.join()
        self._skip(rounds, node, "after", cut)
        self._masked = was

    def _bounds(self, node: ir.For, rounds: Rounds) -> None:
        """Of all rounds, of those that this group needs, and of those without a mask."""
        index, v = self.values.index, node.var
        self.note(node, "  (the last round first)" if rounds.backwards else "")
        self.put(f"{v}_start = {index(node.start)}")
        self.put(f"{v}_stop = {index(node.stop)}")
        for name, bound in zip(("first", "last", "low", "high"), rounds.bounds(), strict=True):
            self.put(f"{v}_{name} = {index(bound)}")
        self.put(f"{v}_count = {v}_last - {v}_first")

    def _skip(self, rounds: Rounds, node: ir.For, when: str, cut: Overlap | None) -> None:
        """Rounds that this group has nothing to do in: their tiles go by."""
        v = node.var
        early = (when == "before") != rounds.backwards
        if not rounds.skips or (early and (rounds.needed is None or not rounds.needed.lows)):
            return
        span = f"{v}_first - {v}_start" if early else f"{v}_stop - {v}_last"
        loads = [n.tile for n in node.body if isinstance(n, ir.Load)]
        if not loads:
            return  # nothing of it goes by
        with self.under(f"if {rounds.flag('SKIPS')}:"), self.under(f"for _ in range(0, {span}):"):
            for at, tile in enumerate(loads):
                channel = self.channels[tile]
                self.put(
                    f"mbarrier.wait({channel.name}_full.index({channel.place('WHICH')}), {channel.name}_turn)"
                )
                if at == 0 and cut is not None:
                    self._turns("take")
                    self._turns("pass")
                self.release(tile)

    def _parts(self, v: str, rounds: Rounds) -> list[Span]:
        """(from, to, masked, flag without which it is empty), on the numbers of rounds, in order."""
        if rounds.whole is None:
            return [("0", f"{v}_count", True, "")]
        if not (rounds.whole.lows or rounds.whole.highs):
            return [("0", f"{v}_count", False, "")]
        if rounds.backwards:
            first, second = f"{v}_last - {v}_high", f"{v}_last - {v}_low"
        else:
            first, second = f"{v}_low - {v}_first", f"{v}_high - {v}_first"
        lead = rounds.whole.highs if rounds.backwards else rounds.whole.lows
        trail = rounds.whole.lows if rounds.backwards else rounds.whole.highs
        spans = [("0", first, True, rounds.flag("LATER"))] if lead else []
        spans.append((first if lead else "0", second if trail else f"{v}_count", False, ""))
        return [*spans, (second, f"{v}_count", True, rounds.flag("LAST"))] if trail else spans

    def _variable(self, rounds: Rounds) -> str:
        v = rounds.loop.var
        return f"{v} = {v}_last - 1 - {v}_round" if rounds.backwards else f"{v} = {v}_first + {v}_round"

    def _one_by_one(self, rounds: Rounds) -> None:
        """One round after the other, each statement waiting for the one before."""
        v = rounds.loop.var
        for start, stop, masked, flag in self._parts(v, rounds):
            self._masked = masked
            if flag and start != "0":
                self.put(f"if {flag}:")
                self.depth += 1
            with self.under(f"for {v}_round in range({start}, {stop}):"):
                state = self._state()
                self.put(self._variable(rounds))
                self.body(rounds.loop.body)
                self._settle_all()
                self._restore(state)
            self.depth -= bool(flag) and start != "0"

    # --- products a round ahead ---

    def _ahead(self, rounds: Rounds, cut: Overlap) -> None:
        """The next round's first products start before this round's last one, and work goes on meanwhile."""
        v = rounds.loop.var
        spans = self._parts(v, rounds)
        with self.under(f"if ({v}_count > 0) | {rounds.flag('SOME')}:"):
            state = self._state()
            self._masked = any(masked for _, _, masked, _ in spans)
            self.put(f"{v}_round = 0")
            self.put(self._variable(rounds))
            self._first_products(cut)
            self._turns("pass")
            self._first_done(cut, 0)
            self._first_between(cut, rounds)
            self._restore(state)
            self._rest(rounds, cut, spans, state)

    def _rest(self, rounds: Rounds, cut: Overlap, spans: list[Span], state: State) -> None:
        """The rounds after the first, and the last product of the last."""
        v = rounds.loop.var
        for start, stop, masked, flag in spans:
            self._masked = masked
            first = f"tl.maximum({start}, 1)" if start != "0" else "1"
            if flag:
                self.put(f"if {flag}:")
                self.depth += 1
            with self.under(f"for {v}_round in range({first}, {stop}):"):
                self.put(self._variable(rounds))
                self._step(cut)
                self._restore(state)
            self.depth -= bool(flag)
        for load in cut.last_loads:
            self.statement(load)
        self.note(cut.last, "  (of the last round)")
        self._open = cut
        self.issue(cut.last, self._sum(cut))
        self._close()

    def _sum(self, cut: Overlap) -> str:
        return f"{self.values.names[cut.last.result]}_sum"

    def _turns(self, what: str) -> None:
        with self.under("if PINGPONG:"):
            self.put(f"{what}_turn(WHICH, CONSUMERS)")

    def _first_products(self, cut: Overlap) -> None:
        for load in cut.first_loads:
            self.statement(load)
        self._turns("take")
        for node in cut.first:
            self.note(node)
            self.prepare(node)
            self.issue(node, self.values.names[node.result])

    def _first_done(self, cut: Overlap, running: int) -> None:
        for node in cut.first:
            self.wait(node, self.values.names[node.result], running)
            self.settled(node)
        for load in cut.first_loads:
            self.release(load.tile)

    def _step(self, cut: Overlap) -> None:
        self._first_products(cut)
        for load in cut.last_loads:
            self.statement(load)
        self.note(cut.last, "  (of the round before)")
        self.issue(cut.last, self._sum(cut))
        self._turns("pass")
        self._first_done(cut, len(self._pairs(cut.last)))
        self._open = cut
        self._between(cut)

    def _first_between(self, cut: Overlap, rounds: Rounds) -> None:
        """That of the first round, in which a softmax has nothing to rescale."""
        others = {t for n in cut.between if not isinstance(n, ir.Softmax) for t in ir.writes(n)}
        if sum(isinstance(n, ir.Softmax) for n in cut.between) == 1:
            known = begun(self.kernel, rounds.loop)
            self.held = {tile: value for tile, value in known.items() if tile not in others}
        self._between(cut)
        self.held = {}

    def _between(self, cut: Overlap) -> None:
        for node in cut.between:
            if not isinstance(node, ir.Softmax):  # which asks when it comes to what it rescales
                for tile in (*ir.reads(node), *ir.writes(node)):
                    self.before_write(tile)
            self.statement(node)
        self._settle_all()
        self._close()
        if not self._rounded:
            self.prepare(cut.last)
            return
        name, self._rounded = self._rounded, ""
        with self.under("if RESCALE >= 2:"):
            self.put(f"{self.operand_name(cut.last.a.tile)} = {name}")
        with self.under("else:"):
            self.prepare(cut.last)

    def before_write(self, tile: ir.Tile) -> None:
        if self._open is not None and tile == self._open.last.result:
            self._close()

    def before_rescale(self, tile: ir.Tile) -> None:
        if self._open is not None and tile == self._open.last.result:
            self._close(early=self._apart is not None and self._is_made(self._open))

    def _is_made(self, cut: Overlap) -> bool:
        """Whether the last product's left operand is what it will be once the softmax has made it."""
        tile = cut.last.a.tile
        at = next(n for n, node in enumerate(cut.between) if isinstance(node, ir.Softmax))
        after = [n for n in cut.between[at + 1 :] if tile in ir.writes(n)]
        return tile in ir.writes(cut.between[at]) and all(isinstance(n, ir.Reshape) for n in after)

    def _close(self, early: bool = False) -> None:
        """Wait for the product that runs beside the work; what it read from can be filled again."""
        if self._open is not None:
            cut, self._open = self._open, None
            if early:
                self._rounded = f"{self.values.names[cut.last.a.tile]}_rounded"
                with self.under("if RESCALE >= 2:"):
                    self.prepare(cut.last, self._rounded)
                    self.wait(cut.last, self._sum(cut), beside=self._rounded)
                with self.under("else:"):
                    self.wait(cut.last, self._sum(cut))
            else:
                self.wait(cut.last, self._sum(cut))
            self.settled(cut.last)
            for load in cut.last_loads:
                self.release(load.tile)
