"""Owns who makes kernels (a method with its models and a backend) and views of a run by maker, not by sample.

A view is a dataset whose rows carry other contender labels, so that tables, plots and headlines need to
know nothing of samples. A run without generated kernels is its own view.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from harness.story import Assignment
from harness.verdicts import Stage, Verdict
from reports.dataset import Dataset, Row
from reports.figures import fastest

# The order in which methods stand side by side; others follow in order of appearance.
METHODS = ("vanilla", "vanilla-cot", "tl-one-stage", "tl-unguided", "tl", "tl-compiled")
TL_METHODS = ("tl-one-stage", "tl-unguided", "tl", "tl-compiled")
_STAGES = tuple(Stage)


@dataclass(frozen=True)
class Maker:
    """Who makes kernels: a method with its models on a backend, for a target."""

    target: str
    method: str
    model: str
    backend: str

    @property
    def thinker(self) -> str:
        """The model that thinks; another one may translate."""
        return self.model.partition(" -> ")[0]


def maker_of(assignment: Assignment) -> Maker:
    return Maker(assignment.target, assignment.method, assignment.model, assignment.backend)


def maker_of_row(row: Row) -> Maker:
    c = row.result.candidate
    return Maker(row.result.target, c.method, c.model, c.backend)


def makers(dataset: Dataset) -> tuple[Maker, ...]:
    """All makers of a run, by trials and by results, in the order in which they stand side by side."""
    found = dict.fromkeys(maker_of(e.assignment) for e in dataset.endings)
    found |= dict.fromkeys(maker_of_row(r) for r in dataset.rows if r.generated)
    order = {m: n for n, m in enumerate(found)}
    models = {model: n for n, model in enumerate(dict.fromkeys(m.thinker for m in found))}

    def place(m: Maker) -> tuple[str, int, str, int, int]:
        method = METHODS.index(m.method) if m.method in METHODS else len(METHODS)
        return m.target, models[m.thinker], m.backend, method, order[m]

    return tuple(sorted(found, key=place))


def makers_names(dataset: Dataset) -> dict[Maker, str]:
    """What tables call each maker: 'tl, claude', with backend and target only where there are several."""
    all_of_them = makers(dataset)
    backends, targets = {m.backend for m in all_of_them}, {m.target for m in all_of_them}
    return {
        m: ", ".join(
            [m.method, m.model, *([m.backend] if len(backends) > 1 else [])]
            + ([f"on {m.target}"] if len(targets) > 1 else [])
        )
        for m in all_of_them
    }


def by_maker(dataset: Dataset) -> Dataset:
    """The same rows, those of all samples of a maker under one label: for counts, not for tables of cells."""
    return _view(dataset, makers_names(dataset), dataset.rows)


def best_of_samples(dataset: Dataset) -> Dataset:
    """Of each maker the best sample of each cell alone: 'tl, claude (best of 3)'.

    The fastest where one was measured; else the one that came furthest, the first among equals.
    """
    kept: list[Row] = []
    for cell in dataset.cells:
        groups: dict[Maker, list[Row]] = {}
        for row in cell.rows:
            if row.generated:
                groups.setdefault(maker_of_row(row), []).append(row)
            else:
                kept.append(row)
        kept += [fastest(cell, rows) or max(rows, key=_how_far) for rows in groups.values()]
    return _view(dataset, best_of_names(dataset), kept)


def best_of_names(dataset: Dataset) -> dict[Maker, str]:
    """Labels that say out of how many samples the best is taken."""
    trials: dict[Maker, dict[str, set[str]]] = {}
    for row in (r for r in dataset.rows if r.generated):
        tasks = trials.setdefault(maker_of_row(row), {})
        tasks.setdefault(row.result.task, set()).add(row.result.candidate.trial)
    return {
        maker: name + _best_of({len(found) for found in trials.get(maker, {}).values()})
        for maker, name in makers_names(dataset).items()
    }


def _best_of(counts: set[int]) -> str:
    if not counts or counts == {1}:
        return ""
    return f" (best of {max(counts)})" if len(counts) == 1 else f" (best of up to {max(counts)})"


def _how_far(row: Row) -> tuple[bool, bool, int, int]:
    """Of rows that were not measured: proven first, then counted ones by stage, then infra."""
    proven = row.result.verdict is Verdict.PROVEN
    return proven, row.counted, _STAGES.index(row.result.stage), -row.line


def _view(dataset: Dataset, names: dict[Maker, str], rows: Iterable[Row]) -> Dataset:
    """A dataset of these rows, generated ones under these names and after the others, maker by maker."""
    if not any(r.generated for r in dataset.rows):
        return dataset
    place = {name: n for n, name in enumerate(names.values())}
    shown = [replace(r, contender=names[maker_of_row(r)]) if r.generated else r for r in rows]
    shown.sort(key=lambda r: (place.get(r.contender, -1) if r.generated else -1, r.line))
    return replace(dataset, rows=tuple(shown))
