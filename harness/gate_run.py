"""Owns measuring what the gate's benchmarks ask for: an experiment's cases, through the pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from harness.bench import Bench, machine_device
from harness.build.manifest import Manifest, read_candidate
from harness.commands import confinement, planned
from harness.environment import describe
from harness.experiment import Cell, Plan
from harness.pipeline import evaluate
from harness.records import Block, Result
from harness.runs import Environment
from harness.store import Store
from harness.targets import find_target
from harness.verdicts import Verdict
from reports.gate.beside import TIMED, old_self, parted
from reports.gate.saved import Case, Machine, case_id, case_of

KINDS: Mapping[Verdict, Literal["skipped", "disturbed"]] = {
    Verdict.SKIPPED: "skipped",
    Verdict.INFRA: "disturbed",
}
TRIES = 3  # for a case that failed through no fault of its kernel
OLD = "@reference"  # behind a kernel's name: what it was
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Wanted:
    """A case that an experiment means."""

    task: str
    workload: str
    kernel: str

    @property
    def id(self) -> str:
        return case_id(self.task, self.workload, self.kernel)


@dataclass(frozen=True)
class Measured:
    """What became of a case: its figures and blocks, or why there are none and whose fault that is."""

    case: Case | None
    blocks: tuple[Block, ...] = ()
    reason: str = ""
    kind: Literal["failed", "skipped", "disturbed"] = "failed"


class AmbiguousNames(ValueError):
    """Two kernels of one name: their cases could not be told apart."""


class _Silent:
    def begin(self, trials: int, done: int) -> None: ...
    def cell(self, cell: Cell) -> None: ...
    def recorded(self, result: Result) -> None: ...


class GateRun:
    """One experiment's cases. Nothing is measured before the first is asked for; then all of `only` are.

    The kernels that they were before are measured beside them and are no cases of their own.
    """

    def __init__(
        self,
        source: str,
        only: Collection[str] = (),
        no_sandbox: bool = False,
        before: Mapping[str, Path] | None = None,
    ) -> None:
        """`only`: ids of cases; empty: all. `before`: ids of cases -> the folder of what its kernel was.

        Raises what `planned` raises, and AmbiguousNames.
        """
        experiment, plan, _ = planned(source, {}, (), None)
        before = before or {}
        cases = tuple(cases_of(plan))
        self.wanted = tuple(w for w in cases if not only or w.id in only)
        olds = _old_kernels(cases, before, plan)
        self._old = {w.id: olds[before[w.id]].name for w in cases if before.get(w.id) in olds}
        self._plan = replace(plan, candidates=(*plan.candidates, *olds.values()))
        names = [*plan.baselines, *(m.name for m in self._plan.candidates)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise AmbiguousNames(f"more than one kernel is called {', '.join(twice)}; give each a name")
        # A group is what shares a session: no kernel is parted from its old self.
        group = max(experiment.group, len(self._plan.candidates)) if olds else experiment.group
        self.experiment = experiment.model_copy(update={"group": group})
        self._no_sandbox = no_sandbox

    @cached_property
    def machine(self) -> Machine:
        """This machine, as found."""
        return _machine(self._environment)

    @cached_property
    def _environment(self) -> Environment:
        target = find_target(self.experiment.target)
        return describe(target, machine_device(target))

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """Every case by id, and no old self. Raises MachineError, WorkerError, StoreError."""
        results: dict[str, Result] = {}
        sandbox = confinement(self._no_sandbox) if self._plan.candidates else None
        with Bench(self.experiment, find_target(self.experiment.target), sandbox=sandbox) as bench:
            left = {w.id for w in self.wanted}
            for _ in range(TRIES):
                results |= self._evaluated([w for w in self.wanted if w.id in left], bench)
                left = {c for c in left if self._disturbed(c, results)}
                if not left:
                    break
        return {w.id: self._of(results.get(w.id), results) for w in self.wanted}

    def _evaluated(self, wanted: Sequence[Wanted], bench: Bench) -> dict[str, Result]:
        """Results of these cases and of all others of their cells: who else is in a session may matter."""
        cells = {(w.task, w.workload) for w in wanted}
        plan = replace(
            self._plan,
            cells=tuple(c for c in self._plan.cells if (c.task.name, c.workload.key) in cells),
        )
        with (
            tempfile.TemporaryDirectory(prefix="attnbench-gate-") as folder,
            Store(Path(folder) / "run", resume=False) as store,
        ):
            evaluate(plan, bench, store, _Silent())
            return {case_id(r.task, r.workload.key, r.candidate.name): r for r in store.results.values()}

    def _disturbed(self, case: str, results: dict[str, Result]) -> bool:
        """Whether a case has to be measured again through no fault of its kernel, or of what it was."""
        new, old = results.get(case), self._old_result(case, results)
        if new is None or new.verdict is Verdict.INFRA:
            return True
        return old is not None and (old.verdict is Verdict.INFRA or parted(new, old))

    def _old_result(self, case: str, results: dict[str, Result]) -> Result | None:
        name = self._old.get(case)
        return results.get(f"{case.rpartition('/')[0]}/{name}") if name else None

    def _of(self, result: Result | None, results: dict[str, Result]) -> Measured:
        if result is None:
            return Measured(None, reason="it was not tried")
        if result.verdict not in TIMED or result.measurement is None:
            return Measured(
                None, reason=f"{result.verdict}: {result.reason}", kind=KINDS.get(result.verdict, "failed")
            )
        anchor = results[case_id(result.task, result.workload.key, result.measurement.ratio.anchor)]
        id_ = case_id(result.task, result.workload.key, result.candidate.name)
        old_result = self._old_result(id_, results)
        if old_result is not None and self._disturbed(id_, results):
            return Measured(None, reason=f"its old self was disturbed: {old_result.reason}", kind="disturbed")
        old = old_self(result, old_result) if old_result is not None else None
        case = case_of(result, anchor.candidate.sha256, self.machine, self._source(result), old)
        if case is None:
            return Measured(None, reason="it was timed without a duplicate of the anchor")
        return Measured(case, result.measurement.blocks)

    def _source(self, result: Result) -> str:
        """The kernel's file as seen from here; a page that shows it should be able to open it."""
        manifest = next((m for m in self._plan.candidates if m.name == result.candidate.name), None)
        if manifest is None:
            return ""
        try:
            file = manifest.folder.resolve() / manifest.entry(result.task)
            return file.relative_to(Path.cwd()).as_posix()
        except ValueError:
            return ""


