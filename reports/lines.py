"""Owns reading a file of one record a line: what cannot be read is left out, and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.seals import RecordError

T = TypeVar("T")


@dataclass(frozen=True)
class SkippedLine:
    """A line or file that could not be read: where, why."""

    file: str
    line: int
    why: str


def read_lines(path: Path, parse: Callable[[str], T], skipped: list[SkippedLine]) -> list[tuple[int, T]]:
    """Lines with their numbers from 1; what `parse` refuses is added to `skipped`. No file: no lines."""
    if not path.is_file():
        return []
    read: list[tuple[int, T]] = []
    lines = path.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        torn = number == len(lines)  # a complete line ends in a newline
        try:
            read.append((number, parse(raw.decode("utf-8"))))
        except (RecordError, ValueError) as error:
            why = "torn last line: writing it was cut off" if torn else first_line(error)
            skipped.append(SkippedLine(path.name, number, why))
    return read


def first_line(error: Exception) -> str:
    """The beginning of what an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3]) or type(error).__name__
