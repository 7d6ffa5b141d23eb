"""Owns an append-only file of lines: each one forced to disk, a torn last one cut off and kept aside."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from harness.seals import RecordError

T = TypeVar("T")
TORN = "torn.txt"


class StoreError(RuntimeError):
    """The run's directory cannot be used or written; the text says what to do."""


class Journal(Generic[T]):
    """`file`, read once by `parse` (which raises RecordError), then appended to by one process."""

    def __init__(self, file: Path, parse: Callable[[str], T]) -> None:
        self.file = file
        self.dropped = ""  # what was cut off because writing it had been
        try:
            self.lines = self._read(parse)
            new = not file.exists()
            self._handle = file.open("ab")
            if new:
                force_names(file.parent)
        except OSError as error:
            raise disk_error(file, error) from error

    def _read(self, parse: Callable[[str], T]) -> list[T]:
        if not self.file.exists():
            return []
        data = self.file.read_bytes()
        good, found = 0, []
        for number, line in enumerate(lines_of(data), 1):
            try:
                value = parse(_decoded(line))
                if not line.endswith(b"\n"):
                    raise RecordError("no end of line")
            except RecordError as error:
                if good + len(line) == len(data) and torn(line):
                    self._cut(data, good)
                    break
                raise StoreError(f"{self.file}:{number}: {error}. Nothing was changed.") from error
            found.append(value)
            good += len(line)
        return found

    def _cut(self, data: bytes, good: int) -> None:
        """Kept aside before it is cut off: a power cut in between leaves it in both places, never in none."""
        self.dropped = data[good:].decode(errors="replace")
        with (self.file.parent / TORN).open("ab") as kept:
            kept.write(data[good:] + b"\n")
            kept.flush()
            os.fsync(kept.fileno())
        force_names(self.file.parent)
        with self.file.open("r+b") as handle:
            handle.truncate(good)
            os.fsync(handle.fileno())

    def append(self, line: str) -> None:
        """Append one line and force it to disk; raises StoreError when the disk refuses.

        A refused line is cut off again, so that the file stays whole.
        """
        end = self._handle.tell()
        try:
            self._handle.write(line.encode() + b"\n")
            self._handle.flush()
            os.fsync(self._handle.fileno())
        except OSError as error:
            self._restore(end)
            raise disk_error(self.file.parent, error) from error

    def _restore(self, end: int) -> None:
        try:
            self._handle.close()
        except OSError:  # its buffer could not be written either
            pass
        try:
            os.truncate(self.file, end)
        finally:
            self._handle = self.file.open("ab")

    def close(self) -> None:
        """Nothing more is appended."""
        self._handle.close()


def lines_of(data: bytes) -> list[bytes]:
    """Lines with their ends, cut at newlines alone: rubbish may hold what else counts as an end of line."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]


def torn(line: bytes) -> bool:
    """Whether writing the last line was cut off; a whole line that cannot be read is somebody's result."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not line.endswith(b"\n")


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:  # replacing what is broken would pass for what was recorded
        raise RecordError(f"not UTF-8: {error.reason} at byte {error.start} of the line") from error


def force_names(folder: Path) -> None:
    """Force the names in a folder to disk: a file can be safe there, and not to be found by its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> StoreError:
    """What an error of the disk means for a run."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        way = "make room and go on with --resume."
    else:
        way = "go on with --resume when that is mended, or choose another --out."
    return StoreError(f"cannot write {path}: {error.strerror}. What was recorded before is kept; {way}")
