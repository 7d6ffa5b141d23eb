"""Owns whether lines of results.jsonl are whole, in their places, and agree with themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.journal import lines_of, torn
from harness.records import SEALED_SINCE, Result, content_hash
from harness.seals import RecordError, read_result

OUT_OF_PLACE = (
    "it was recorded after another line than the one before it here: a line was dropped, put in or moved"
)


class Report(Protocol):
    """Where findings go."""

    results: int
    sealed: int
    notes: list[str]

    def found(self, where: str, what: str) -> None:
        """Add a finding."""


@dataclass(frozen=True)
class ResultLine:
    """A result and where it stands."""

    where: str
    result: Result


def check_results(
    file: Path,
    environments: Mapping[str, Mapping[str, object]],
    report: Report,
    moved: Callable[[int, int], None] = lambda done, total: None,
) -> list[ResultLine]:
    """The lines that can be read; everything else is reported."""
    read: list[ResultLine] = []
    first: dict[str, int] = {}
    before: str | None = ""  # seal of the line before; None: it cannot be read
    lines = lines_of(file.read_bytes())
    for number, line in enumerate(lines, 1):
        moved(number, len(lines))
        where = f"{file.name}:{number}"
        if number == len(lines) and torn(line):
            report.notes.append(f"{where} is torn: writing it was cut off, and resuming does it again")
            break
        report.results += 1
        data = _object(line)
        version = data.get("schema_version")
        is_sealed = isinstance(version, int) and version >= SEALED_SINCE
        report.sealed += is_sealed
        if before is not None and data:
            _check_place(data, is_sealed, before, where, report)
        before = str(data.get("seal", "")) if data else None
        try:
            result = read_result(line.decode())
        except (RecordError, UnicodeDecodeError) as error:
            report.found(where, str(error))
            continue
        if result.id in first:
            report.found(where, f"the same result as line {first[result.id]}: one of them was put in")
        first.setdefault(result.id, number)
        for what in _disagreements(result, environments.get(result.environment)):
            report.found(where, what)
        read.append(ResultLine(where, result))
    return read


def _object(line: bytes) -> dict[str, object]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _check_place(
    data: Mapping[str, object], is_sealed: bool, before: str, where: str, report: Report
) -> None:
    if is_sealed and data.get("previous") != before:
        report.found(where, OUT_OF_PLACE)
    if not is_sealed and before:
        report.found(where, "it has no seal, and the line before it has one: it was put in or changed")


def _disagreements(r: Result, environment: Mapping[str, object] | None) -> list[str]:
    """What a record says in two places, and not alike."""
    i, c = r.identity, r.candidate
    pairs = {
        "candidate": (i.candidate, c.sha256),
        "trial": (i.trial, c.trial),
        "sample": (i.sample, c.sample),
        "workload": (i.workload, r.workload.key),
        "target": (i.target, r.target),
    }
    found = [
        f"its {name} is {shown(record)}, and {shown(identity)} in its identity"
        for name, (identity, record) in pairs.items()
        if identity != record
    ]
    if c.kind == "baseline" and c.sha256 != content_hash({"baseline": c.name, "library": c.family}):
        found.append(f"its hash is not that of {c.name} of {c.family}: another library was named")
    if environment is None:
        return [*found, f"its environment {r.environment[:12]} is not in environment.json"]
    for name, value in {"device": r.device, "target": r.target, "harness": i.harness}.items():
        if environment.get(name) != value:
            found.append(f"its {name} is {value!r}, and {environment.get(name)!r} in its environment")
    if environment.get("sources") and not r.seal:
        found.append("it has no seal, and the attnbench of its environment seals what it records")
    return found


def shown(value: object) -> str:
    """A hash by its beginning, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else repr(value)
