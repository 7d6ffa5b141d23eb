"""Owns the way of a trial: plan -> build -> verify -> measure -> record. Read this file first.

One cell (a workload of a task) at a time, so that its contenders share a session, their
inputs and their expected values. A later step never reaches into an earlier one.
"""

from __future__ import annotations

import datetime
from typing import Protocol

from harness.bench import Bench, usable_baselines
from harness.build.manifest import Manifest
from harness.entrants import (
    INTERPRETED,
    Acceptance,
    Trial,
    baseline_trial,
    build,
    candidate_trial,
    ended_trial,
    verify,
)
from harness.experiment import Cell, Ended, Plan
from harness.race import Race
from harness.records import CompiledKernel, Cost, Measurement, Result, Verification, WorkloadRecord
from harness.runs import RunSummary
from harness.store import Store
from harness.verdicts import Verdict
from harness.verify.exam import Question, Rejected
from harness.verify.inputs import recipes_for
from harness.worker.protocol import WorkerError

FRUITLESS_ATTEMPTS = 2  # in a row without a result, before what is left of a cell is given up
CUT_SHORT = "its session was cut short by others' faults, again and again"
UNSTEADY = "no time of it could be believed, again and again: {}"


class Observer(Protocol):
    """Who watches a run."""

    def begin(self, trials: int, done: int) -> None:
        """Before the first trial: how many there are, how many of them are recorded already."""

    def cell(self, cell: Cell) -> None:
        """Work on a cell begins."""

    def recorded(self, result: Result) -> None:
        """A result is safely on disk."""


def evaluate(plan: Plan, bench: Bench, store: Store, observer: Observer) -> RunSummary:
    """Run every trial of the plan that the store does not hold; returns what it took."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before = len(store.results)
    for manifest in plan.candidates:
        store.add_artifact(manifest.sha256, manifest.files)
    environment = store.add_environment(bench.environment)
    groups = plan.groups(bench.experiment.group)
    total = [t for g in groups for c in plan.cells for t in _trials(plan, c, g, bench)]
    ended = [(ended_trial(e.ending, e.name, c, bench), e) for e, c in _ended_cells(plan)]
    total_ids = {t.id for t in (*total, *(t for t, _ in ended))}
    observer.begin(len(total_ids), len(total_ids & store.results.keys()))
    recorder = _Recorder(bench, store, observer, environment)
    interrupted = True
    try:
        for trial, e in ended:
            if trial.id not in store:
                assert e.ending.verdict is not None
                recorder(trial, e.ending.verdict, e.ending.reason, e.verification)
        undone = [c for c in plan.cells if any(t.id not in store for t in total if t.cell == c)]
        if undone:
            bench.warm_up(undone, plan.baselines)
        for manifest in plan.candidates:  # compiled on the CPU's cores while the GPU measures others
            bench.presses.foresee(manifest, undone)
        for group in groups:
            acceptance = Acceptance(bench)
            for cell in plan.cells:
                pending = [t for t in _trials(plan, cell, group, bench) if t.id not in store]
                if pending:
                    observer.cell(cell)
                    _run_cell(pending, plan, cell, bench, acceptance, recorder)
            for manifest in group:
                bench.dismiss(manifest)
        interrupted = False
    finally:
        wall, stages, working = bench.ledger.totals()
        summary = RunSummary(
            started_at=started,
            wall_s=wall,
            stages_s=stages,
            gpu_work_s=working,
            results=len(store.results) - before,
            interrupted=interrupted,
        )
        store.add_summary(summary)
    return summary


def _ended_cells(plan: Plan) -> list[tuple[Ended, Cell]]:
    """Every trial that made no kernel, on every cell of its task: it failed on all of them."""
    return [(e, c) for e in plan.ended for c in plan.cells if c.task.name == e.ending.assignment.task]


def _trials(plan: Plan, cell: Cell, group: tuple[Manifest, ...], bench: Bench) -> list[Trial]:
    """Baselines (once, whichever group comes first records them), then the group's candidates."""
    return [baseline_trial(name, cell, bench) for name in plan.baselines] + [
        candidate_trial(m, cell, bench) for m in group if cell.task.name in m.tasks
    ]


def _run_cell(
    trials: list[Trial], plan: Plan, cell: Cell, bench: Bench, acceptance: Acceptance, record: _Recorder
) -> None:
    """Until every trial has a result; one whose worker died with another's fault is tried again."""
    with bench.ledger.stage("look up baselines"):
        reasons = usable_baselines(plan.baselines, cell.task, cell.workload, bench.target)
    for trial in trials:
        if trial.manifest is None and reasons[trial.record.name]:
            record(trial, Verdict.SKIPPED, reasons[trial.record.name])
    fruitless = 0
    while pending := [t for t in trials if t.id not in record.store]:
        before = len(record.store.results)
        unsteady = _attempt(pending, plan, cell, bench, acceptance, record)
        fruitless = fruitless + 1 if len(record.store.results) == before else 0
        if fruitless == FRUITLESS_ATTEMPTS:
            for trial in pending:
                why = unsteady.get(trial.record.name)
                record(trial, Verdict.INFRA, UNSTEADY.format(why) if why else CUT_SHORT)


