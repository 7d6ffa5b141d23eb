"""Owns where saved measurements lie: pytest-benchmark's storage, which file is which, the latest of each.

`.benchmarks/<machine>/NNNN_<name>.json`: the names are ours, the rest is pytest-benchmark's. NNNN counts up
over all names, so a higher number is a later file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reports.gate.saved import Saved, SavedError, read_saved

WHOLE, AGAIN, REFERENCE = "gate", "again", "reference"  # what a file is, before the target


class NoReference(SavedError):
    """There is nothing to compare with yet."""


class NoMeasurement(SavedError):
    """Nothing was measured yet."""


@dataclass(frozen=True)
class Storage:
    """The saved measurements of one target, as far as one kind of machine is concerned.

    `machine` is pytest-benchmark's name for it, `Linux-CPython-3.12-64bit`; it says nothing of the processor.
    """

    folder: Path
    machine: str
    target: str

    def name(self, kind: str) -> str:
        """What to give pytest-benchmark as --benchmark-save."""
        return f"{kind}-{self.target}"

    def reference(self) -> Saved:
        """The latest reference. Raises NoReference; SavedError where it cannot be read.

        A torn one is no reason to go back to one before it, which may be slower.
        """
        file = self._latest(REFERENCE)
        if file is None:
            raise NoReference(f"there is no reference for {self.target} in {self.folder}/{self.machine} yet")
        return read_saved(file)

    def runs(self) -> tuple[Saved, ...]:
        """The latest whole run and what was measured again after it. Raises NoMeasurement, SavedError."""
        whole = self._latest(WHOLE)
        if whole is None:
            raise NoMeasurement(
                f"nothing was measured for {self.target} in {self.folder}/{self.machine} yet: attnbench gate"
            )
        again = [file for file in self._files(AGAIN) if _number(file) > _number(whole)]
        return tuple(read_saved(file) for file in (whole, *again))

    def save(self, kind: str, write: Callable[[Path], None]) -> Path:
        """Have a new file written under the next number; it is there whole or not at all."""
        self.place.mkdir(parents=True, exist_ok=True)
        last = max((_number(f) for f in self.place.glob("[0-9][0-9][0-9][0-9]_*.json")), default=0)
        file = self.place / f"{last + 1:04}_{self.name(kind)}.json"
        unfinished = file.with_name(f".{file.name}.new")
        write(unfinished)
        unfinished.replace(file)
        return file

    @property
    def place(self) -> Path:
        return self.folder / self.machine

    def _latest(self, kind: str) -> Path | None:
        return max(self._files(kind), key=_number, default=None)

    def _files(self, kind: str) -> list[Path]:
        return sorted(self.place.glob(f"[0-9][0-9][0-9][0-9]_{self.name(kind)}.json"), key=_number)


def _number(file: Path) -> int:
    found = re.match(r"\d{4}", file.name)
    return int(found.group()) if found else 0
