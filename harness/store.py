"""Owns a run's directory: append-only results, resumable, nothing recorded is ever lost.

One process writes; each line is flushed and fsynced before the next trial starts. A torn
last line (power, kill -9) is cut off on resume, after it was copied to `torn.txt`.

Each result is sealed and names the seal of the line before it, so that a line that is changed, taken
out or moved shows (`attnbench verify`). What is last has nobody after it: a summary says how far the
files went when an invocation ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from harness.journal import Journal, StoreError, disk_error, force_names
from harness.records import Result
from harness.runs import Environment, Extent, RunSummary
from harness.seals import RecordError, read_result, sealed

__all__ = ["Store", "StoreError", "read_summary"]

RESULTS, SUMMARIES, EXPERIMENT, ENVIRONMENTS = (
    "results.jsonl", "summary.jsonl", "experiment.toml", "environment.json",
)  # fmt: skip
# What a summary remembers the extent of: these are only appended to, and the experiment stays as it is.
KEPT = (RESULTS, "trials.jsonl", "transcripts.jsonl", EXPERIMENT)


class Store:
    """`runs/<name>/`. Use as a context manager; holds the directory's lock while open."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self.dropped = ""  # what was cut off on resume
        if resume and not any((path / name).exists() for name in (RESULTS, EXPERIMENT)):
            raise StoreError(f"{path} holds no run to resume; start it without --resume")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise disk_error(path, error) from error
        try:
            self._take_lock()
            # Only now: what another process leaves behind while this one comes is a run as well.
            if not resume and (path / RESULTS).exists():
                raise StoreError(
                    f"{path} holds a run already; add --resume to go on with it, or choose another --out"
                )
            self._journal = Journal(path / RESULTS, read_result)
        except StoreError:
            self._lock.close()
            raise
        self._summaries: Journal[RunSummary] | None = None
        self.results.update((r.id, r) for r in self._journal.lines)
        self._seal: str = self._journal.lines[-1].seal if self._journal.lines else ""
        self.dropped = self._journal.dropped

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"{self.path} is being written by another attnbench; wait for it to end"
            ) from error
        except OSError as error:  # a file system that has no locks, say
            raise disk_error(self.path, error) from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        if self._summaries is not None:
            self._summaries.close()
        self._lock.close()

    def __contains__(self, result_id: str) -> bool:
        return result_id in self.results

    def add(self, result: Result) -> None:
        """Seal one result, append it and force it to disk; raises StoreError when the disk refuses."""
        if result.id in self.results:
            return
        stored = sealed(result, self._seal)
        self._journal.append(stored.model_dump_json(exclude_defaults=False))
        self.results[result.id] = stored
        self._seal = stored.seal

    def add_environment(self, environment: Environment) -> str:
        """Remember the environment of this invocation; returns its hash."""
        file = self.path / ENVIRONMENTS
        try:
            known: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
        except ValueError as error:
            raise StoreError(f"{file} is not JSON: {error}; move it away and go on with --resume") from error
        known[environment.digest] = environment.content
        self._replace(file, json.dumps(known, indent=1, sort_keys=True).encode())
        return environment.digest

    def add_summary(self, summary: RunSummary) -> None:
        """Append what this invocation took, with how far the run's files go now."""
        if self._summaries is None:  # a run without an invocation that ended has no such file
            self._summaries = Journal(self.path / SUMMARIES, read_summary)
        files = {name: _extent(self.path / name) for name in KEPT if (self.path / name).exists()}
        self._summaries.append(summary.model_copy(update={"files": files}).model_dump_json())

    def add_artifact(self, sha256: str, files: Mapping[str, bytes]) -> None:
        """Keep a candidate's sources under the hash of its content."""
        folder = self.path / "artifacts" / sha256
        for name, content in files.items():
            file = folder / name
            if not file.exists():
                self._replace(file, content)

    def add_experiment(self, text: str, meaning: Callable[[str], object] = str) -> None:
        """Keep the experiment as run; a resumed run must be the same.

        `meaning`: what two texts must agree in. A run from before a key came to be lacks its default.
        """
        file = self.path / EXPERIMENT
        if not file.exists():
            self._replace(file, text.encode())
        elif (kept := file.read_text()) != text and meaning(kept) != meaning(text):
            raise StoreError(
                f"{file} differs from what is asked now; resume with the same options, "
                "or choose another --out"
            )

    def _replace(self, file: Path, content: bytes) -> None:
        temporary = file.with_name(file.name + ".new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(file)
            force_names(file.parent)
        except OSError as error:
            raise disk_error(file, error) from error


def read_summary(line: str) -> RunSummary:
    """Parse one line of summary.jsonl; raises RecordError."""
    try:
        return RunSummary.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the summary"
        raise RecordError(f"{where}: {first['msg']}") from error


def _extent(file: Path) -> Extent:
    content = file.read_bytes()
    return Extent(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
