"""Owns how a schedule stands on a page: a table for each file, with what all its rows share apart."""

from __future__ import annotations

from dataclasses import dataclass

from reports import text
from reports.schedules import By, Choice, Schedule

MARKS = {
    By.PROGRAM: ("P", "the program leaves no choice"),
    By.SEARCH: ("S", "found by a search that timed choices"),
    By.GIVEN: ("G", "given to the compiler by who called it"),
    By.COMPILER: ("", "the compiler's default"),
}


@dataclass(frozen=True)
class Setting:
    """A key's value, and the letter for who settled it; `why` says it in words."""

    key: str
    value: str
    mark: str
    why: str


@dataclass(frozen=True)
class Line:
    """A row: the calls that it serves, its settings in the order of the columns, what its search took."""

    dtypes: str
    dims: str
    lengths: str
    settings: tuple[Setting, ...]
    search: str


@dataclass(frozen=True)
class ChoiceTable:
    """The table of one file; `shared` are the settings that every row has alike."""

    file: str
    shared: tuple[Setting, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def typed(self) -> bool:
        """Whether it says for which types."""
        return any(line.dtypes for line in self.lines)

    @property
    def searched(self) -> bool:
        return any(line.search for line in self.lines)


def choice_tables(schedule: Schedule) -> tuple[ChoiceTable, ...]:
    """One for each file that has a table, in the order of the files."""
    files: dict[str, list[Choice]] = {}
    for choice in schedule.choices:
        files.setdefault(choice.file, []).append(choice)
    return tuple(_table(file, rows, schedule) for file, rows in files.items())


def legend(schedule: Schedule) -> str:
    """What the letters mean, of those that are there; or that nobody recorded it."""
    hands = schedule.hands()
    if not schedule.recorded:
        return "Who settled which key is not recorded in this run: the program, a search or the compiler."
    marked = [f"{mark}: {why}" for by, (mark, why) in MARKS.items() if by in hands and mark]
    plain = ["no letter: the compiler's default"] if By.COMPILER in hands else []
    said = "; ".join([*marked, *plain])
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _table(file: str, rows: list[Choice], schedule: Schedule) -> ChoiceTable:
    keys = tuple(dict.fromkeys(key for row in rows for key in row.keys))
    alike = [k for k in keys if len(rows) > 1 and len({row.keys.get(k) for row in rows}) == 1]
    columns = tuple(k for k in keys if k not in alike)
    shared = tuple(_setting(rows[0], k) for k in alike)
    return ChoiceTable(file, shared, columns, tuple(_line(row, columns, schedule) for row in rows))


def _line(row: Choice, columns: tuple[str, ...], schedule: Schedule) -> Line:
    searched = any(v.by is By.SEARCH for v in row.keys.values())
    took = [s for s in schedule.searches if searched and (s.dim, s.seq) == (row.dim, row.seq)]
    told = "; ".join(f"{s.timings} of {s.size}, {text.seconds(s.seconds)}" for s in took)
    settings = tuple(_setting(row, k) for k in columns)
    return Line(row.dtypes, row.dims, row.lengths, settings, told)


def _setting(row: Choice, key: str) -> Setting:
    if key not in row.keys:
        return Setting(key, "", "", "")
    value = row.keys[key]
    return Setting(key, str(value.value), *MARKS.get(value.by, ("", "")))
