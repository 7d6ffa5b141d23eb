"""Owns a run's directory: append-only results, resumable, nothing recorded is ever lost.

One process writes; each line is flushed and fsynced before the next trial starts. A torn
last line (power, kill -9) is cut off on resume, after it was copied to `torn.txt`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from harness.journal import Journal, StoreError, disk_error
from harness.records import Environment, Result, RunSummary, read_result

__all__ = ["Store", "StoreError"]


class Store:
    """`runs/<name>/`. Use as a context manager; holds the directory's lock while open."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self.dropped = ""  # what was cut off on resume
        existing = (path / "results.jsonl").exists()
        if existing and not resume:
            raise StoreError(
                f"{path} holds a run already; add --resume to go on with it, or choose another --out"
            )
        if resume and not existing and not (path / "experiment.toml").exists():
            raise StoreError(f"{path} holds no run to resume; start it without --resume")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{path} is being written by another attnbench; wait for it to end") from error
        except OSError as error:
            raise disk_error(path, error) from error
        try:
            self._journal = Journal(path / "results.jsonl", read_result)
        except StoreError:
            self._lock.close()
            raise
        self.results.update((r.id, r) for r in self._journal.lines)
        self.dropped = self._journal.dropped

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._lock.close()

    def __contains__(self, result_id: str) -> bool:
        return result_id in self.results

    def add(self, result: Result) -> None:
        """Append one result and force it to disk; raises StoreError when the disk refuses."""
        if result.id in self.results:
            return
        self._journal.append(result.model_dump_json(exclude_defaults=False))
        self.results[result.id] = result

    def add_environment(self, environment: Environment) -> str:
        """Remember the environment of this invocation; returns its hash."""
        file = self.path / "environment.json"
        try:
            known: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
        except ValueError as error:
            raise StoreError(f"{file} is not JSON: {error}; move it away and go on with --resume") from error
        known[environment.digest] = environment.model_dump()
        self._replace(file, json.dumps(known, indent=1, sort_keys=True).encode())
        return environment.digest

    def add_summary(self, summary: RunSummary) -> None:
        """Append what this invocation took."""
        try:
            with (self.path / "summary.jsonl").open("ab") as file:
                file.write(summary.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise disk_error(self.path, error) from error

    def add_artifact(self, sha256: str, files: Mapping[str, bytes]) -> None:
        """Keep a candidate's sources under the hash of its content."""
        folder = self.path / "artifacts" / sha256
        for name, content in files.items():
            file = folder / name
            if not file.exists():
                self._replace(file, content)

    def add_experiment(self, text: str) -> None:
        """Keep the experiment as run; a resumed run must be the same."""
        file = self.path / "experiment.toml"
        if file.exists() and file.read_text() != text:
            raise StoreError(
                f"{file} differs from what is asked now; resume with the same options, "
                "or choose another --out"
            )
        self._replace(file, text.encode())

    def _replace(self, file: Path, content: bytes) -> None:
        temporary = file.with_name(file.name + ".new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(file)
        except OSError as error:
            raise disk_error(file, error) from error
