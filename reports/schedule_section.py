"""Owns the section about kernels compiled from LLM-TL programs: who settled their choices, at what price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports import text
from reports.dataset import Dataset, Row
from reports.lineage import Lineage, kernel_files, lineage
from reports.schedules import By, Choice, Schedule, Search
from reports.sections import Column, Entry, Section, Table

_NOTES = (
    "What kernels compiled from LLM-TL programs take for which call, by the tables in their sources. The "
    "program settles a key where it leaves one value; what it leaves open was found by a search that "
    "timed choices, or it is the compiler's default.",
)
_BUDGETS = (
    "A search ranks choices by short timings of its own; its times are in no figure of this report. Timings "
    "count failed choices and repeats."
)
_KERNELS = (
    Column("candidate"),
    Column("the program's own schedule"),
    Column("rows", True),
    Column("by the program"),
    Column("by a search"),
    Column("cells searched", True),
)
_CELLS = (
    Column("candidate"),
    Column("cell"),
    Column("choices", True),
    Column("timings", True),
    Column("share", True),
    Column("time", True),
    Column("found"),
    Column("on"),
)


def schedules_section(dataset: Dataset) -> Section | None:
    """Each compiled kernel once, then the budget of each searched cell; None where no kernel was compiled."""
    rows: dict[str, list[Row]] = {}
    for row in dataset.rows:
        if not row.is_baseline:
            rows.setdefault(row.result.candidate.sha256, []).append(row)
    found: list[tuple[str, Lineage, Schedule]] = []
    for mine in rows.values():
        pairs = [(dataset, row) for row in mine]
        origin = lineage(pairs, kernel_files(pairs))
        if origin is not None and origin.schedule is not None:
            found.append((mine[0].contender, origin, origin.schedule))
    if not found:
        return None
    searched = [(name, s) for name, _, s in found if s.searches]
    tables = [Table(_KERNELS, tuple(_kernel(*one) for one in found))]
    if searched:
        lines = tuple(line for name, s in searched for line in _cells(name, s))
        tables.append(Table(_CELLS, lines, "What the search of each cell took"))
    notes = (*_NOTES, _BUDGETS) if searched else _NOTES
    return Section(
        "schedules", "Choices of compiled kernels", notes, (_lead([s for _, _, s in found]),), tuple(tables)
    )


def _lead(found: Sequence[Schedule]) -> str:
    known = [s for s in found if s.recorded]
    said = [text.number(len(found), "compiled kernel")]
    if known:
        cells = sum(len(s.searches) for s in known)
        searched = sum(1 for s in known if s.searches)
        said.append(f"{searched} with choices from searches of {text.number(cells, 'cell')}" if cells else
                    "none with choices from a search")  # fmt: skip
    if len(known) < len(found):
        said.append(f"{len(found) - len(known)} of which it is not recorded who settled their choices")
    return ", ".join(said) + "."


def _kernel(name: str, origin: Lineage, schedule: Schedule) -> tuple[Entry, ...]:
    said = origin.line.replace("\n", "; ") or ("none" if origin.program else "not recorded")
    if not schedule.recorded:
        hands = [Entry("not recorded", style="muted")] * 3
    else:
        keys = [_keys(schedule, by) for by in (By.PROGRAM, By.SEARCH)]
        hands = [*(Entry(k or "none", style="" if k else "muted") for k in keys)]
        hands.append(Entry(str(len(schedule.searches))))
    return (
        Entry(name),
        Entry(said, style="" if origin.line else "muted"),
        Entry(str(len(schedule.choices))),
        *hands,
    )


def _keys(schedule: Schedule, by: By) -> str:
    """Keys that this hand settled in some row."""
    return ", ".join(dict.fromkeys(k for c in schedule.choices for k, v in c.keys.items() if v.by is by))


def _cells(name: str, schedule: Schedule) -> Iterator[tuple[Entry, ...]]:
    for s in schedule.searches:
        row = next((c for c in schedule.choices if (c.dim, c.seq) == (s.dim, s.seq)), None)
        yield (
            Entry(name),
            Entry(s.cell),
            Entry(f"{s.size:,}"),
            Entry(f"{s.timings:,}"),
            Entry(text.share(s.share)),
            Entry(text.seconds(s.seconds)),
            _found(s, row),
            Entry(s.device),
        )


def _found(search: Search, row: Choice | None) -> Entry:
    """What the table took for the cell's head dimension and length."""
    if row is None:
        return Entry(f"nothing for {search.dim} from {search.seq}", style="muted")
    return Entry(" ".join(f"{k}={v.value}" for k, v in row.keys.items() if v.by is By.SEARCH) or "none")
