"""Owns the Gluon text of an online softmax: one that rescales every round, and one that rarely does.

A product leaves a row of its result in four threads. The second softmax keeps maximum and sum of a row in
each of them: all four have one maximum, and ask each other for a greater one only where a thread of their
warp has found one that counts; each has the sum of its own columns, and they are added up after the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.facts import NO_MAXIMUM, NO_SUM, keeps_to_itself, starts_from_nothing
from harness.tl.lower.gluon_text import LOWEST, GluonText
from harness.tl.lower.triton_values import ONE


@dataclass
class SoftmaxText(GluonText):
    """Writes a consumer's softmaxes as well; `rescales`: values of the choices."""

    rescales: frozenset[int] = frozenset({0})
    held: Mapping[ir.Tile, ir.Expr] = field(default_factory=dict)  # tiles of which the value is known here

    def __post_init__(self) -> None:
        super().__post_init__()
        self._apart: ir.Softmax | None = None  # whose state threads keep by themselves

    # --- around a loop ---

    def part(self, loop: ir.For) -> None:
        """Before the rounds of a loop: maximum and sum go to the threads of a row."""
        self._apart = keeps_to_itself(self.kernel, loop) if self.rescales != {0} else None
        if self._apart is None:
            return
        node, columns = self._apart, self._apart.tile.shape[1]
        given = f"{self.block(columns)}, {self.layout(columns)}"
        m, l = (self.values.names[tile] for tile in (node.m, node.l))  # noqa: E741
        fresh = starts_from_nothing(self.kernel, loop, node)
        most = f"of_threads({LOWEST}, {given})" if fresh else f"for_threads({m}, {given})"
        total = f"of_threads(0.0, {given})" if fresh else f"for_threads({l} * 0.25, {given})"
        with self._rarely():
            self.put(f"{self._shared_out(node.m)} = {most}")
            self.put(f"{self._shared_out(node.l)} = {total}")

    def join(self) -> None:
        """After the rounds: they are values of rows again."""
        if self._apart is None:
            return
        node, self._apart = self._apart, None
        with self._rarely():
            for tile, fn in ((node.m, "max"), (node.l, "sum")):
                of_rows = f"gl.convert_layout(tl.{fn}({self._shared_out(tile)}, 1), ROW)"
                self.put(f"{self.values.names[tile]} = {of_rows}")

    def _shared_out(self, tile: ir.Tile) -> str:
        return f"{self.values.names[tile]}_parts"

    @contextmanager
    def _rarely(self) -> Iterator[None]:
        """Code of choices that rescale rarely."""
        if 0 not in self.rescales:
            yield
            return
        with self.under("if RESCALE:"):
            yield

    # --- the statement ---

    def _softmax(self, node: ir.Softmax) -> None:
        self.note(node)
        self._read_all(node)
        values = self.values
        factor = values.pending.get(node.tile)
        scores = values.names[node.tile]
        values.stands_on = node.tile.shape
        self._drop_dead(scores, node.across, node.tile.shape[1], LOWEST)
        if self._apart is not node:
            self._every_round(node, scores, factor)
        else:
            with self._rarely():
                self._where_it_counts(node, scores, factor)
            if 0 in self.rescales:
                with self.under("else:"):
                    self._every_round(node, scores, factor)
        self._dead_zero.add(node.result)
        for tile in () if self._starts(node) else node.rescale:
            self.before_rescale(tile)
            self._settle(tile)
            self._rescale(node, tile)

    def _every_round(self, node: ir.Softmax, scores: str, factor: str | None) -> None:
        """Up to the sum; what is summed up takes the factor `decay`, a value of each row."""
        values, columns, starts = self.values, node.tile.shape[1], self._starts(node)
        m, l = values.names[node.m], values.names[node.l]  # noqa: E741
        times, log2 = (f" * {factor}", f"({factor} * LOG2_E)") if factor else ("", "LOG2_E")
        most = f"{self._of_rows(f'tl.max({scores}, 1)', columns)}{times}"
        self.put(f"m_next = {most if starts else f'tl.maximum({m}, {most})'}")
        self.put(f"m_used = {'finite(m_next)' if self._masked else 'm_next'}")
        if not starts:
            self.put(f"decay = tl.math.exp2(({m} - m_used) * LOG2_E)")
        values.stands_on = node.tile.shape
        taken_away = values.spread("m_used * LOG2_E", node.m)
        self._assign(node.result, f"tl.math.exp2({scores} * {log2} - {taken_away})")
        total = self._of_rows(f"tl.sum({values.names[node.result]}, 1)", columns)
        self.put(f"{l} = {total if starts else f'{l} * decay + {total}'}")
        if node.alpha is not None:
            self._assign(node.alpha, "decay")
        self.put(f"{m} = m_next")

    def _where_it_counts(self, node: ir.Softmax, scores: str, factor: str | None) -> None:
        """The same with a factor that is 1 in most rounds, a value of each thread of a row."""
        m, l = self._shared_out(node.m), self._shared_out(node.l)  # noqa: E741
        times, log2 = (f" * {factor}", f"({factor} * LOG2_E)") if factor else ("", "LOG2_E")
        self.put(f"{m}, decay = moved(maxima({scores}){times}, {m})")
        used = f"finite({m})" if self._masked else m
        self._assign(node.result, f"powers({scores}, {log2}, {used} * LOG2_E)")
        total = f"sums({self.values.names[node.result]})"
        self.put(f"{l} = {total if self._starts(node) else f'{l} * decay + {total}'}")

    def _rescale(self, node: ir.Softmax, tile: ir.Tile) -> None:
        self.values.stands_on = tile.shape
        name, wide = self.values.names[tile], tile.shape[1] != ONE
        every = f"{name} = {name} * {self.values.spread('decay', node.m) if wide else 'decay'}"
        if self._apart is not node:
            self.put(every)
            return
        with self._rarely():
            self.put(f"{name} = rescaled({name}, decay)")
        if 0 in self.rescales:
            with self.under("else:"):
                self.put(every)

    def _starts(self, node: ir.Softmax) -> bool:
        """Whether nothing has gone into the softmax yet: what it would rescale are zeros."""
        held = self.held
        zeros = all(held.get(t) == NO_SUM for t in (node.l, *node.rescale))
        return zeros and held.get(node.m) == NO_MAXIMUM and node.alpha is None

    def before_rescale(self, tile: ir.Tile) -> None:
        """Called before a softmax touches what it rescales."""
        self.before_write(tile)
