"""Owns what kernels of models cost: tokens, money and minutes, in all, per trial and per right kernel."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reports.dataset import Dataset
from reports.generation import Attempt
from reports.samples import Maker


@dataclass(frozen=True)
class Cost:
    """Of all trials of one maker, those that failed or were spoilt included: they were paid for."""

    maker: Maker
    trials: int
    correct: int
    tokens_in: int
    tokens_out: int
    estimated: bool  # some counts are characters / 4
    usd: float  # of trials whose price is known
    unpriced: int  # trials without one
    wall_s: float
    latency_unknown: int  # answers that `wall_s` lacks
    first_correct_s: float | None  # median over trials that came to a right kernel
    first_correct_least: bool  # some of these lack a latency

    @property
    def priced(self) -> bool:
        return self.unpriced < self.trials


def costs(of: Sequence[Attempt]) -> list[Cost]:
    """One a maker, over all tasks."""
    return [cost(m, [a for a in of if a.maker == m]) for m in dict.fromkeys(a.maker for a in of)]


def cost(maker: Maker, of: Sequence[Attempt]) -> Cost:
    ends = [a.ending for a in of]
    first = [e for e in ends if e.first_correct_s is not None]
    return Cost(
        maker=maker,
        trials=len(ends),
        correct=sum(a.correct for a in of),
        tokens_in=sum(e.tokens_in for e in ends),
        tokens_out=sum(e.tokens_out for e in ends),
        estimated=any(e.tokens_estimated for e in ends),
        usd=sum(e.usd for e in ends if e.usd is not None),
        unpriced=sum(e.usd is None for e in ends),
        wall_s=sum(e.wall_s for e in ends),
        latency_unknown=sum(e.latency_unknown for e in ends),
        first_correct_s=statistics.median(e.first_correct_s or 0.0 for e in first) if first else None,
        first_correct_least=any(e.latency_unknown for e in first),
    )


@dataclass(frozen=True)
class Paid:
    """What the run itself was charged: each exchange once, however many trials heard its answer."""

    exchanges: int
    tokens_in: int
    tokens_out: int
    uncounted: int  # exchanges whose provider did not say
    usd: float
    unpriced: int


def paid(dataset: Dataset) -> Paid:
    """Over transcripts.jsonl, as providers reported it."""
    e = dataset.exchanges
    return Paid(
        exchanges=len(e),
        tokens_in=sum(x.tokens_in or 0 for x in e),
        tokens_out=sum(x.tokens_out or 0 for x in e),
        uncounted=sum(x.tokens_in is None or x.tokens_out is None for x in e),
        usd=sum(x.usd or 0.0 for x in e),
        unpriced=sum(x.usd is None for x in e),
    )
