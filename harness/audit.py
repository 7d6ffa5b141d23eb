"""Owns whether a run's directory still says what was recorded: hashes recomputed, links followed.

It reads and writes nothing else. There is no secret key: whoever rewrites a whole run, every seal after
the change included, is not noticed here; only a second run tells. What `audit` finds is a record that was
edited, dropped or moved without that, and files that are not those that were measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.audit_results import ResultLine, check_results
from harness.audit_stories import Stories, check_stories
from harness.build.manifest import Manifest
from harness.journal import lines_of, torn
from harness.records import content_hash
from harness.runs import RunSummary
from harness.seals import RecordError
from harness.store import ENVIRONMENTS, RESULTS, SUMMARIES, read_summary

ARTIFACTS = "artifacts"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was recorded."""

    where: str  # file and line, or folder
    what: str


@dataclass
class Audit:
    """What is wrong with a run, and what is worth knowing though it is not wrong."""

    results: int = 0
    sealed: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def found(self, where: str, what: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(where, what))


class AuditError(ValueError):
    """A directory that is no run; the text says what is missing."""


def audit(
    run: Path, tasks: Mapping[str, str], moved: Callable[[int, int], None] = lambda done, total: None
) -> Audit:
    """Everything found in the run at `run`; `tasks` maps the tasks installed here to hashes of their files.

    `moved` is told how many lines of results are done. Raises AuditError where there is no run.
    """
    if not (run / RESULTS).is_file():
        raise AuditError(
            f"{run} holds no {RESULTS}; give the directory of a run, as `attnbench eval` printed it"
        )
    found = Audit()
    environments = _environments(run / ENVIRONMENTS, found)
    results = check_results(run / RESULTS, environments, found, moved)
    stories = check_stories(run, found)
    stories.check_results(results, found)
    _check_sources(run / ARTIFACTS, _sources(results, stories), found)
    _check_summaries(run, found)
    _note_tasks(results, tasks, found)
    if found.sealed < found.results:
        found.notes.append(
            f"{found.results - found.sealed} of {found.results} results carry no seal: an attnbench recorded "
            "them that wrote none. A figure that was edited in them, or one that was dropped, does not show."
        )
    return found


def _environments(file: Path, found: Audit) -> dict[str, dict[str, object]]:
    """Content of each environment by the hash that results name it by."""
    if not file.is_file():
        found.found(file.name, "is not there: what the results were recorded on is not known")
        return {}
    try:
        data = json.loads(file.read_bytes())
        known = {str(key): dict(value) for key, value in data.items()}
    except (ValueError, AttributeError, TypeError) as error:
        found.found(file.name, f"is no object of environments by their hashes: {error}")
        return {}
    for key, value in known.items():
        if content_hash(value) != key:
            found.found(f"{file.name}: {key[:12]}", "its content is not what the hash is of: it was changed")
    return known


@dataclass(frozen=True)
class _Bundle:
    """Sources as a record names them."""

    sha256: str
    files: tuple[tuple[str, str], ...]
    named_by: str


def _sources(results: Iterable[ResultLine], stories: Stories) -> dict[str, _Bundle]:
    """Every bundle of sources that a record names, with the first record that does."""
    named: dict[str, _Bundle] = {}
    for line in results:
        c = line.result.candidate
        if c.files:
            named.setdefault(c.sha256, _Bundle(c.sha256, tuple(c.files.items()), line.where))
    for where, candidate, files in stories.kernels():
        named.setdefault(candidate, _Bundle(candidate, tuple(files.items()), where))
    return named


def _check_sources(folder: Path, named: Mapping[str, _Bundle], found: Audit) -> None:
    present = {path.name: path for path in sorted(folder.glob("*")) if path.is_dir()}
    for sha256, path in present.items():
        where, files = f"{ARTIFACTS}/{sha256[:12]}", _files(path)
        if sha256 not in named:
            if _bundle_hash(path, files) != sha256:
                found.notes.append(f"{where} is not whole and no record names it: left by a kill, perhaps")
            continue
        said = dict(named[sha256].files)
        wrong = [
            f"{name} is not the file that was measured"
            for name, hashed in said.items()
            if name in files and hashlib.sha256(files[name]).hexdigest() != hashed
        ]
        wrong += [f"{name} is missing" for name in said if name not in files]
        wrong += [f"{name} was added" for name in files if name not in said]
        if wrong:
            found.found(where, "; ".join(wrong))
        elif _bundle_hash(path, files) != sha256:
            found.found(where, "its files are those that the records name, and their hash is another one")
    for bundle in named.values():
        if bundle.sha256 not in present:
            found.found(bundle.named_by, f"its sources {bundle.sha256[:12]} are not in {ARTIFACTS}/")


def _files(folder: Path) -> dict[str, bytes]:
    """Sources by name: not what running a kernel leaves beside it, nor a copy that a kill cut off."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__" and path.suffix != ".new"
    }


def _bundle_hash(folder: Path, files: Mapping[str, bytes]) -> str:
    """By the recipe that named the folder."""
    return Manifest("", (), "", (), folder, {}, files).sha256


def _check_summaries(run: Path, found: Audit) -> None:
    """Files that are only appended to still begin with what they held when an invocation ended."""
    file = run / SUMMARIES
    summaries: list[tuple[int, RunSummary]] = []
    lines = lines_of(file.read_bytes()) if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            summaries.append((number, read_summary(line.decode(errors="replace"))))
        except RecordError as error:
            if number == len(lines) and torn(line):
                found.notes.append(f"the last line of {SUMMARIES} is torn: that invocation was cut off")
            else:
                found.found(f"{SUMMARIES}:{number}", str(error))
    told: set[str] = set()
    for number, summary in summaries:
        for name, extent in summary.files.items():
            path = run / name
            content = path.read_bytes()[: extent.bytes] if path.is_file() else b""
            if name in told or hashlib.sha256(content).hexdigest() == extent.sha256:
                continue
            told.add(name)  # later invocations saw the same file
            lost = extent.bytes - len(content)
            what = f"{lost} bytes at its end are gone" if lost else f"its first {extent.bytes} bytes changed"
            found.found(name, f"{what} since line {number} of {SUMMARIES} was written")
    counted = sum(summary.results for _, summary in summaries)
    if counted > found.results and not any(s.files for _, s in summaries):
        found.notes.append(
            f"{SUMMARIES} counts {counted} results, {RESULTS} holds {found.results}: some were dropped, or "
            "the run was merged of parts that overlap"
        )


def _note_tasks(results: Iterable[ResultLine], tasks: Mapping[str, str], found: Audit) -> None:
    versions = {(line.result.task, line.result.identity.task) for line in results}
    for task in sorted({task for task, _ in versions}):
        measured = {version for name, version in versions if name == task}
        if task not in tasks:
            found.notes.append(f"{task} is no task of this attnbench: whether it is the same is not known")
        elif measured != {tasks[task]}:
            found.notes.append(f"{task} was measured with another version of the task than the one here")
        if len(measured) > 1:
            found.notes.append(f"{task} was measured in {len(measured)} versions, which reports keep apart")
