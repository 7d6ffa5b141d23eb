"""Owns TL506 and TL507: whether scores carry scale (and log2(e) for exp2) exactly once where it matters."""

from __future__ import annotations

from collections.abc import Callable

from harness.tl.checks.values import Degree, Flow
from harness.tl.syntax import Pos

_WANTED: dict[str, Degree] = {"exp": (1.0, 0.0), "exp2": (1.0, 1.0), "Softmax": (1.0, 0.0)}


class Scales:
    """What enters the exponentials of one kernel; `report` takes code, place, message and fix."""

    def __init__(self, report: Callable[..., None]) -> None:
        self.report = report
        self.shifts: list[tuple[Pos, bool, Degree]] = []  # where, of a matrix?, degree of its maxima

    def function(self, fn: str, x: Flow, pos: Pos) -> None:
        """TL506, TL507: the powers of scale and of log2(e) where it matters."""
        if fn in ("exp", "exp2") and x.factor and x.parts and not x.unnormalised:
            self.report("TL508", pos, f"{fn} takes what an exponential gave", "take the exponential once")
        if fn in ("exp", "exp2") and not x.factor and x.parts:
            degree = x.shift if x.score else x.degree
            if degree is not None:
                power = degree[1] - _WANTED[fn][1]
                self.shifts.append((pos, x.score, (degree[0], power)))
        if not x.score or x.degree is None or x.factor:
            return
        if fn == "tanh":
            if x.degree[0] == 0:
                self.report("TL507", pos, "tanh takes scores that are not multiplied by scale")
            return
        if fn not in _WANTED:
            return
        scale, power = x.degree[0], x.degree[1] - _WANTED[fn][1]
        if scale > 1:
            self.report(
                "TL506",
                x.scaled[-1] if x.scaled else pos,
                f"scale is in the scores {scale:g} times where {fn} takes them",
            )
        elif scale < 1:
            self.report("TL507", pos, f"{fn} takes scores that are not multiplied by scale")
        elif power < 0:
            self.report(
                "TL507",
                pos,
                "exp2 takes scores that are not multiplied by log2(e)",
                "multiply the scores by scale * 1.4426950408889634, or use exp",
            )
        elif power > 0:
            self.report(
                "TL506",
                pos,
                f"log2(e) is in the scores where {fn} takes them",
                "use exp2 with it, or exp without",
            )
        elif x.shift is not None and x.shift != x.degree:
            self.report(
                "TL507" if x.shift < x.degree else "TL506",
                x.scaled[-1] if x.scaled else pos,
                "the maximum that is subtracted was not scaled as the scores are here",
                "scale the scores before RowMax, or the difference: exp((S - m) * scale)",
            )

    def compare_shifts(self) -> None:
        """The maxima in exp(m - m_new) must be scaled as in exp(S - m_new)."""
        wanted = {degree for _, matrix, degree in self.shifts if matrix}
        if len(wanted) != 1:
            return
        (right,) = wanted
        for pos, matrix, degree in self.shifts:
            if not matrix and degree != right:
                code = "TL507" if degree < right else "TL506"
                self.report(
                    code,
                    pos,
                    "the maxima are not scaled here as they are in the exponential of the scores",
                    "multiply their difference by the same factor in both",
                )
