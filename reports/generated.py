"""Owns the one place that holds all figures of a run's trials, each computed once, when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from reports.ablation import Contrast, contrasts
from reports.costs import Cost, Paid, costs, paid
from reports.dataset import Dataset
from reports.duels import Duel, duels
from reports.generation import Attempt, Score, attempts, scores, unfinished
from reports.programs import Programs, programs
from reports.samples import Maker, makers_names


@dataclass(frozen=True)
class Generated:
    """What models made in a run."""

    dataset: Dataset

    @cached_property
    def names(self) -> dict[Maker, str]:
        return makers_names(self.dataset)

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        return attempts(self.dataset)

    @cached_property
    def scores(self) -> list[Score]:
        return scores(self.dataset, self.attempts)

    @cached_property
    def duels(self) -> list[Duel]:
        return duels(self.attempts)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        return contrasts(self.dataset, self.attempts)

    @cached_property
    def costs(self) -> list[Cost]:
        return costs(self.attempts)

    @cached_property
    def paid(self) -> Paid:
        return paid(self.dataset)

    @cached_property
    def programs(self) -> list[Programs]:
        return programs(self.dataset, self.attempts)

    @property
    def unfinished(self) -> int:
        return unfinished(self.dataset)
