"""Owns compiling the LLM-TL programs that an experiment names into candidates, without any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.build.manifest import Manifest, Origin
from harness.experiment import Experiment, ExperimentError, located
from harness.store import Store
from harness.targets import find_target
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tl.lower.backends import COMPILED, lower
from harness.tl.lower.lowered import Lowered, LowerError
from tasks.spec import Task

REFERENCE = "reference"


def program_candidates(
    experiment: Experiment, known: Mapping[str, Task], store: Store, source: str
) -> tuple[list[Manifest], list[str]]:
    """The compiled programs, kept in the run, and what could not be compiled with the reason.

    Raises ExperimentError for a file that is no program of one of the experiment's tasks.
    """
    target = find_target(experiment.target)
    found: list[Manifest] = []
    refused: dict[str, list[str]] = {}
    on = target if target.is_gpu else None
    for name, text in _texts(experiment, source):
        task = known[name]
        dtype = (experiment.dtypes or ("fp16",))[0]
        for backend in [b for b in experiment.backend_names if b in COMPILED]:
            try:
                report = check(text, task, target=on, dtype=dtype)
                if report.program is None:
                    error = next(f for f in report.findings if f.is_error)
                    raise LowerError(f"line {error.pos.line}: {error.code}: {error.message}")
                lowered = lower(report.program, task, backend, on)
            except LowerError as error:
                refused.setdefault(str(error), []).append(name)
                continue
            found.append(_kept(lowered, name, store))
    return found, [f"not run: LLM-TL programs of {', '.join(n)}: {why}" for why, n in refused.items()]


def _texts(experiment: Experiment, source: str) -> list[tuple[str, str]]:
    """(task, text) of each program, in the order of the tasks."""
    found: list[tuple[str, str]] = []
    for name in experiment.programs:
        if name == REFERENCE:
            texts = {e.task: e.text for e in corpus(REFERENCE)}
            found += [(task, texts[task]) for task in experiment.tasks if task in texts]
            continue
        try:
            text = located(name, source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError(
                f"programs: {name} cannot be read: {error}; write `{REFERENCE}` for the suite's own"
            ) from error
        found.append((_task_of(name, text, experiment.tasks), text))
    return found


def _task_of(name: str, text: str, tasks: Sequence[str]) -> str:
    """The task that a program says it is for (`# task: NAME`, or its kernel's name)."""
    for line in text.splitlines()[:10]:
        words = line.replace("//", "#").strip("# \t").replace(":", " ").split()
        if len(words) >= 2 and words[0].lower() in ("task", "kernel") and words[1] in tasks:
            return words[1]
    raise ExperimentError(f"programs: {name} names none of the tasks {', '.join(tasks)}; add `# task: NAME`")


def _kept(lowered: Lowered, task: str, store: Store) -> Manifest:
    contents = {name: text.encode() for name, text in sorted(lowered.files.items())}
    manifest = Manifest(
        name=lowered.name,
        tasks=(task,),
        backend=lowered.backend,
        targets=(),
        folder=store.path,
        entries={task: "attention.py"},
        files=contents,
        origin=Origin("program"),
    )
    store.add_artifact(manifest.sha256, contents)
    return Manifest(**{**manifest.__dict__, "folder": store.path / "artifacts" / manifest.sha256})
