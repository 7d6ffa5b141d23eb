"""Owns making one run of parts that ran apart: the tasks of an experiment on several GPUs of a host, say.

Nothing is measured, chosen or averaged here. What two parts hold alike is kept once; where they hold
different records of one thing the merge is refused, since which of them counts is not decided here.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.experiment import Experiment, ExperimentError, read_experiment
from harness.journal import lines_of, torn
from harness.records import Result
from harness.runs import Environment, RunSummary
from harness.seals import RecordError
from harness.store import SUMMARIES, Store, StoreError, read_summary
from harness.story import Ending, Step
from harness.storybook import Storybook

PARTED = ("tasks", "methods", "models")  # a part has some of them; all else must be as in the whole
R = TypeVar("R")
Story = tuple[Step | Ending, ...]


@dataclass(frozen=True)
class Merged:
    """What a run made of parts holds."""

    results: int
    stories: int
    answers: int


@dataclass(frozen=True)
class _Part:
    path: Path
    store: Store
    book: Storybook

    def results(self) -> dict[str, Result]:
        """Without their places in the part: in the whole they get a chain of their own."""
        return {key: result.bare for key, result in self.store.results.items()}

    def stories(self) -> dict[str, Story]:
        """Each trial's lines: steps in order, then its ending."""
        endings = self.book.endings
        trials = dict.fromkeys([*self.book.steps, *endings])
        return {
            trial: (*self.book.steps.get(trial, ()), *([endings[trial]] if trial in endings else ()))
            for trial in trials
        }


def merge(
    parts: Sequence[Path],
    whole: Experiment,
    text: str,
    out: Path,
    moved: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Write the records of `parts` into a new run of the experiment `whole` at `out`; `text` is its TOML.

    `moved` is told how many of all results are written.

    The parts stay as they are. Raises ExperimentError where a run is no part of the experiment, StoreError
    where records collide, where `out` holds a run or where a part is being written.
    """
    for path in parts:
        _require_part(path, whole)
    if (out / "results.jsonl").exists() or (out / "experiment.toml").exists():
        raise StoreError(f"{out} holds a run already; choose another --out")
    with contextlib.ExitStack() as stack:
        opened = [_open(stack, path, resume=True) for path in parts]
        results = _joined(opened, _Part.results, "result")
        answers = _joined(opened, lambda p: p.book.exchanges, "answer")
        stories = _joined(opened, _Part.stories, "story")
    with _whole_or_not_at_all(out) as fresh, contextlib.ExitStack() as stack:
        into = _open(stack, fresh, resume=False)
        into.store.add_experiment(text)
        for path in parts:
            _copy_surroundings(path, into.store)
        for answer in answers:
            into.book.add_exchange(answer)
        for line in (line for story in stories for line in story):
            into.book.add(line)
        for number, result in enumerate(results, 1):
            into.store.add(result)
            moved(number, len(results))
        for summary in sorted(_summaries(parts), key=lambda s: s.started_at):
            into.store.add_summary(summary)
    return Merged(len(results), len(stories), len(answers))


@contextlib.contextmanager
def _whole_or_not_at_all(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` in the end: half a merge would pass for a run to resume."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            yield Path(scratch) / "run"
            (Path(scratch) / "run").rename(out)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}. Nothing was changed.") from error


def _require_part(path: Path, whole: Experiment) -> None:
    file = path / "experiment.toml"
    if not file.exists():
        raise ExperimentError(f"{path} holds no run; give directories that `attnbench eval` filled")
    part = read_experiment(str(file))
    for key in (k for k in Experiment.model_fields if k != "only"):
        ours, theirs = getattr(part, key), getattr(whole, key)
        if ours != theirs and not (key in PARTED and set(ours) <= set(theirs)):
            raise ExperimentError(
                f"{file}: {key} is {ours!r}, and {theirs!r} in the whole experiment. A part may "
                "have fewer tasks, methods and models, and else be the same: name its whole experiment"
            )
    for task in part.tasks:
        if extra := set(part.methods_of(task)) - set(whole.methods_of(task)):
            raise ExperimentError(f"{file}: the whole experiment has no {', '.join(extra)} on {task}")


def _open(stack: contextlib.ExitStack, path: Path, *, resume: bool) -> _Part:
    store = stack.enter_context(Store(path, resume=resume))
    book = Storybook(path)
    stack.callback(book.close)
    return _Part(path, store, book)


def _joined(parts: Sequence[_Part], records: Callable[[_Part], dict[str, R]], what: str) -> list[R]:
    """The records of all parts, each once, in the order of the parts."""
    found: dict[str, tuple[R, Path]] = {}
    for part in parts:
        for key, record in records(part).items():
            known, where = found.setdefault(key, (record, part.path))
            if known != record:
                raise StoreError(
                    f"{where} and {part.path} hold different records of {what} {key[:12]}. Nothing was "
                    "written. Merge runs of different tasks, or leave one of the two out."
                )
    return [record for record, _ in found.values()]


def _copy_surroundings(path: Path, store: Store) -> None:
    """Environments and the sources of candidates."""
    file = path / "environment.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for environment in known.values():
        store.add_environment(Environment.model_validate(environment))
    for folder in sorted((path / "artifacts").glob("*")):
        files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.parent.name != "__pycache__"]
        store.add_artifact(folder.name, {str(f.relative_to(folder)): f.read_bytes() for f in files})


def _summaries(paths: Iterable[Path]) -> list[RunSummary]:
    found = []
    for file in (path / SUMMARIES for path in paths):
        lines = lines_of(file.read_bytes()) if file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                found.append(read_summary(line.decode(errors="replace")))
            except RecordError as error:
                if number == len(lines) and torn(line):
                    continue  # cut off in writing: that invocation is not summed up
                raise StoreError(f"{file}:{number}: {error}. Nothing was written.") from error
    return found