def _attempt(
    trials: list[Trial], plan: Plan, cell: Cell, bench: Bench, acceptance: Acceptance, record: _Recorder
) -> dict[str, str]:
    """Returns whose times could not be believed, and why."""
    built = []
    for trial in trials:
        try:
            entrant = build(trial, bench)
            if entrant.is_candidate:
                acceptance.admit(entrant)
            if entrant.interpreted:
                raise Rejected(Verdict.PROVEN, INTERPRETED, entrant.verification)
            if bench.stand_in is not None:
                raise Rejected(Verdict.PROVEN, bench.proven_on, entrant.verification)
            built.append(entrant)
        except Rejected as rejected:
            record(trial, rejected.verdict, rejected.reason, rejected.verification)
    if not built:
        return {}
    exam = bench.exam(cell.task, cell.workload, _questions(cell, bench))
    library = bench.library_worker()
    try:
        with bench.ledger.stage("transfer"):
            exam.admit(library, bench.slots(cell))
    except WorkerError as error:  # it was killed, or a candidate holds the memory: once more with new ones
        bench.after_failure(library, error)
        for entrant in built:
            if entrant.trial.manifest is not None:
                bench.dismiss(entrant.trial.manifest)
        return {}
    verified = []
    for entrant in built:
        if entrant.worker.alive:  # else it died with a baseline before it: tried again
            try:
                verify(entrant, exam, bench)
                verified.append(entrant)
            except Rejected as rejected:
                record(entrant.trial, rejected.verdict, rejected.reason, rejected.verification)
    if not library.alive:
        return {}  # the baselines it took along are tried again first: candidates need an anchor
    race = Race(cell, exam, verified, bench)
    for entrant, out in race.run(plan.baselines, record.store):
        record(entrant.trial, out.verdict, out.reason, out.verification, out.measurement, entrant.seconds)
    bench.release([library, *{id(e.worker): e.worker for e in built}.values()])
    return race.unsteady


def _questions(cell: Cell, bench: Bench) -> list[Question]:
    """Two contents for timing, one adversarial by lot."""
    recipes = [r for r in recipes_for(cell.task, cell.workload) if r != "normal"]
    seeds = [bench.fresh_seed() for _ in range(4)]
    adversarial = recipes[seeds[3] % len(recipes)] if recipes else "normal"
    return [Question("normal", seeds[0]), Question("normal", seeds[1]), Question(adversarial, seeds[2])]


PRESS_WAIT_S = 5.0  # for a compilation for the record, of a kernel that has run


class _Recorder:
    """Turns what became of a trial into a result in the store."""

    def __init__(self, bench: Bench, store: Store, observer: Observer, environment: str) -> None:
        self._bench, self.store, self._observer, self._environment = bench, store, observer, environment

    def __call__(
        self,
        trial: Trial,
        verdict: Verdict,
        reason: str,
        verification: Verification | None = None,
        measurement: Measurement | None = None,
        seconds: dict[str, float] | None = None,
    ) -> None:
        result = Result(
            id=trial.id,
            identity=trial.identity,
            task=trial.cell.task.name,
            target=self._bench.target.name,
            device=self._bench.environment.device,
            environment=self._environment,
            workload=workload_record(trial.cell),
            candidate=trial.record,
            verdict=verdict,
            reason=reason,
            sandboxed=self._bench.sandboxed and trial.manifest is not None,
            verification=verification,
            measurement=measurement,
            kernels=self._kernels(trial),
            cost=Cost(wall_s=seconds or {}),
            recorded_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        )
        with self._bench.ledger.stage("record"):
            self.store.add(result)
        self._observer.recorded(result)

    def _kernels(self, trial: Trial) -> tuple[CompiledKernel, ...]:
        """Of a CUDA candidate: compiled already, or it could not have run."""
        press = None
        if trial.manifest is not None:
            press = self._bench.presses.of(trial.manifest, trial.cell, PRESS_WAIT_S)
        return () if press is None else press.kernels


def workload_record(cell: Cell) -> WorkloadRecord:
    """The workload as results carry it."""
    w, task = cell.workload, cell.task
    return WorkloadRecord(
        key=w.key,
        batch=w.batch,
        heads=w.heads,
        kv_heads=w.kv_heads,
        seq_q=w.seq_q,
        seq_k=w.seq_k,
        dim=w.dim,
        dim_v=w.dim_v,
        dtype=w.dtype,
        scale=w.softmax_scale,
        parameters={name: float(value) for name, value in w.parameters},
        causal=task.causal,
        label=w.label,
        flops=task.flops(w),
        bytes=task.bytes(w),
    )
