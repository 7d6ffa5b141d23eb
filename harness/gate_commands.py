"""Owns what `attnbench gate` does: have the benchmarks run, again where runs must agree, and tell."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from harness.commands import as_toml, guarded
from harness.exits import (
    EXIT_FOUND,
    EXIT_MACHINE,
    EXIT_NO_REFERENCE,
    EXIT_NOT_COMPARABLE,
    EXIT_PENDING,
    EXIT_STORE,
    EXIT_USAGE,
    fail,
)
from harness.experiment import Experiment, experiment_of, located, read_experiment
from harness.gate_before import NOTHING, Before, changed_since, keep_sources, stored_before
from harness.gate_kernels import Kernels
from reports.gate.accept import Raised, Refused, first, raised
from reports.gate.beside import former
from reports.gate.change import RULE
from reports.gate.decision import Judgement, judge
from reports.gate.github import annotations
from reports.gate.junit import junit
from reports.gate.saved import SavedError
from reports.gate.storage import AGAIN, REFERENCE, WHOLE, NoMeasurement, NoReference, Storage
from reports.gate.table import as_json, markdown, report

BENCHMARKS = Path(__file__).parents[1] / "tests" / "benchmarks" / "test_attention.py"


@dataclass(frozen=True)
class Asked:
    """What the command line says is to be measured, and where it is kept."""

    source: str
    target: str | None = None
    candidates: tuple[Path, ...] = ()
    anchor: str | None = None
    time_cap_s: float | None = None
    storage: Path = Path(".benchmarks")
    no_sandbox: bool = False
    against: Path | None = None  # kernels to compare with, instead of a reference

    def experiment(self) -> Experiment:
        """Raises ExperimentError."""
        given = {"target": self.target, "anchor": self.anchor}
        overrides: dict[str, object] = {key: value for key, value in given.items() if value}
        if self.candidates:
            overrides["candidates"] = [str(folder) for folder in self.candidates]
        found = read_experiment(self.source, overrides)
        data = found.model_dump(exclude_none=True)
        data["candidates"] = [str(located(name, self.source).resolve()) for name in found.candidates]
        if self.time_cap_s is not None:
            data["sampling"]["time_cap_s"] = self.time_cap_s
        return experiment_of(data, self.source)


@dataclass(frozen=True)
class Telling:
    """Whom the decision is told, besides people."""

    as_json: bool = False
    junit: Path | None = None
    github: bool = False


def gate(asked: Asked, telling: Telling, measured: bool) -> None:
    """Measure unless that was done, decide, say so; leaves with an exit code."""
    experiment = guarded(asked.experiment)
    storage = _storage(asked, experiment)
    if asked.against is None:
        before = _before(experiment, storage)
    else:
        experiment, before = _changed_since(experiment, asked.against)
        storage = replace(storage, target=f"{storage.target}-against")  # a part is never made a reference
    if not experiment.candidates and asked.against is not None:
        print(f"no kernel differs from those of {asked.against}: nothing to measure", file=sys.stderr)
        _tell(Judgement(()), telling)
        return
    if not measured:
        _measure(asked, experiment, storage, WHOLE, before=before)
    try:
        judgement = _judged(asked, storage)
        for _ in range(RULE.most - 1):
            if measured or not judgement.again:
                break
            _measure(asked, experiment, storage, AGAIN, judgement.again, before)
            judgement = _judged(asked, storage)
    except NoReference as error:
        _without_reference(asked, experiment, storage, error, measured)
    except SavedError as error:
        fail(str(error), EXIT_USAGE)
    _tell(judgement, telling)
    if judgement.failed:
        raise SystemExit(EXIT_FOUND)
    if not judgement.comparable:
        raise SystemExit(EXIT_NOT_COMPARABLE)
    if judgement.again:
        raise SystemExit(EXIT_PENDING if measured else EXIT_MACHINE)


def _judged(asked: Asked, storage: Storage) -> Judgement:
    """Raises SavedError."""
    runs = storage.runs()
    if asked.against is None:
        return judge(storage.reference(), runs)
    return judge(former(runs), runs, there=str(asked.against))


def _before(experiment: Experiment, storage: Storage) -> Before:
    """What changed kernels were. Without a reference that can be read, nothing: that is said later."""
    try:
        reference = storage.reference()
    except SavedError:
        return NOTHING
    before = guarded(lambda: stored_before(experiment, reference, Kernels(storage.folder)))
    for note in before.notes:
        print(note, file=sys.stderr)
    return before


def _changed_since(experiment: Experiment, folder: Path) -> tuple[Experiment, Before]:
    return guarded(lambda: changed_since(experiment, folder))


def make_reference(asked: Asked, measured: bool) -> None:
    """Measure, and have that be the reference, whatever there was."""
    if not measured:
        experiment = guarded(asked.experiment)
        storage = _storage(asked, experiment)
        _measure(asked, experiment, storage, WHOLE)
        for _ in range(RULE.reference - 1):
            _measure(asked, experiment, storage, AGAIN)
        _quieten(asked, experiment, storage)
    accept(asked, replace=True)


def accept(asked: Asked, replace: bool) -> None:
    """Save a new reference, and say what is different in it."""
    storage = _storage(asked, guarded(asked.experiment))
    try:
        _save(storage, _made(storage, replace))
    except (SavedError, Refused) as error:
        fail(f"{error}\nThe reference stays as it is.", EXIT_USAGE)


def _made(storage: Storage, replace: bool) -> Raised:
    runs = storage.runs()
    if replace:
        return first(runs)
    try:
        reference = storage.reference()
    except NoReference:
        return first(runs)
    return raised(reference, runs, judge(reference, runs))


def _save(storage: Storage, made: Raised) -> None:
    if not made.changes:
        print("nothing to raise: no case is faster, and none is new")
        return
    text = json.dumps(made.content, indent=4)
    try:
        file = storage.save(REFERENCE, lambda path: _write(path, text.encode()))
    except OSError as error:
        fail(f"cannot write {error.filename or storage.place}: {error.strerror}", EXIT_STORE)
    print("\n".join((*made.changes, f"the reference for {storage.target} is now {file}")))


def _without_reference(
    asked: Asked, experiment: Experiment, storage: Storage, error: NoReference, measured: bool
) -> NoReturn:
    """What was measured may become the reference."""
    try:
        storage.runs()
        if not measured:
            _quieten(asked, experiment, storage)
    except SavedError as nothing:
        missing = isinstance(nothing, NoMeasurement)
        fail(f"{error}, and {nothing}", EXIT_NO_REFERENCE if missing else EXIT_USAGE)
    options = _same_options(asked)
    fail(
        f"{error}. On a version of the kernels that you trust: attnbench gate{options} --reference. "
        f"Or keep the one run of now: attnbench gate accept{options}",
        EXIT_NO_REFERENCE,
    )


def _quieten(asked: Asked, experiment: Experiment, storage: Storage) -> None:
    """Measure again what is too noisy to be a reference; the quietest will be taken."""
    for _ in range(RULE.most - 1):
        if not (noisy := _noisy(storage)):
            break
        _measure(asked, experiment, storage, AGAIN, noisy)


def _noisy(storage: Storage) -> list[str]:
    """Cases without a measurement so quiet that it would not widen the band of every gate to come."""
    runs = storage.runs()
    least = dict.fromkeys((c for run in runs for c in run.disturbed), float("inf"))
    for run in runs:
        for case in run.cases.values():
            least[case.id] = min(case.noise_floor, least.get(case.id, float("inf")))
    return [case for case, noise in least.items() if RULE.noise_factor * noise > RULE.least]


def _same_options(asked: Asked) -> str:
    given = {"--experiment": asked.source if asked.source != "gate-cpu" else None, "--target": asked.target}
    if asked.storage != Path(".benchmarks"):
        given["--storage"] = str(asked.storage)
    return "".join(f" {option} {value}" for option, value in given.items() if value)


def _storage(asked: Asked, experiment: Experiment) -> Storage:
    if importlib.util.find_spec("pytest_benchmark") is None:
        fail("the gate needs pytest-benchmark: pip install 'attnbench[test]'", EXIT_MACHINE)
    from pytest_benchmark.utils import get_machine_id

    machine: str = get_machine_id()  # type: ignore[no-untyped-call]
    return Storage(asked.storage.absolute(), machine, experiment.target)


def _measure(
    asked: Asked,
    experiment: Experiment,
    storage: Storage,
    kind: str,
    cases: Sequence[str] = (),
    before: Before = NOTHING,
) -> None:
    """Run the benchmarks as pytest does; theirs is the standard error, ours the standard output.

    The sources are kept before: one day this may be a reference.
    """
    if not BENCHMARKS.exists():
        fail(
            f"the gate's benchmarks lie in a checkout, and {BENCHMARKS} is not there: git clone attnbench, "
            "and run the gate in its folder",
            EXIT_MACHINE,
        )
    try:
        guarded(lambda: keep_sources(experiment, Kernels(storage.folder)))
    except OSError as error:
        fail(f"cannot write {error.filename or storage.folder}: {error.strerror}", EXIT_STORE)
    saved = _saved_files(storage)
    with tempfile.TemporaryDirectory(prefix="attnbench-gate-") as folder:
        file = Path(folder) / "experiment.toml"
        file.write_text(as_toml(experiment), encoding="utf-8")
        olds = Path(folder) / "before.json"
        olds.write_text(json.dumps({case: str(place) for case, place in before.folders.items()}))
        command = [
            sys.executable, "-m", "pytest", str(BENCHMARKS), "--gate", str(file), "--benchmark-only",
            f"--gate-before={olds}",
            f"--benchmark-save={storage.name(kind)}", f"--benchmark-storage=file://{storage.folder}",
            "--benchmark-columns=median,min,max,rounds", "--timeout=0", "--no-header",
            *(f"--gate-case={case}" for case in cases),
            *(["--gate-no-sandbox"] if asked.no_sandbox else []),
        ]  # fmt: skip
        ended = run_benchmarks(command)
    if _saved_files(storage) == saved:
        if ended == EXIT_FOUND:
            fail("no kernel gave a time; why is said above", EXIT_FOUND)
        known = ended in (EXIT_USAGE, EXIT_MACHINE, EXIT_STORE)
        fail("nothing was measured; why is said above", ended if known else EXIT_MACHINE)


def run_benchmarks(command: Sequence[str]) -> int:
    """Run pytest; what it prints goes to the standard error. Returns its exit code."""
    env = {
        k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")
    }  # of a pytest that runs this one
    return subprocess.run(command, stdout=2, check=False, env=env).returncode


def _saved_files(storage: Storage) -> set[Path]:
    return set(storage.place.glob("*.json"))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _tell(judgement: Judgement, telling: Telling) -> None:
    print(as_json(judgement) if telling.as_json else report(judgement))
    try:
        if telling.junit is not None:
            telling.junit.write_bytes(junit(judgement))
        if telling.github:
            print("\n".join(annotations(judgement)), file=sys.stderr if telling.as_json else sys.stdout)
            if page := os.environ.get("GITHUB_STEP_SUMMARY"):
                with Path(page).open("a", encoding="utf-8") as handle:
                    handle.write(markdown(judgement))
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}", EXIT_STORE)
