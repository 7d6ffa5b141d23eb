"""Owns what the judge sees with its own eyes: how long calls take, what is left undone, whose work it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.bench import Bench
from harness.bursts import Bursts
from harness.entrants import Trial, slot_contents
from harness.experiment import Cell
from harness.measure.claims import ProfiledCall, claimed_operators, claimed_times, quickest
from harness.measure.judge import (
    CPU_SLACK_MS,
    EAGER_SLACK_MS,
    JudgesClock,
    contradicts,
    graph_slack_ms,
)
from harness.measure.late import LATE_MS, late_work_ms
from harness.measure.session import Contender, summary
from harness.measure.sight import Sight, crowded
from harness.records import KernelRecord, Summary
from harness.verify.dispatch import dispatched_operators, dispatched_to, own_kernels
from harness.verify.exam import Exam
from harness.worker.moves import draw, to_json

SECOND_LOOKS = 24  # of the judge's clock, before it contradicts a claim
QUIETER = "this machine's speed changed meanwhile; run it on a quieter one"
UNCAPTURED = (
    "no CUDA graph holds its calls, so launches from Python cannot be told from work; a call that never "
    "waits for the device can be captured"
)
QUICK = 2.0  # times the 10th percentile
PROFILED = 5  # calls on a CPU
CLAIMS, CALLS = 8, 3  # blocks, and calls in each, of a claim that is made anew


class Unsteady(Exception):
    """What was claimed and what was seen differ, and that convicts nobody: the times are worth nothing."""


@dataclass
class Seen:
    """What was seen of one candidate on one cell."""

    clock: JudgesClock
    bursts: Bursts
    undone: str = ""  # what was wrong with an output that was fetched right after a burst
    late_ms: float = 0.0  # busy for so long after it had said that its calls were done, where that convicts
    profiled: list[ProfiledCall] | None = None  # on a CPU


def told(claimed: Summary) -> str:
    """A claim, in words."""
    return f"{claimed.median_ms:.4f} ms a call, a tenth of them under {claimed.p10_ms:.4f}"


def _by_median(claimed: Summary) -> Summary:
    """The claim as if its quick calls were no quicker: what is reported of it is the median."""
    return claimed.model_copy(update={"p10_ms": claimed.median_ms})


class Looks:
    """Of one cell; whoever looks at a candidate has stopped the others."""

    def __init__(self, cell: Cell, exam: Exam, bench: Bench) -> None:
        self._cell, self._exam, self._bench = cell, exam, bench
        self._lot = random.Random(bench.fresh_seed())
        self._seen: dict[str, Seen] = {}

    def first(self, contender: Contender) -> None:
        """The first look of the judge's clock. Raises WorkerError, Rejected.

        On a CPU also what kernel records tell on a GPU: whether work goes on after a call has returned,
        and which operators did it.
        """
        worker, kernel, limit_s = contender.worker, contender.kernel, self._bench.policy.request_s
        contents = dict(slot_contents(self._bench.slots(self._cell), swap=False))
        bursts = Bursts(self._exam, worker, kernel, contents, self._lot, limit_s)
        clock = JudgesClock(bursts, len(contents), sight=self._sight_of(contender))
        seen = self._seen[contender.name] = Seen(clock, bursts)
        self._look(seen)
        if self._bench.kind == "cpu":
            late_ms = late_work_ms(worker, kernel, seen.clock, limit_s)
            seen.late_ms = late_ms if late_ms > LATE_MS else 0.0
            args = {"kernel": kernel, "calls": PROFILED}
            seen.profiled = claimed_operators(worker.ask("operators", args, limit_s=limit_s), PROFILED)

    def slope_ms(self, contender: Contender, claimed: Summary) -> float | None:
        """The judge's time of a call; None for who was not looked at. Raises WorkerError, Unsteady.

        It looks again until the claim stands whatever of the time was the request's own cost: one figure
        that came out low by chance clears nobody, one that came out high convicts nobody. Where it still
        contradicts, the claim was made at another time than the looks: it is made anew, between further
        looks, whose least time counts as well. If the new one alone stands, neither is to be believed; nor
        where the quick calls alone contradict, and the median, which is what would be reported, does not;
        nor where others keep the machine busy meanwhile: on such a machine nobody is convicted; nor, on a
        GPU, where calls that no graph can hold seem longer than they are said to be: nobody can tell work
        from launches then, unless it is far more than those could take.
        """
        seen = self._seen.get(contender.name)
        if seen is None:
            return None
        began, before = time.perf_counter(), self._sight_of(contender)()
        for _ in range(SECOND_LOOKS):
            if not self.contradicts(seen.clock.at_most_ms, claimed):
                break
            self._look(seen)
        if self.contradicts(seen.clock.slope_ms, claimed):
            anew = self._claim_anew(contender, seen)
            slope_ms = seen.clock.slope_ms
            if not self.contradicts(slope_ms, claimed):
                return slope_ms  # those looks were the ones that came out right
            reported = [_by_median(claimed), _by_median(anew)]
            claims = f"claimed {told(claimed)}, and later {told(anew)}"
            words = f"{claims}; the judge saw {slope_ms:.4f} ms from outside"
            if not all(self.contradicts(slope_ms, c) for c in (anew, *reported)):
                raise Unsteady(f"{words}: {QUIETER}")
            others = crowded((time.perf_counter() - began) * 1e3, before, self._sight_of(contender)())
            if others:
                raise Unsteady(f"{words}, while other programs kept {others:.1f} processors busy: {QUIETER}")
            launches = 0.0 if self._bench.kind == "cpu" or contender.captured else EAGER_SLACK_MS
            beyond = all(contradicts(c.median_ms, slope_ms, launches) for c in (claimed, anew))
            if launches and not beyond and not self.complaint(contender.name):
                raise Unsteady(f"{words}: {UNCAPTURED}")
        return seen.clock.slope_ms

    def _sight_of(self, contender: Contender) -> Callable[[], Sight]:
        """What is told of the processes that do the work, on a CPU."""
        return contender.worker.sight if self._bench.kind == "cpu" else Sight

    def _claim_anew(self, contender: Contender, seen: Seen) -> Summary:
        """Of calls that the worker times once more, between looks of the judge's clock."""
        samples: list[float] = []
        for _ in range(CLAIMS):
            self._look(seen)
            moves = [to_json(draw(self._exam.layout, self._lot)) for _ in range(CALLS)]
            args = {"kernel": contender.kernel, "iterations": CALLS, "start": 0, "moves": moves}
            told = contender.worker.ask("block", args, limit_s=self._bench.policy.request_s)
            samples += claimed_times(told, "samples_ms", CALLS)
        return summary(samples)

    def contradicts(self, seen_ms: float, claimed: Summary) -> bool:
        """Whether a claim is too short for what was seen.

        Doubted is the median; on a CPU, where other programs share the cores, no more than twice the quick
        calls: load makes most calls slow, those of a lie too. There the claim holds the same call from Python
        as the judge's time: no slack for a launch.
        """
        if self._bench.kind == "cpu":
            return contradicts(min(claimed.median_ms, QUICK * claimed.p10_ms), seen_ms, CPU_SLACK_MS)
        return contradicts(claimed.median_ms, seen_ms, graph_slack_ms(self._bench.slots(self._cell)))

    def complaint(self, name: str) -> str:
        """What was not done when it was said to be; "" where nothing is known."""
        seen = self._seen.get(name)
        if seen is None:
            return ""
        if seen.undone:
            return f"an output fetched as soon as its call was said to be done was wrong: {seen.undone}"
        if seen.late_ms:
            return f"went on for {seen.late_ms:.0f} ms after it had answered that its calls were done"
        return ""

    def library(self, name: str, trial: Trial, kernels: tuple[KernelRecord, ...]) -> str | None:
        """Whose work it is, where it is a library's."""
        manifest, backend = trial.manifest, trial.record.backend
        if manifest is None:
            return None
        seen = self._seen.get(name)
        if seen is not None and seen.profiled is not None:
            return dispatched_operators(*quickest(seen.profiled), backend)
        press = self._bench.presses.of(manifest, self._cell)
        compiled = [k.name for k in press.kernels] if press is not None else []
        return dispatched_to(kernels, backend, own_kernels(manifest.files), compiled)

    def _look(self, seen: Seen) -> None:
        seen.bursts.fill()
        seen.clock.look()
        check = seen.bursts.check()
        if not check.passed:
            seen.undone = check.note
