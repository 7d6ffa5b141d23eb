"""Owns the search of a space of choices by measuring few of them: the best found, and what finding it took.

No kernel is known here: a choice is a set of whole numbers, and `measure` says how long one takes. The time
of a choice is guessed as a product of factors, for each of its values and each pair of them, fitted to what
has been measured. Of the choices that differ from the best one in a single value (more where keys go
together) the one with the shortest guess is measured next; where none is left, of all choices. A cell
searched before, of nearby shape, gives the choices to begin with; then few measurements without a gain end
the search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Choice = Mapping[str, int]
Measure = Callable[[dict[str, int]], float | None]
Rematch = Callable[[list[dict[str, int]]], Sequence[float | None]]  # a few, measured side by side

SHARE = 0.15  # of a space that is measured at most
LEAST = 16  # measurements of a cell that begins with nothing, where that share would be fewer
PATIENCE = (2, 6)  # measurements without a gain that end the search of a cell with a neighbour, by its budget
_GAIN = 0.01  # of the time: less is no gain
_SPREAD = 2  # choices to begin with where none is given: as unlike each other as can be
_SEEDS = 3  # choices taken over from cells nearby
_RIDGE = 0.3  # how much a factor is drawn to 1; from 0.1 to 1 results are alike
_PAIRS = 0.3  # how much a pair of values counts beside a value; with none, 2 of 120 miss by 6 and 20 %
_FAILED = 1.5  # a choice that fails is taken to be that much slower than the slowest
_FINALISTS = 3


class Why(StrEnum):
    SEED = "seed"  # given to begin with
    SPREAD = "spread"  # far from all others
    NEAR = "near"  # as a rule one value away from the best
    FAR = "far"  # promised most by the guess
    AGAIN = "again"  # one of the best, measured longer


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement; `time_ms` is None where the choice failed."""

    choice: dict[str, int]
    time_ms: float | None
    why: Why


