"""Owns what a script is told of a run in one object: its directory, counts by verdict, the headline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from reports.dataset import Dataset, Row
from reports.figures import Headline, headlines
from reports.generation import unfinished
from reports.samples import best_of_samples
from reports.surroundings import warnings

FORMAT = "attnbench-digest-1"


@dataclass(frozen=True)
class Digest:
    """A run in short. `ended` and `unfinished` count trials of models."""

    run: Path
    targets: tuple[str, ...]
    devices: tuple[str, ...]
    results: int
    candidates: dict[str, int]  # results by verdict
    baselines: dict[str, int]
    left_out: int  # results that stand in no figure
    ended: int
    unfinished: int
    headline: tuple[Headline, ...]
    warnings: tuple[str, ...]


def digest(dataset: Dataset) -> Digest:
    """Of a run as read."""
    return Digest(
        run=dataset.path,
        targets=dataset.targets,
        devices=dataset.devices,
        results=len(dataset.rows) + len(dataset.left_out),
        candidates=_verdicts(r for r in dataset.rows if not r.is_baseline),
        baselines=_verdicts(r for r in dataset.rows if r.is_baseline),
        left_out=len(dataset.left_out),
        ended=len(dataset.endings),
        unfinished=unfinished(dataset),
        headline=tuple(headlines(best_of_samples(dataset))),
        warnings=tuple(warnings(dataset)),
    )


def _verdicts(rows: Iterable[Row]) -> dict[str, int]:
    return dict(Counter(r.result.verdict.value for r in rows).most_common())


def as_object(found: Digest, report: Iterable[Path] = ()) -> dict[str, object]:
    """For JSON; `report`: the files that were written."""
    said = asdict(found) | {"run": str(found.run), "report": [str(path) for path in report]}
    return {"format": FORMAT, **said}