def cases_of(plan: Plan) -> Iterator[Wanted]:
    """Every kernel and baseline on every workload."""
    for cell in plan.cells:
        for kernel in (*plan.baselines, *(m.name for m in _of_task(plan, cell))):
            yield Wanted(cell.task.name, cell.workload.key, kernel)


def _of_task(plan: Plan, cell: Cell) -> list[Manifest]:
    return [m for m in plan.candidates if cell.task.name in m.tasks]


def _old_kernels(cases: Sequence[Wanted], before: Mapping[str, Path], plan: Plan) -> dict[Path, Manifest]:
    """Folder -> its kernel, named after the one that it has become, for the tasks that it is asked for.

    One that is among the kernels of now as well, under another name, would be measured as that one.
    """
    now = {m.sha256 for m in plan.candidates}
    found: dict[Path, Manifest] = {}
    for folder in dict.fromkeys(before[w.id] for w in cases if w.id in before):
        asked = [w for w in cases if before.get(w.id) == folder]
        manifest = read_candidate(folder)
        tasks = tuple(t for t in manifest.tasks if t in {w.task for w in asked})
        if not tasks or manifest.sha256 in now:
            continue
        name = f"{asked[0].kernel}{OLD}"
        same = sum(m.name.startswith(name) for m in found.values())  # older ones of some of its cases
        found[folder] = replace(manifest, name=f"{name}-{same + 1}" if same else name, tasks=tasks)
    return found


def _machine(environment: Environment) -> Machine:
    """With what decides a CPU's clock, where the system tells."""
    settings = {}
    if environment.target == "cpu" and GOVERNOR.exists():
        settings["governor"] = GOVERNOR.read_text(encoding="utf-8").strip()
    return Machine.of(environment, settings)
