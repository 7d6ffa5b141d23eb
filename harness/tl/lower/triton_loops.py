"""Owns the Triton text of loops and branches: rounds without a mask apart, first products a round ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.tl import ir
from harness.tl.lower.facts import ahead
from harness.tl.lower.peel import Peeled, peel
from harness.tl.lower.triton_kernel import StatementText
from harness.tl.lower.triton_values import ONE


@dataclass
class KernelText(StatementText):
    """Writes one kernel, loops and branches too."""

    def control(self, node: ir.For | ir.If) -> None:
        if isinstance(node, ir.For):
            self._for(node)
        else:
            self._if(node)

    def _if(self, node: ir.If) -> None:
        self._settle_all()
        self.note(node)
        then, otherwise = node.then, node.otherwise
        while then and otherwise and then[0] == otherwise[0]:  # what both begin with needs no branch
            self.statement(then[0])
            then, otherwise = then[1:], otherwise[1:]
        self._settle_all()
        cond = self.values.index(node.cond)
        if then:
            self._branch(f"if {cond}:", then)
        if otherwise:
            self._branch("else:" if then else f"if ({cond}) == 0:", otherwise)

    def _branch(self, head: str, body: tuple[ir.Node, ...]) -> None:
        with self.under(head):
            mark, state = len(self.lines), self._state()
            self.body(body)
            self._settle_all()
            if all(line.lstrip().startswith("#") for line in self.lines[mark:]):
                self.put("pass")
            self._restore(state)

    def _for(self, node: ir.For) -> None:
        self._settle_all()
        first = ahead(node) if self.overlap and node.step == ONE else None
        peeled = peel(node)
        was, v = self._masked, node.var
        start, stop = self.values.index(node.start), self.values.index(node.stop)
        unmasked = peeled is not None and not (peeled.lows or peeled.highs)
        if (peeled is None or unmasked or node.step != ONE) and first is None:
            self.note(node)
            self._masked = was if unmasked else True
            self._loop(node, start, stop)
            self._masked = was
            return
        self.note(node, "  (rounds that need no mask apart)")
        self.put(f"{v}_start = {start}")
        self.put(f"{v}_stop = {stop}")
        spans = self._spans(v, peeled)
        self._even(node, peeled)
        if first is None:
            self._in_turn(node, spans)
        else:
            with self.under("if OVERLAP:"):
                state = self._state()
                self._overlapped(node, spans, *first)
                self._restore(state)
            with self.under("else:"):
                self._in_turn(node, spans)
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
                self.put(f"{v}_whole = tl.maximum({whole}, {index(low)})")
                whole = f"{v}_whole"
            self.put(f"{whole} = tl.minimum({whole}, {v}_stop)")
            spans.append((f"{v}_start", whole, True))
        if not peeled.highs:
            return [*spans, (whole, f"{v}_stop", False)]
        tail = f"{v}_stop"
        for high in peeled.highs:
            self.put(f"{v}_tail = tl.minimum({tail}, {index(high)})")
            tail = f"{v}_tail"
        self.put(f"{tail} = tl.maximum({tail}, {whole})")
        return [*spans, (whole, f"{v}_tail", False), (f"{v}_tail", f"{v}_stop", True)]

    def _even(self, node: ir.For, peeled: Peeled | None) -> None:
        """Where the end of the rounds without a mask is known before the launch, so is whether any follow."""
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
                with self.under(f"if not {even}:"):
                    self._loop(node, start, stop)
            else:
                self._loop(node, start, stop)

    def _overlapped(
        self,
        node: ir.For,
        spans: list[tuple[str, str, bool]],
        head: tuple[ir.Node, ...],
        rest: tuple[ir.Node, ...],
    ) -> None:
        """Each round computes the next round's first products before it works on its own."""
        v = node.var
        made = [n.result for n in head if isinstance(n, ir.Gemm)]
        self._head(head, made, v, f"{v}_start", "  (of the first round)")
        for start, stop, masked in spans:
            with self.under(f"for {v} in range({start}, tl.minimum({stop}, {v}_stop - 1)):"):
                state = self._state()
                for tile in made:
                    self._assign(tile, f"{self.values.names[tile]}ahead")
                self._head(head, made, v, f"({v} + 1)", "  (of the next round)")
                self._masked = masked
                self.body(rest)
                self._settle_all()
                self._restore(state)
        with self.under(f"if {v}_start < {v}_stop:  # the last round has no next"):
            state = self._state()
            self._masked = True
            self.put(f"{v} = {v}_stop - 1")
            for tile in made:
                self._assign(tile, f"{self.values.names[tile]}ahead")
            self.body(rest)
            self._settle_all()
            self._restore(state)

    def _head(self, head: tuple[ir.Node, ...], made: list[ir.Tile], var: str, at: str, aside: str) -> None:
        """The first products of the round `at`, in variables of their own."""
        values = self.values
        names, renamed, masked = dict(values.names), values.renamed, self._masked
        values.names.update({tile: f"{names[tile]}ahead" for tile in made})
        values.renamed = {**renamed, var: at}
        self._masked = True  # a tile past the end reads as zeros
        for node in head:
            self.aside = aside
            self.statement(replace(node, contracted=None) if isinstance(node, ir.Gemm) else node)
        self.aside = ""
        values.names, values.renamed, self._masked = names, renamed, masked

    def _state(self) -> tuple[set[ir.Tile], set[ir.Tile], dict[ir.Tile, ir.Load], set[ir.Tile]]:
        return set(self.values.operand_typed), set(self._clean), dict(self._loads), set(self._dead_zero)

    def _restore(
        self, state: tuple[set[ir.Tile], set[ir.Tile], dict[ir.Tile, ir.Load], set[ir.Tile]]
    ) -> None:
        self.values.operand_typed, self._clean, self._loads, self._dead_zero = (
            set(state[0]), set(state[1]), dict(state[2]), set(state[3]),
        )  # fmt: skip

    def _settle_all(self) -> None:
        for tile in list(self.values.pending):
            self._settle(tile)

    def _loop(self, node: ir.For, start: str, stop: str) -> None:
        step = "" if node.step == ONE else f", {self.values.index(node.step)}"
        with self.under(f"for {node.var} in range({start}, {stop}{step}):"):
            state = self._state()
            self.body(node.body)
            self._settle_all()
            self._restore(state)
