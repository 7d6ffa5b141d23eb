"""Owns methods side by side: what the parts of a way to a kernel are worth, by model and by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.dataset import Dataset
from reports.generation import Attempt, Score, score


@dataclass(frozen=True)
class Contrast:
    """Scores of the methods that one model was tried with, on the same tasks."""

    scope: str
    target: str
    model: str  # the one that thinks
    backend: str
    by_method: dict[str, tuple[Score, ...]]  # several where different models translate


def contrasts(dataset: Dataset, of: Sequence[Attempt]) -> list[Contrast]:
    """Per task with two methods or more, then over the tasks that all methods of a model have."""
    groups: dict[tuple[str, str, str], list[Attempt]] = {}
    for a in of:
        groups.setdefault((a.maker.target, a.maker.thinker, a.maker.backend), []).append(a)
    found = []
    for (target, model, backend), members in groups.items():
        tasks = dict.fromkeys(a.task for a in members)
        for task in tasks:
            scope = dataset.group_title(target, task)
            found.append(_contrast(scope, target, model, backend, [a for a in members if a.task == task]))
        makers = {a.maker for a in members}
        shared = [t for t in tasks if {a.maker for a in members if a.task == t} == makers]
        if len(shared) > 1:
            scope = f"the {len(shared)} tasks of all methods"
            both = [a for a in members if a.task in shared]
            found.append(_contrast(scope, target, model, backend, both))
    return [c for c in found if len(c.by_method) > 1]


def _contrast(scope: str, target: str, model: str, backend: str, of: Sequence[Attempt]) -> Contrast:
    by_method: dict[str, tuple[Score, ...]] = {}
    for maker in dict.fromkeys(a.maker for a in of):
        own = score(maker, scope, [a for a in of if a.maker == maker])
        by_method[maker.method] = (*by_method.get(maker.method, ()), own)
    return Contrast(scope, target, model, backend, by_method)
