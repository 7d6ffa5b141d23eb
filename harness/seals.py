"""Owns what makes a stored line trustworthy: its seal, its place in a chain, and reading nothing else.

A reader of an older schema version either upgrades it here or says why it cannot (`read_result`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from harness.records import SCHEMA_VERSION, SEALED_SINCE, Result, content_hash


class RecordError(ValueError):
    """A stored line that cannot be read; the text says which and why."""


def seal_of(data: Mapping[str, Any]) -> str:
    """Hash of what a stored line says, its seal excepted: of the line, not of what a model makes of it."""
    return content_hash({key: value for key, value in data.items() if key != "seal"})


def sealed(result: Result, previous: str) -> Result:
    """The result as it is stored after the line whose seal is `previous`."""
    placed = result.model_copy(update={"schema_version": SCHEMA_VERSION, "previous": previous, "seal": ""})
    return placed.model_copy(update={"seal": seal_of(json.loads(placed.model_dump_json()))})


def read_result(line: str) -> Result:
    """Parse one line; raises RecordError for anything that is not a valid result of a known version.

    A line that was changed after it was sealed is refused, whoever reads it: reports leave it out and
    say so, a run that holds it is not resumed.
    """
    try:
        data = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise RecordError(
            f"schema version {version!r}; this attnbench reads 1 to {SCHEMA_VERSION}. "
            "Use the attnbench release that wrote the run, named in its environment.json."
        )
    if version >= SEALED_SINCE and data.get("seal") != seal_of(data):
        what = "its seal is not the hash of its content" if data.get("seal") else "its seal is gone"
        raise RecordError(
            f"changed after it was recorded: {what}. Restore the line from a copy of the run, or measure "
            "again in a new one."
        )
    try:
        return Result.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise RecordError(f"{where}: {first['msg']}") from error
