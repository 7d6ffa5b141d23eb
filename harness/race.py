"""Owns the clock part of a cell: choose the anchor, sample everyone, doubt what was claimed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baselines import BASELINES
from harness.bench import Bench
from harness.entrants import Entrant, baseline_trial, build, plan, slot_contents
from harness.experiment import Cell
from harness.looks import Looks, Unsteady, told
from harness.measure.roofline import Roofline
from harness.measure.session import Contender, ContenderFailed, Session, latency
from harness.records import Measurement, Ratio, Summary, Verification
from harness.store import Store
from harness.verdicts import MEASURED_VERDICTS, Verdict
from harness.verify.acceptance import require
from harness.verify.exam import Exam, Rejected, rejection_of
from harness.worker.moves import Move, draw
from harness.worker.protocol import WorkerError

# Slots of a candidate that are marked after each phase. One that computes several slots in one call is right
# on some of them: on a CPU all are marked, on a GPU, where a mark can take 0.2 s, two.
MARKED = {"cpu": 4, "cuda": 2}
DUPLICATE = "#2"  # the anchor once more, loaded and captured on its own


@dataclass(frozen=True)
class Outcome:
    """What became of an entrant; a measurement is kept wherever one was taken."""

    verdict: Verdict
    reason: str
    verification: Verification | None
    measurement: Measurement | None = None

    @classmethod
    def of(cls, rejected: Rejected) -> Outcome:
        return cls(rejected.verdict, rejected.reason, rejected.verification)


class Race:
    """One cell's session, until every entrant has an outcome."""

    def __init__(self, cell: Cell, exam: Exam, entrants: Sequence[Entrant], bench: Bench) -> None:
        self.cell, self.exam, self.entrants, self.bench = cell, exam, entrants, bench
        self._lot = random.Random(bench.fresh_seed())
        self._roofline = Roofline.of(cell.task, cell.workload, bench.target)
        self._looks = Looks(cell, exam, bench)
        self._latencies: dict[str, Summary] = {}
        self.unsteady: dict[str, str] = {}  # contender -> how its times contradict each other

    def run(self, baselines: Sequence[str], store: Store) -> Iterator[tuple[Entrant, Outcome]]:
        """Outcomes of the entrants; a contender that fails leaves, and the rest start anew.

        One whose worker died with another's fault has no outcome: the caller tries it again. So does one
        whose times could not be believed; `unsteady` says why.
        """
        standing: list[Entrant] = []
        for entrant in self.entrants:
            if not entrant.is_candidate and not entrant.worker.alive:
                return  # one baseline took the others along: tried again with a new library worker
            try:
                judged = entrant.is_candidate or self.bench.experiment.anchor is not None
                entrant.contender = plan(entrant, self.bench, judged=judged)
                self._look(entrant.contender, entrant.is_candidate)
                standing.append(entrant)
            except Rejected as rejected:
                yield entrant, Outcome.of(rejected)
            except WorkerError as error:
                self.bench.after_failure(entrant.worker, error)
                yield (
                    entrant,
                    Outcome.of(rejection_of(error, entrant.verification, trusted=not entrant.is_candidate)),
                )
        while standing:
            anchor = self._anchor(standing, baselines, store)
            if anchor is None:
                for entrant in standing:
                    reason = "no human baseline could run this, so there is nothing to compare with"
                    yield entrant, Outcome(Verdict.INFRA, reason, entrant.verification)
                return
            try:
                session = self._sample(standing, anchor)
            except ContenderFailed as failed:
                gone = [e for e in standing if failed.name in (e.name, e.name + DUPLICATE)]
                for entrant in gone:
                    self.bench.after_failure(entrant.worker, failed.error)
                    yield (
                        entrant,
                        Outcome.of(
                            rejection_of(failed.error, entrant.verification, trusted=not entrant.is_candidate)
                        ),
                    )
                if not gone or not anchor.worker.alive:
                    return  # the rest has nobody to race against: tried again
                standing = [e for e in standing if e not in gone and e.worker.alive]
                continue
            for entrant in standing:
                try:
                    outcome = self._outcome(entrant, session)
                except WorkerError as error:  # it died under the judge's second look
                    self.bench.after_failure(entrant.worker, error)
                    outcome = Outcome.of(rejection_of(error, entrant.verification))
                except Rejected as rejected:
                    outcome = Outcome.of(rejected)
                except Unsteady as unsteady:
                    self.unsteady[entrant.name] = str(unsteady)
                    continue
                yield entrant, outcome
            return

    def _look(self, contender: Contender, is_candidate: bool) -> None:
        """Call latency, and for candidates what the judge sees with its own eyes."""
        with self.bench.ledger.stage("timing"):
            self._latencies[contender.name] = latency(contender, self.bench.policy)
            if is_candidate:
                self._hush(contender)
                self._looks.first(contender)

    def _moves(self) -> tuple[Move, ...]:
        return draw(self.exam.layout, self._lot)

    def _hush(self, active: Contender) -> None:
        """Nothing of the other candidates runs while the judge looks at one."""
        for entrant in self.entrants:
            if entrant.worker is not active.worker and not entrant.worker.trusted:
                entrant.worker.stop()

    def _anchor(self, standing: list[Entrant], baselines: Sequence[str], store: Store) -> Entrant | None:
        """The baseline that the experiment names, else the fastest; of this race, or recorded."""
        named = self.bench.experiment.anchor
        if named is not None:
            baselines = [named]
        here = [e for e in standing if not e.is_candidate and named in (None, e.name)]
        if here:
            return min(here, key=lambda e: e.contender.estimate_ms if e.contender else float("inf"))
        trials = [baseline_trial(name, self.cell, self.bench) for name in baselines]
        recorded = [
            (m.device_time.median_ms, t)
            for t in trials
            if t.id in store and (m := store.results[t.id].measurement) is not None
        ]
        for _, trial in sorted(recorded, key=lambda pair: pair[0]):
            try:
                entrant = build(trial, self.bench)
                self.exam.prepare(entrant.worker, entrant.kernel)
                self.exam.fill(entrant.worker, slot_contents(self.bench.slots(self.cell), swap=False))
                entrant.contender = plan(entrant, self.bench, judged=False)
                return entrant
            except (Rejected, WorkerError):
                continue
        return None

    def _sample(self, standing: list[Entrant], anchor: Entrant) -> Session:
        assert anchor.contender is not None
        contenders = [e.contender for e in standing if e.contender is not None]
        if anchor not in standing:
            contenders.append(anchor.contender)
        contenders.append(self._duplicate(anchor))
        slots = self.bench.slots(self.cell)
        session = Session(
            contenders,
            anchor.name,
            self.bench.policy,
            self.bench.telemetry,
            self.bench.kind,
            slots,
            self._moves,
        )
        try:
            for phase in (0, 1):
                self._refill(contenders, swap=bool(phase))
                with self.bench.ledger.stage("timing"):
                    session.sample(share=(phase + 1) / 2)
                with self.bench.ledger.stage("verify"):
                    self._mark_timed(standing, session, phase)
        except ContenderFailed:
            session.abandon()
            raise
        return session

    def _duplicate(self, anchor: Entrant) -> Contender:
        name = anchor.name + DUPLICATE
        try:
            worker = self.bench.load_baseline(anchor.name, name)
            twin = Entrant(anchor.trial, worker, name, [])
            self.exam.prepare(worker, name)
            return plan(twin, self.bench, name=name)
        except (WorkerError, Rejected) as error:
            cause = error if isinstance(error, WorkerError) else error.__cause__
            failed = cause if isinstance(cause, WorkerError) else WorkerError(str(error))
            raise ContenderFailed(name, failed) from error

    def _refill(self, contenders: Sequence[Contender], *, swap: bool) -> None:
        """New contents at the same addresses, the same contents at new addresses."""
        pairs = slot_contents(self.bench.slots(self.cell), swap=swap)
        with self.bench.ledger.stage("transfer"):
            for contender in {id(c.worker): c for c in contenders}.values():
                try:
                    self.exam.fill(contender.worker, pairs)
                except WorkerError as error:
                    raise ContenderFailed(contender.name, error) from error

    def _mark_timed(self, standing: Sequence[Entrant], session: Session, phase: int) -> None:
        """Outputs of timed slots chosen by lot, checked like any other.

        The phase before timed them with other contents: an answer kept by address is wrong. Their inputs
        changed before they were timed: an answer kept by what they held is wrong.
        """
        contents = dict(slot_contents(session.slots, swap=bool(phase)))
        for entrant in standing:
            visited = sorted(session.revisited[entrant.name])
            if not visited or (not entrant.is_candidate and BASELINES[entrant.name].slow):
                continue
            many = MARKED[self.bench.kind] if entrant.is_candidate else 1
            chosen = random.Random(self.bench.fresh_seed()).sample(visited, min(many, len(visited)))
            try:
                for slot in chosen:
                    content = self.exam.moved(contents[slot], session.moves(entrant.name, slot))
                    check = self.exam.mark(entrant.worker, entrant.kernel, slot, content, timed=True)
                    entrant.checks.append(check)
                if entrant.is_candidate and phase == 1:
                    entrant.inputs_untouched = self.exam.inputs_untouched(
                        entrant.worker, entrant.kernel, slot, content
                    )
            except Rejected as rejected:
                entrant.caught = rejected
            except WorkerError as error:
                raise ContenderFailed(entrant.name, error) from error

    def _outcome(self, entrant: Entrant, session: Session) -> Outcome:
        """The measurement, unless something about it cannot be true."""
        assert entrant.contender is not None
        sampled = session.result(entrant.name)
        median = sampled.device_time.median_ms
        roofline = self._roofline
        slope = self._slope(entrant, sampled.device_time)
        measurement = Measurement(
            clock=sampled.clock,
            captured=entrant.contender.captured,
            device_time=sampled.device_time,
            call_latency=self._latencies.get(entrant.name),
            graph_time=sampled.graph_time,
            ratio=sampled.ratio,
            noise=self._noise(session),
            blocks=sampled.blocks,
            kernels=sampled.kernels,
            judge_slope_ms=slope,
            floor_ms=roofline.floor_ms,
            tflops=roofline.tflops(median),
            percent_of_peak=roofline.percent_of_peak(median),
            gbytes_per_s=roofline.gbytes_per_s(median),
            percent_of_bandwidth=roofline.percent_of_bandwidth(median),
        )
        rejected = self._doubt(entrant, measurement)
        if rejected is None:
            return Outcome(Verdict.OK, "", entrant.verification, measurement)
        kept = measurement if rejected.verdict in MEASURED_VERDICTS else None
        return Outcome(rejected.verdict, rejected.reason, rejected.verification, kept)

    def _slope(self, entrant: Entrant, claimed: Summary) -> float | None:
        """The judge's time of a call."""
        if entrant.contender is None or not entrant.is_candidate:
            return None
        with self.bench.ledger.stage("timing"):
            self._hush(entrant.contender)
            return self._looks.slope_ms(entrant.contender, claimed)

    def _noise(self, session: Session) -> Ratio:
        return session.result(session.anchor.name + DUPLICATE).ratio

    def _doubt(self, entrant: Entrant, measured: Measurement) -> Rejected | None:
        median = measured.device_time.median_ms
        verification = entrant.verification
        if entrant.caught is not None:
            return Rejected(entrant.caught.verdict, f"while timed: {entrant.caught.reason}", verification)
        for index, check in enumerate(entrant.checks):
            try:
                require(check, entrant.checks[:index])
            except Rejected as rejected:
                if check.timed and entrant.is_candidate:
                    return _caught(verification, "stale_output", f"wrong while timed: {rejected.reason}")
                return rejected
        if entrant.inputs_untouched is False:
            return _caught(verification, "mutated_inputs", "changed its inputs while timed")
        if self._roofline.impossible(median):
            floor = f"the floor of {measured.floor_ms:.4f} ms for {self.bench.target.title}"
            reason = f"{median:.4f} ms is faster than can be: {floor}"
            return Rejected(Verdict.IMPOSSIBLE, reason, verification)
        slope = measured.judge_slope_ms
        claimed = measured.device_time
        if slope is not None and self._looks.contradicts(slope, claimed):
            reason = f"claimed {told(claimed)}; the judge saw {slope:.4f} ms from outside"
            return _caught(verification, "judge_clock", reason)
        if complaint := self._looks.complaint(entrant.name):
            return _caught(verification, "late_work", complaint)
        library = self._looks.library(entrant.name, entrant.trial, measured.kernels)
        if library:
            return Rejected(Verdict.LIBRARY_DISPATCH, f"the work is done by {library}", verification)
        return None


def _caught(verification: Verification, detector: str, reason: str) -> Rejected:
    noted = verification.model_copy(update={"detectors": (*verification.detectors, detector)})
    return Rejected(Verdict.INTEGRITY, reason, noted)
