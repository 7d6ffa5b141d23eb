"""Owns which choices a compiled kernel makes, and who settled them: its tables, joined with `schedule.toml`.

The tables are read from the kernel's source, since that is what runs; a source is parsed and never executed.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reports.text import length

SCHEDULE = "schedule.toml"
VERSION = 1
ANY_DIM = 1 << 10  # of a row that serves every head dimension

_COMPILED = re.compile(r"compiled (?:for Hopper )?from the LLM-TL|generated from LLM-TL")
_HEAD = 600  # characters in which a compiler says what a file is
_NO_SOURCE = (SyntaxError, ValueError, RecursionError, MemoryError)  # of a text that is no Python


class By(StrEnum):
    """Who settled a key."""

    PROGRAM = "program"
    SEARCH = "search"
    GIVEN = "given"
    COMPILER = "compiler"
    UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Value:
    """A key's value in a row, and who settled it."""

    value: int
    by: By


@dataclass(frozen=True)
class Choice:
    """A row of a table: the calls that it serves, and its keys. `bytes` 0: the table does not say."""

    file: str
    bytes: int
    dim: int
    seq: int
    keys: Mapping[str, Value]

    @property
    def dtypes(self) -> str:
        """The types of elements that it serves, in words; "" where the table does not say."""
        return {0: "", 2: "fp16, bf16", 4: "fp32"}.get(self.bytes, f"{self.bytes} bytes")

    @property
    def dims(self) -> str:
        """The head dimensions that it serves, in words."""
        return "any" if self.dim >= ANY_DIM else f"to {self.dim}"

    @property
    def lengths(self) -> str:
        """The sequences that it serves, in words."""
        return f"from {length(self.seq)}" if self.seq else "any"


class Search(BaseModel):
    """What the search of one cell took: `timings` of `size` choices, failed ones and repeats counted."""

    model_config = ConfigDict(frozen=True)

    cell: str
    dim: int
    seq: int
    size: int = Field(ge=1)
    timings: int = Field(ge=0)
    seconds: float = Field(ge=0)
    device: str

    @property
    def share(self) -> float:
        return self.timings / self.size


@dataclass(frozen=True)
class Schedule:
    """The choices of a compiled kernel; `recorded`: whether it carries a record of who settled them."""

    choices: tuple[Choice, ...]
    searches: tuple[Search, ...]
    recorded: bool
    problem: str = ""  # with what it carries, in words

    def hands(self) -> tuple[By, ...]:
        """Who settled anything, in the order of `By`."""
        found = {v.by for c in self.choices for v in c.keys.values()}
        return tuple(by for by in By if by in found)


class _Row(BaseModel):
    file: str
    bytes: int
    dim: int
    seq: int
    choice: dict[str, int]
    program: list[str] = []
    search: list[str] = []
    given: list[str] = []

    def by(self, key: str, value: int) -> By:
        if self.choice.get(key) != value:
            return By.UNKNOWN
        named = ((By.PROGRAM, self.program), (By.SEARCH, self.search), (By.GIVEN, self.given))
        return next((by for by, keys in named if key in keys), By.COMPILER)


class _Carried(BaseModel):
    version: int
    rows: list[_Row] = []
    searches: list[Search] = []


def schedule_of(files: Mapping[str, str]) -> Schedule | None:
    """Of a kernel's files (name -> text); None where no compiler of LLM-TL programs wrote them."""
    if SCHEDULE not in files and not any(_COMPILED.search(text[:_HEAD]) for text in files.values()):
        return None
    carried, problem = _carried(files.get(SCHEDULE))
    tables = [row for name, text in files.items() if name.endswith(".py") for row in _table(name, text)]
    if not tables and carried is not None:  # constants of the source, as numba's
        tables = [(r.file, r.bytes, r.dim, r.seq, r.choice) for r in carried.rows]
    told = {(r.file, r.dim, r.seq, r.bytes): r for r in carried.rows} if carried else {}
    told |= {(r.file, r.dim, r.seq, 0): r for r in carried.rows} if carried else {}
    choices = []
    for file, size, dim, seq, values in tables:
        row = told.get((file, dim, seq, size))
        by = {k: Value(v, row.by(k, v) if row else By.UNKNOWN) for k, v in values.items()}
        choices.append(Choice(file, size or (row.bytes if row else 0), dim, seq, by))
    if carried is not None and any(v.by is By.UNKNOWN for c in choices for v in c.keys.values()):
        problem = (
            f"Its source has other choices than {SCHEDULE} tells of: it was edited after it was compiled."
        )
    searches = tuple(carried.searches) if carried else ()
    return Schedule(tuple(choices), searches, carried is not None, problem)


def _carried(text: str | None) -> tuple[_Carried | None, str]:
    """What the file says, or why it cannot be read ("" where there is none)."""
    if text is None:
        return None, ""
    try:
        found = _Carried.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError, RecursionError):
        return None, f"Its {SCHEDULE} cannot be read."
    if found.version != VERSION:
        return None, f"Its {SCHEDULE} has version {found.version}; this attnbench reads {VERSION}."
    return found, ""


def _table(file: str, source: str) -> list[tuple[str, int, int, int, dict[str, int]]]:
    """Rows of the tuple `CHOICES`, each ending with `Choice(key=value, ...)`: file, bytes, dim, seq, keys."""
    try:
        body = ast.parse(source).body
        found = [
            n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "CHOICES"
        ]
        rows = [_row(file, row) for table in found if isinstance(table, ast.Tuple) for row in table.elts]
    except _NO_SOURCE:
        return []
    return [row for row in rows if row is not None]


def _row(file: str, node: ast.expr) -> tuple[str, int, int, int, dict[str, int]] | None:
    if not isinstance(node, ast.Tuple) or not node.elts or not isinstance(node.elts[-1], ast.Call):
        return None
    where = [ast.literal_eval(n) for n in node.elts[:-1]]
    values = {k.arg: ast.literal_eval(k.value) for k in node.elts[-1].keywords if k.arg is not None}
    if len(where) not in (2, 3) or not all(isinstance(n, int) for n in (*where, *values.values())):
        return None
    size, dim, seq = (0, *where)[-3:]
    return file, size, dim, seq, values