@dataclass(frozen=True, slots=True)
class Search:
    """The best choice found (None where all failed), and what that took: every measurement counts."""

    best: dict[str, int] | None
    time_ms: float | None
    size: int  # choices of the space
    budget: int  # measurements that were allowed
    seconds: float
    trail: tuple[Step, ...]

    @property
    def evaluations(self) -> int:
        return len(self.trail)

    @property
    def share(self) -> float:
        """Measurements as a part of the space."""
        return self.evaluations / max(1, self.size)

    def leading(self, most: int = _SEEDS) -> list[dict[str, int]]:
        """The fastest choices measured, fastest first."""
        timed = [s for s in self.trail if s.time_ms is not None and s.why is not Why.AGAIN]
        return [s.choice for s in sorted(timed, key=lambda s: s.time_ms or 0.0)[:most]]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is searched for: one shape, with the choices there are."""

    name: str
    dim: int
    seq: int
    space: tuple[dict[str, int], ...]


def search(
    space: Sequence[Choice],
    measure: Measure,
    *,
    budget: int | None = None,
    seeds: Iterable[Choice] = (),
    patience: int | None = None,
    again: Rematch | None = None,
) -> Search:
    """The fastest choice of the space that at most `budget` measurements find (by default 15 % of the space).

    `seeds` come first, each as the choice of the space that is most like it. After `patience` measurements
    in a row that gain less than 1 % it ends early. `again` measures the best three side by side, and longer,
    before one is taken, out of the same budget.
    """
    began = time.monotonic()
    allowed = min(len(space), budget if budget is not None else max(1, int(SHARE * len(space))))
    finals = min(_FINALISTS, allowed // 2) if again is not None else 0
    trail = _Trail([dict(c) for c in space], measure, allowed - finals)
    for seed in seeds:
        trail.take(trail.like(seed), Why.SEED)
    while trail.open and len(trail.times) < min(_SPREAD, allowed):
        trail.take(trail.farthest(), Why.SPREAD)
    idle = 0
    while trail.open and (patience is None or idle < patience):
        before = trail.fastest
        trail.take(*trail.next())
        idle = 0 if trail.fastest < before * (1 - _GAIN) else idle + 1
    ranked = [i for i in sorted(trail.times, key=trail.cost) if trail.times[i] is not None]
    best = (trail.times[ranked[0]], ranked[0]) if ranked else None
    if again is not None and finals and ranked:
        finalists = ranked[:finals]
        once_more = list(zip(again([dict(trail.space[i]) for i in finalists]), finalists, strict=True))
        trail.steps += [Step(trail.space[i], t, Why.AGAIN) for t, i in once_more]
        best = min(((t, i) for t, i in once_more if t is not None), default=None)
    return Search(
        trail.space[best[1]] if best else None,
        best[0] if best else None,
        len(space),
        allowed,
        time.monotonic() - began,
        tuple(trail.steps),
    )


def search_cells(
    cells: Sequence[Cell],
    measure: Callable[[Cell, dict[str, int]], float | None],
    again: Callable[[Cell, list[dict[str, int]]], Sequence[float | None]] | None = None,
    soon: Callable[[Cell, list[dict[str, int]]], None] = lambda cell, choices: None,
    begin: Callable[[Cell], Sequence[Choice]] = lambda cell: (),
) -> dict[str, Search]:
    """Each cell's search, by its name; it starts from what `begin` says and from the best of cells nearby.

    `soon` is told before each search what it may well measure: everything, or what it begins with and what is
    around the best of cells nearby. `again` measures a few side by side.

    Of each head dimension the middle length comes first, with 15 % of its space but no fewer than 16
    measurements; then the others, from the middle outwards, until two to six measurements gain nothing.
    """
    found: list[tuple[Cell, Search]] = []
    for cell in sorted(cells, key=lambda c: (c.dim, abs(math.log(c.seq) - _middle(cells, c.dim)))):
        known = any(other.dim == cell.dim for other, _ in found)
        budget = max(1, int(SHARE * len(cell.space)))

        def timed(choice: dict[str, int], cell: Cell = cell) -> float | None:
            return measure(cell, choice)

        def rematch(choices: list[dict[str, int]], cell: Cell = cell) -> Sequence[float | None]:
            return again(cell, choices) if again is not None else ()

        began, near = begin(cell), neighbours(cell, found)
        seeds = [*began, *near]
        soon(cell, around(cell.space, near, began) if known else [dict(c) for c in cell.space])
        result = search(
            cell.space,
            timed,
            budget=budget if known else max(LEAST, budget),
            seeds=seeds,
            patience=max(PATIENCE[0], min(PATIENCE[1], budget // 8)) if known else None,
            again=rematch if again is not None else None,
        )
        found.append((cell, result))
    return {cell.name: result for cell, result in found}


def around(
    space: Sequence[Choice], seeds: Iterable[Choice], alone: Iterable[Choice] = ()
) -> list[dict[str, int]]:
    """The choices that are most like the seeds, and those that differ least from one of these; and those most
    like others, without what is around them."""
    trail = _Trail([dict(c) for c in space], lambda choice: None, 0)
    begun = list(dict.fromkeys(trail.like(seed) for seed in seeds))
    near = [int(i) for number in begun for i in np.flatnonzero(trail.near(number))]
    others = [trail.like(seed) for seed in alone]
    return [dict(trail.space[i]) for i in dict.fromkeys([*others, *begun, *near])]


def neighbours(cell: Cell, found: Iterable[tuple[Cell, Search]], most: int = _SEEDS) -> list[dict[str, int]]:
    """The fastest choices of the two cells most like this one: same head dimension, then nearest length."""
    near = sorted(found, key=lambda f: (f[0].dim != cell.dim, abs(math.log(f[0].seq / cell.seq))))
    choices = [choice for _, result in near[:2] for choice in result.leading(most)]
    return [c for n, c in enumerate(choices) if c not in choices[:n]][:most]


def _middle(cells: Iterable[Cell], dim: int) -> float:
    lengths = [math.log(c.seq) for c in cells if c.dim == dim]
    return sum(lengths) / len(lengths)


class _Trail:
    """What has been measured of a space, and what to measure next."""

    def __init__(self, space: list[dict[str, int]], measure: Measure, allowed: int) -> None:
        self.space, self.measure, self.allowed = space, measure, allowed
        keys = list(space[0]) if space else []
        self.values = np.array([[c[k] for k in keys] for c in space]).reshape(len(space), len(keys))
        self.keys = keys
        columns = [self.values[:, n] == v for n in range(len(keys)) for v in np.unique(self.values[:, n])]
        self.features: NDArray[np.float64] = np.stack([np.ones(len(space)), *columns], 1).astype(float)
        self.times: dict[int, float | None] = {}
        self.steps: list[Step] = []

    @property
    def open(self) -> bool:
        """Whether there is something to measure, and leave to."""
        return len(self.times) < min(self.allowed, len(self.space))

    @property
    def fastest(self) -> float:
        """The shortest time so far."""
        return min((t for t in self.times.values() if t is not None), default=math.inf)

    def take(self, number: int, why: Why) -> None:
        """Measures a choice, once."""
        if number not in self.times and self.open:
            self.times[number] = self.measure(dict(self.space[number]))
            self.steps.append(Step(self.space[number], self.times[number], why))

    def cost(self, number: int) -> float:
        """Its time; a failure is slower than all that ran."""
        timed = self.times[number]
        return (
            timed if timed is not None else _FAILED * max((t for t in self.times.values() if t), default=1.0)
        )

    def like(self, seed: Choice) -> int:
        """The choice that shares most values with the seed."""
        wanted = np.array([seed.get(k, self.values[0, n]) for n, k in enumerate(self.keys)])
        return int(np.argmin((self.values != wanted).sum(1)))

    def farthest(self) -> int:
        """The choice whose nearest measured one is most unlike it; at first the one in the middle."""
        if not self.times:
            return len(self.space) // 2
        unlike = (self.values[:, None, :] != self.values[None, list(self.times), :]).sum(2).min(1)
        return int(np.argmax(unlike))

    def next(self) -> tuple[int, Why]:
        """What to measure now, and why."""
        timed = [i for i, t in self.times.items() if t is not None]
        if not timed:
            return self.farthest(), Why.SPREAD
        guess = self._guess()
        best = min(timed, key=self.cost)
        left = np.array([i for i in range(len(self.space)) if i not in self.times])
        near = left[self.near(best)[left]]
        if len(near):
            return int(near[np.argmin(guess[near])]), Why.NEAR
        return int(left[np.argmin(guess[left])]), Why.FAR

    def near(self, number: int) -> NDArray[np.bool_]:
        """For each other value of each key, the choices with it that differ least from this one.

        In one value, as a rule; in more where keys go together, as rows and consumers do.
        """
        unlike = self.values != self.values[number]
        distance = unlike.sum(1)
        near = np.zeros(len(self.space), dtype=bool)
        for n in range(len(self.keys)):
            for value in np.unique(self.values[unlike[:, n], n]):
                held = self.values[:, n] == value
                near |= held & (distance == distance[held].min())
        return near

    def _guess(self) -> NDArray[np.float64]:
        """The logarithm of each choice's time, by a ridge regression on its values and their pairs."""
        known = list(self.times)
        seen = self.features[known]
        times = np.log([self.cost(i) for i in known])
        mean = times.mean()
        alike = seen @ self.features.T  # how many values two choices share, and one
        alike = alike + _PAIRS * alike**2
        weights = np.linalg.solve(alike[:, known] + _RIDGE * np.eye(len(known)), times - mean)
        guess: NDArray[np.float64] = mean + weights @ alike
        return guess
