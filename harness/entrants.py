"""Owns a trial on its way through one cell: admitted, built, verified, planned, ready to be timed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from baselines import BASELINES
from harness.bench import Bench
from harness.build.manifest import Manifest
from harness.environment import harness_version
from harness.experiment import Cell
from harness.measure.claims import claimed_times
from harness.measure.session import Contender
from harness.records import CandidateRecord, Check, Identity, Verification, content_hash
from harness.story import Ending
from harness.verdicts import Verdict
from harness.verify.acceptance import accept, require, require_repeat
from harness.verify.exam import Exam, Question, Rejected, rejection_of
from harness.verify.inputs import recipes_for
from harness.worker.process import Worker
from harness.worker.protocol import WorkerError
from tasks.grids import hidden_for
from tasks.spec import Workload

# Triton's interpreter runs a program instance at a time in Python: small shapes, the telling recipes.
INTERPRETER_SCORES = 100_000  # batch x heads x seq_q x seq_k at most
INTERPRETED = "numerics proven in Triton's interpreter, which says nothing of speed"
INTERPRETER_RECIPES = ("normal", "large_logits", "needle")


@dataclass(frozen=True)
class Trial:
    """One kernel to be tried on one cell."""

    cell: Cell
    record: CandidateRecord
    identity: Identity
    manifest: Manifest | None  # None: a human baseline

    @property
    def id(self) -> str:
        return self.identity.digest


@dataclass
class Entrant:
    """A trial that is loaded in a worker and has passed everything before the clock."""

    trial: Trial
    worker: Worker
    kernel: str
    checks: list[Check]
    interpreted: bool = False
    repeats_identical: bool | None = None
    inputs_untouched: bool | None = None
    contender: Contender | None = None
    caught: Rejected | None = None  # at something that no check holds, while it was timed
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.trial.record.name

    @property
    def is_candidate(self) -> bool:
        return self.trial.manifest is not None

    @property
    def verification(self) -> Verification:
        return Verification(
            checks=tuple(self.checks),
            repeats_identical=self.repeats_identical,
            inputs_untouched=self.inputs_untouched,
        )


def baseline_trial(name: str, cell: Cell, bench: Bench) -> Trial:
    """The trial of a human baseline; its content is its library and version."""
    baseline = BASELINES[name]
    library = baseline.library()
    family = f"{library.name} {library.version or ''}".strip()
    record = CandidateRecord(
        sha256=content_hash({"baseline": name, "library": family}),
        name=name,
        kind="baseline",
        method="baseline",
        backend=library.name,
        family=family,
    )
    return Trial(cell, record, _identity(record, cell, bench), None)


def candidate_trial(manifest: Manifest, cell: Cell, bench: Bench) -> Trial:
    """The trial of a candidate, wherever it comes from."""
    origin = manifest.origin
    record = CandidateRecord(
        sha256=manifest.sha256,
        name=manifest.name,
        kind="candidate",
        method=origin.method,
        backend=manifest.backend,
        model=origin.model,
        trial=origin.trial,
        sample=origin.sample,
        files=manifest.hashes,
    )
    return Trial(cell, record, _identity(record, cell, bench), manifest)


def ended_trial(ended: Ending, name: str, cell: Cell, bench: Bench) -> Trial:
    """The trial of an attempt that made no kernel fit to be measured; its last one names it, if any."""
    a = ended.assignment
    record = CandidateRecord(
        sha256=ended.candidate or content_hash({"trial": ended.trial}),
        name=name,
        kind="candidate",
        method=a.method,
        backend=a.backend,
        model=a.model,
        trial=ended.trial,
        sample=a.sample,
        files=ended.files,
    )
    return Trial(cell, record, _identity(record, cell, bench), None)


def _identity(record: CandidateRecord, cell: Cell, bench: Bench) -> Identity:
    return Identity(
        task=_sha(cell.task.source.encode()),
        workload=cell.workload.key,
        candidate=record.sha256,
        target=bench.target.name,
        harness=harness_version(),
        sample=record.sample,
        trial=record.trial,
    )


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def build(trial: Trial, bench: Bench) -> Entrant:
    """Load the kernel in a worker; raises Rejected."""
    try:
        if trial.manifest is None:
            worker = bench.load_baseline(trial.record.name, trial.record.name)
            return Entrant(trial, worker, trial.record.name, [])
        entry = trial.manifest.entry(trial.cell.task.name)
        seat = bench.seat(trial.manifest, entry)
        return Entrant(trial, seat.worker, entry, [], interpreted=seat.interpreted)
    except WorkerError as error:
        raise rejection_of(error, trusted=trial.manifest is None) from error


class Acceptance:
    """Remembers, for a group, what each candidate's first look gave in each configuration.

    `seeds` draws the seeds of its inputs; by default they are fresh.
    """

    def __init__(self, bench: Bench, seeds: Callable[[], int] | None = None) -> None:
        self._bench = bench
        self._seed = seeds or bench.fresh_seed
        # A candidate that hung costs its whole time limit: it is not asked again for that task.
        self._hung: dict[tuple[str, str], Rejected] = {}
        self._known: dict[tuple[str, str, tuple[Workload, ...]], tuple[Check, ...] | Rejected] = {}

    def admit(self, entrant: Entrant) -> None:
        """Add the passed checks on hidden shapes and adversarial inputs; raises Rejected."""
        cell = entrant.trial.cell
        shapes = hidden_for(cell.task, cell.workload)
        if entrant.interpreted:
            shapes = tuple(s for s in shapes if s.batch * s.heads * s.seq_q * s.seq_k <= INTERPRETER_SCORES)
        sha256 = entrant.trial.record.sha256
        if hung := self._hung.get((sha256, cell.task.name)):
            raise hung
        key = (sha256, cell.task.name, shapes)
        if key not in self._known:
            try:
                self._known[key] = self._examine(entrant, shapes)
            except Rejected as rejected:
                self._known[key] = rejected
                if rejected.verdict is Verdict.TIMEOUT:
                    self._hung[sha256, cell.task.name] = rejected
        known = self._known[key]
        if isinstance(known, Rejected):
            raise known
        entrant.checks.extend(known)

    def _examine(self, entrant: Entrant, shapes: tuple[Workload, ...]) -> tuple[Check, ...]:
        bench, task = self._bench, entrant.trial.cell.task
        asked = []
        for shape in shapes:
            recipes = recipes_for(task, shape)
            if entrant.interpreted:
                recipes = tuple(r for r in recipes if r in INTERPRETER_RECIPES)
            asked.append((shape, [Question(r, self._seed()) for r in recipes]))

        def exam(workload: Workload, questions: object) -> Exam:
            return bench.exam(task, workload, questions)  # type: ignore[arg-type]

        try:
            with bench.ledger.stage("verify"):
                return accept(entrant.worker, entrant.kernel, asked, exam)
        except Rejected as rejected:
            if isinstance(rejected.__cause__, WorkerError):
                bench.after_failure(entrant.worker, rejected.__cause__)
            raise


def verify(entrant: Entrant, exam: Exam, bench: Bench) -> None:
    """Everything before the clock on the cell's own shape; raises Rejected.

    The exam's last content is adversarial, the others are what will be timed.
    """
    begin = time.monotonic()
    try:
        with bench.ledger.stage("verify"):
            _sit(entrant, exam, bench)
    except WorkerError as error:
        bench.after_failure(entrant.worker, error)
        seen = entrant.verification if entrant.checks else None
        raise rejection_of(error, seen, trusted=not entrant.is_candidate) from error
    finally:
        entrant.seconds["verify"] = round(time.monotonic() - begin, 3)


def _sit(entrant: Entrant, exam: Exam, bench: Bench) -> None:
    worker, kernel = entrant.worker, entrant.kernel
    slots = bench.slots(entrant.trial.cell)
    adversarial = len(exam.contents) - 1
    if entrant.is_candidate:
        exam.admit(worker, slots)
    exam.fill(worker, [(0, adversarial)])
    with bench.ledger.stage("compile and plan"):
        exam.prepare(worker, kernel)
        exam.run(worker, kernel, 0, first=True)
    _mark(entrant, exam, adversarial)
    exam.fill(worker, slot_contents(slots, swap=False))
    exam.run(worker, kernel, 0)
    _mark(entrant, exam, 0)
    if entrant.is_candidate:
        require_repeat(exam, worker, kernel, 0, entrant.checks)
        entrant.repeats_identical = True


def _mark(entrant: Entrant, exam: Exam, content: int) -> None:
    check = exam.mark(entrant.worker, entrant.kernel, 0, content)
    require(check, entrant.checks)
    entrant.checks.append(check)


def slot_contents(slots: int, *, swap: bool) -> list[tuple[int, int]]:
    """Which of the two timed contents lies in which slot; swapped in the second phase."""
    return [(slot, (slot + swap) % 2) for slot in range(slots)]


def plan(entrant: Entrant, bench: Bench, *, name: str | None = None, judged: bool = True) -> Contender:
    """Warm up and capture; raises Rejected.

    Later time limits follow from the estimate, so it is no longer than the judge waited for it.
    """
    begin = time.monotonic()
    try:
        with bench.ledger.stage("compile and plan"):
            limit = bench.limits.first(entrant.worker)
            told = entrant.worker.ask("plan", {"kernel": entrant.kernel}, limit_s=limit)
        waited_ms = (time.monotonic() - begin) * 1e3
        (estimate_ms,) = claimed_times({"estimate": [told.get("estimate_ms")]}, "estimate", 1)
    except WorkerError as error:
        bench.after_failure(entrant.worker, error)
        raise rejection_of(error, entrant.verification, trusted=not entrant.is_candidate) from error
    return Contender(
        name=name or entrant.name,
        worker=entrant.worker,
        kernel=entrant.kernel,
        estimate_ms=max(1e-4, min(estimate_ms, waited_ms)),
        captured=told.get("captured") is True,
        judged=judged,
        slots=1 if not entrant.is_candidate and BASELINES[entrant.name].slow else None,
    )
