"""Owns the judge's bursts: calls on inputs that a kernel has not seen, their outputs in the judge's hand."""

from __future__ import annotations

import random

from harness.records import Check
from harness.verify.exam import Exam
from harness.worker.moves import Move, draw, to_json
from harness.worker.process import Worker


class Bursts:
    """Of one kernel in one worker. Other kernels in that worker must leave the slots alone meanwhile."""

    def __init__(
        self,
        exam: Exam,
        worker: Worker,
        kernel: str,
        contents: dict[int, int],
        lot: random.Random,
        request_s: float,
    ) -> None:
        """`contents`: which content each slot is filled with."""
        self._exam, self._worker, self._kernel = exam, worker, kernel
        self._contents, self._lot, self._request_s = contents, lot, request_s
        self._moves: dict[int, list[Move]] = {}
        self._shown = 0

    def fill(self) -> None:
        """Begin anew, from the contents as drawn."""
        self._exam.fill(self._worker, list(self._contents.items()))
        self._moves = {slot: [] for slot in self._contents}

    def fresh(self, calls: int) -> None:
        """Let rows of every slot's inputs trade places, and poison the outputs; so many calls will follow."""
        told = []
        for slot, moves in self._moves.items():
            new = draw(self._exam.layout, self._lot)
            moves += new
            told.append([slot, to_json(new)])
        args = {"kernel": self._kernel, "calls": calls, "slots": told}
        self._worker.ask("freshen", args, limit_s=self._request_s)

    def run(self, calls: int, *, call: bool) -> None:
        """Call on the first slots, one after another, then fetch their outputs; which comes last is a lot."""
        args = {"kernel": self._kernel, "iterations": calls if call else 0}
        self._worker.ask("spin", args, limit_s=self._request_s)
        # First the one that was called last: nothing has waited for it.
        order = list(range(calls - 1, -1, -1))
        at = self._lot.randrange(calls)
        order.append(order.pop(at))
        for slot in order:
            self._exam.fetch(self._worker, self._kernel, slot, timed=True)
        self._shown = order[-1]

    def check(self) -> Check:
        """Whether the output that was fetched last is right."""
        content = self._exam.moved(self._contents[self._shown], self._moves[self._shown])
        return self._exam.mark(self._worker, self._kernel, self._shown, content, timed=True, fetched=True)
