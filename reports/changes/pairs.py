"""Owns which cells and contenders of two runs belong together; computes no change."""

from __future__ import annotations

from dataclasses import dataclass

from reports.dataset import Cell, Dataset, Row

Place = tuple[str, ...]


@dataclass(frozen=True)
class CellPair:
    """One workload of one task in both runs."""

    before: Cell
    after: Cell

    @property
    def rows(self) -> tuple[tuple[Row, Row], ...]:
        """Results of the contenders that both have, in the order of the first run."""
        theirs = {contender_of(r): r for r in self.after.rows}
        return tuple((r, theirs[key]) for r in self.before.rows if (key := contender_of(r)) in theirs)

    @property
    def only_before(self) -> tuple[Row, ...]:
        return _without(self.before, self.after)

    @property
    def only_after(self) -> tuple[Row, ...]:
        return _without(self.after, self.before)


def contender_of(row: Row) -> tuple[str, str]:
    """What a contender is found again by: kind and label, which holds a hash where a name is ambiguous."""
    return row.result.candidate.kind, row.contender


def _without(ours: Cell, theirs: Cell) -> tuple[Row, ...]:
    known = {contender_of(r) for r in theirs.rows}
    return tuple(r for r in ours.rows if contender_of(r) not in known)


@dataclass(frozen=True)
class Match:
    """What two runs have in common, and what only one of them has."""

    cells: tuple[CellPair, ...]
    cells_before: tuple[Cell, ...]  # only in the first run
    cells_after: tuple[Cell, ...]
    contenders: tuple[str, ...]  # in both runs
    contenders_before: tuple[str, ...]
    contenders_after: tuple[str, ...]
    across: tuple[str, str] | None  # the targets, where each run has one and they differ


def match(before: Dataset, after: Dataset) -> Match:
    """Cells by target, task and workload; by task and workload where each run has a target of its own."""
    across = _across(before, after)

    def place(cell: Cell) -> Place:
        shape = (cell.task, cell.workload.key)
        return shape if across else (cell.target, *shape)

    ours, theirs = ({place(c): c for c in d.cells} for d in (before, after))
    mine, others = ({(c.kind, c.label): c.label for c in d.contenders} for d in (before, after))
    return Match(
        cells=tuple(CellPair(c, theirs[key]) for key, c in ours.items() if key in theirs),
        cells_before=tuple(c for key, c in ours.items() if key not in theirs),
        cells_after=tuple(c for key, c in theirs.items() if key not in ours),
        contenders=tuple(label for key, label in mine.items() if key in others),
        contenders_before=tuple(label for key, label in mine.items() if key not in others),
        contenders_after=tuple(label for key, label in others.items() if key not in mine),
        across=across,
    )


def _across(before: Dataset, after: Dataset) -> tuple[str, str] | None:
    if len(before.targets) == len(after.targets) == 1 and before.targets != after.targets:
        return before.targets[0], after.targets[0]
    return None
