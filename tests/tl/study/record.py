"""Owns a part's file: what was measured on what, written after every cell so that nothing is lost, and the time left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Mismatch(ValueError):
    """A file of another part, device or software: its cells cannot stand beside new ones."""


class Record:
    """One part's cells by name, with what they were measured on. A file that is there is gone on with."""

    def __init__(self, path: Path, part: str, about: Mapping[str, str], date: str) -> None:
        self.path = path
        self.data: Entry = {"part": part, "about": dict(about), "date": date, "cells": {}}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if (before["part"], before["about"]) != (part, dict(about)):
                raise Mismatch(f"{path} is of {before['part']} on {before['about']}; give another --out")
            self.data = before

    @property
    def cells(self) -> dict[str, Entry]:
        found: dict[str, Entry] = self.data["cells"]
        return found

    def put(self, name: str, entry: Entry) -> None:
        """Replaces the file as a whole: a kill leaves the old one or the new one."""
        self.cells[name] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.data, indent=1), encoding="utf-8")
        beside.replace(self.path)


class Deadline:
    """So many minutes from now."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + 60 * minutes

    @property
    def left_s(self) -> float:
        return self._end - self._clock()

    @property
    def over(self) -> bool:
        return self.left_s <= 0
