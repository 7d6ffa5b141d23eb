"""Owns what a compiled candidate carries besides its code: its program, and who settled its choices.

`program.tl` is the text as it was compiled. `schedule.toml` holds each row of each table with who settled
its keys, and what the search of each cell took. Reports read both; the candidate's code reads neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from harness.tl import ir
from harness.tl.lower.choices import Row
from harness.tl.schedule import decided

PROGRAM, SCHEDULE = "program.tl", "schedule.toml"
VERSION = 1
_HEAD = """\
# Which choice serves which call: elements of so many bytes, head dimensions to `dim`, sequences from `seq`.
# Who settled its keys: the program, where it leaves no choice; a search that timed choices; who called the
# compiler (given). All other keys are the compiler's defaults. Reports read this, no kernel does.
"""


class By(StrEnum):
    """Who settled a key of a choice."""

    PROGRAM = "program"
    SEARCH = "search"
    GIVEN = "given"
    COMPILER = "compiler"


@dataclass(frozen=True, slots=True)
class Searched:
    """What the search of one cell took: `timings` of `size` choices, repeats counted."""

    cell: str
    dim: int
    seq: int
    size: int
    timings: int
    seconds: float
    device: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A row of a file's table, with who settled each key of its choice."""

    file: str
    row: Row
    by: Mapping[str, By]


@dataclass(frozen=True, slots=True)
class Carried:
    """The text of the program ("" where it is not known), rows of all tables, the searches behind them."""

    text: str
    backend: str
    rows: tuple[Settled, ...]
    searches: tuple[Searched, ...] = ()

    @property
    def files(self) -> dict[str, str]:
        """As files of the candidate."""
        program = {PROGRAM: self.text} if self.text.strip() else {}
        return {**program, SCHEDULE: _toml(self)}

    def beside(self, other: Carried, file: str) -> Carried:
        """With the table of another candidate, whose `attention.py` is this file here."""
        return replace(self, rows=(*self.rows, *(replace(s, file=file) for s in other.rows)))

    def after(self, searches: Sequence[Searched], varied: Callable[[Row], Collection[str]]) -> Carried:
        """Of a table that searches gave: they found keys that they `varied`, and left the others alone."""

        def found(by: By, key: str, row: Row) -> By:
            if by is not By.GIVEN:
                return by
            return By.SEARCH if key in varied(row) else By.COMPILER

        rows = (replace(s, by={key: found(by, key, s.row) for key, by in s.by.items()}) for s in self.rows)
        return replace(self, rows=tuple(rows), searches=tuple(searches))


def carried(
    program: ir.Program,
    backend: str,
    tables: Mapping[str, Sequence[Row]],
    given: Collection[str] = (),
    follows: Mapping[str, int] | None = None,
) -> Carried:
    """What a candidate with these tables (file -> rows) carries.

    `given`: keys that the caller chose. `follows`: values that the program settles without naming the key.
    """
    settled = {**fixed(program), **(follows or {})}

    def by(key: str, value: int) -> By:
        if settled.get(key) == value:
            return By.PROGRAM
        return By.GIVEN if key in given else By.COMPILER

    rows = (
        Settled(file, row, {key: by(key, value) for key, value in row.choice})
        for file, table in tables.items()
        for row in sorted(table, key=lambda r: (r.bytes, r.dim, r.seq))
    )
    return Carried(program.text, backend, tuple(rows))


def given_keys(table: Sequence[Row] | None, choice: Mapping[str, int] | None) -> frozenset[str]:
    """Keys that who calls a compiler chose, by a table or by one choice."""
    return frozenset(key for row in table or () for key, _ in row.choice) or frozenset(choice or ())


def fixed(program: ir.Program) -> dict[str, int]:
    """Keys to which the program's own lines leave one value: of tiles, and of its schedule."""
    tiles = {name: values[0] for name, values in program.parameters if len(values) == 1}
    launch = {key: v[0] for key, v in program.schedule if len(v) == 1 and isinstance(v[0], int)}
    return {**tiles, **launch, **decided(program)}


def _toml(carried: Carried) -> str:
    parts = [_HEAD, f"version = {VERSION}\nbackend = {_text(carried.backend)}\n"]
    for s in carried.rows:
        choice = ", ".join(f"{_key(k)} = {v}" for k, v in s.row.choice)
        hands = {hand: [k for k, _ in s.row.choice if s.by[k] is hand] for hand in By}
        by = "".join(f"{h} = {json.dumps(k)}\n" for h, k in hands.items() if k and h is not By.COMPILER)
        where = f"bytes = {s.row.bytes}\ndim = {s.row.dim}\nseq = {s.row.seq}\n"
        parts.append(f"\n[[rows]]\nfile = {_text(s.file)}\n{where}choice = {{ {choice} }}\n{by}")
    for found in carried.searches:
        parts.append(
            f"\n[[searches]]\ncell = {_text(found.cell)}\ndim = {found.dim}\nseq = {found.seq}\n"
            f"size = {found.size}\ntimings = {found.timings}\nseconds = {found.seconds:.2f}\n"
            f"device = {_text(found.device)}\n"
        )
    return "".join(parts)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: str) -> str:
    """A basic string of TOML, which JSON's are, but for what is beyond the first plane."""
    return json.dumps(value, ensure_ascii=False)
