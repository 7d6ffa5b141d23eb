"""What the gate is worth on this machine: real measurements of a kernel against itself, and of a slower one.

    nice -n 2 python -m tests.gate_trial --out trial.json [--core 1] [--minutes 15]

References are measured first, then new sessions in other processes, as on another day. A comparison is that of
`attnbench gate`: the same sessions of `harness.measure`, the same rule, further looks where runs must agree.
The slower kernel does about ten per cent more of the same work: it computes some tiles twice; how many is
calibrated, and what it cost is in the results. Two things differ from a gate's run: the kernel, our own, is
verified once a day and runs without a sandbox; and one core is used, so that no call waits for a second one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import Bench
from harness.build.manifest import Manifest, read_candidate
from harness.entrants import Entrant, baseline_trial, build, candidate_trial, slot_contents
from harness.entrants import plan as plan_entrant
from harness.experiment import Cell, experiment_of
from harness.measure.session import Policy, Session
from harness.measure.statistics import Change
from harness.targets import find_target
from harness.verify.exam import Question
from harness.worker.moves import draw
from reports.gate.change import RULE, Look
from reports.gate.decision import Outcome, weigh
from reports.gate.saved import Case, Machine
from tasks import find
from tasks.spec import Workload

EXAMPLE = Path(__file__).parents[1] / "examples" / "candidates" / "numba_cpu"
TASK, ANCHOR = "mha_causal", "sdpa-flash"
WORKLOAD = Workload(TASK, 1, 2, 2, 512, 512, 64, 64, "fp32")
SLOWDOWN = 1.10  # in time
TILES = 16  # two heads, eight tiles of queries each; the first ones see most keys
TRIED = (1, 2, 3)  # tiles computed twice, while calibrating
SAMPLING = {"block_ms": 12.0, "flush_ms": 10.0, "max_iterations": 10, "min_rounds": 10, "max_rounds": 1000}
LOOP = "for work in prange(batch * heads * blocks):\n"
TWICE = (
    "for item in prange(batch * heads * blocks + extra):\n        work = item % (batch * heads * blocks)\n"
)
KERNEL = """
from flash import flash_attention

def attention(q, k, v, out, *, scale):
    flash_attention(q, k, v, out, scale=scale, causal=True, extra={extra})
"""
SAME = "kernel.py"


@dataclass
class Settings:
    """Of a trial."""

    out: Path
    core: int
    cap_s: float
    minutes: float
    comparisons: int
    slowdowns: int
    days: int
    references: int
    seed: int


@dataclass
class Trial:
    """One comparison: what each look said and what it came to."""

    kind: str
    day: int
    reference: int
    outcome: Outcome = Outcome.AGAIN
    looks: tuple[Look, ...] = ()
    look: Look | None = None
    runs: list[Case] = field(default_factory=list)

    def see(self, stored: Case, new: Case) -> None:
        self.runs.append(new)
        weighed = weigh(stored, self.runs, RULE)
        self.outcome, self.looks, self.look = weighed.outcome, weighed.looks, weighed.look


def bundle(folder: Path, extras: Sequence[int]) -> Manifest:
    """The example kernel, and slower ones that compute so many tiles twice."""
    source = (EXAMPLE / "flash.py").read_text()
    for old, new in (
        (LOOP, TWICE),
        ("_forward(q, k, v, out, scale, causal)", "_forward(q, k, v, out, scale, causal, extra)"),
        ("scale: float, causal: bool)", "scale: float, causal: bool, extra: int)"),
        ("np.float32(scale * LOG2_E), causal)", "np.float32(scale * LOG2_E), causal, extra)"),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    folder.mkdir()
    (folder / "flash.py").write_text(source)
    for name, extra in ((SAME, 0), *((slower(n), n) for n in extras)):
        (folder / name).write_text(KERNEL.format(extra=extra))
    (folder / "candidate.toml").write_text(f'task = "{TASK}"\nbackend = "numba"\nentry = "kernel.py"\n')
    return read_candidate(folder)


def slower(extra: int) -> str:
    return f"slower_{extra}.py"


class Day:
    """Fresh processes: the anchor and its duplicate in one, the kernels in another."""

    def __init__(self, manifest: Manifest, kernels: Sequence[str], core: int, seed: int) -> None:
        experiment = experiment_of(
            {"target": "cpu", "tasks": TASK, "workloads": "smoke", "baselines": ANCHOR}, "trial"
        )
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # workers inherit it; the judge may run where there is room
        self.bench = Bench(experiment, find_target("cpu"), sandbox=None)
        self.cell, self.lot = Cell(find(TASK), WORKLOAD), random.Random(seed)
        self.slots = self.bench.slots(self.cell)
        self.exam = self.bench.exam(
            self.cell.task, WORKLOAD, [Question("normal", seed), Question("normal", seed + 1)]
        )
        library = self.bench.library_worker()
        self.exam.admit(library, self.slots)
        self.anchor = build(baseline_trial(ANCHOR, self.cell, self.bench), self.bench)
        self.exam.prepare(library, ANCHOR)
        self.bench.load_baseline(ANCHOR, ANCHOR + "#2")
        self.exam.prepare(library, ANCHOR + "#2")
        self.trial = candidate_trial(manifest, self.cell, self.bench)
        worker = self.bench.seat(manifest, kernels[0]).worker
        self.exam.admit(worker, self.slots)
        self.workers = (library, worker)
        self._fill(swap=False)
        for kernel in kernels:
            self.bench.seat(manifest, kernel)
            self.exam.prepare(worker, kernel)
            self.exam.run(worker, kernel, 0, first=True)
            assert self.exam.mark(worker, kernel, 0, 0).passed, kernel
        os.sched_setaffinity(0, cores)
        self.machine = Machine.of(self.bench.environment)

    def close(self) -> None:
        self.bench.__exit__()

    def measure(self, kernels: Sequence[str], cap_s: float) -> dict[str, Case]:
        """One session of these kernels beside the anchor and its duplicate."""
        library, worker = self.workers
        twin = Entrant(self.anchor.trial, library, ANCHOR + "#2", [])
        contenders = [
            plan_entrant(self.anchor, self.bench, judged=False),
            plan_entrant(twin, self.bench, name=ANCHOR + "#2"),
            *(plan_entrant(Entrant(self.trial, worker, k, []), self.bench, name=k) for k in kernels),
        ]
        policy = Policy(half_width=0.002, time_cap_s=cap_s, **SAMPLING)
        session = Session(
            contenders, ANCHOR, policy, self.bench.telemetry, "cpu", self.slots,
            lambda: draw(self.exam.layout, self.lot),
        )  # fmt: skip
        for phase in (0, 1):
            self._fill(swap=bool(phase))
            session.sample(share=(phase + 1) / 2)
        noise = session.result(ANCHOR + "#2").ratio
        return {k: self._case(k, session, noise) for k in kernels}

    def _case(self, kernel: str, session: Session, noise: Any) -> Case:
        sampled = session.result(kernel)
        return Case(
            task=TASK, workload=WORKLOAD.key, kernel="kernel", kind="candidate", sha256=self.trial.record.sha256,
            anchor_sha256=self.anchor.trial.record.sha256, clock=sampled.clock,
            time_ms=sampled.device_time.median_ms, ratio=sampled.ratio, noise=noise, machine=self.machine,
        )  # fmt: skip

    def _fill(self, *, swap: bool) -> None:
        for worker in self.workers:
            self.exam.fill(worker, slot_contents(self.slots, swap=swap))


def calibrated(folder: Path, s: Settings) -> tuple[int, dict[int, float]]:
    """Tiles to compute twice for the slowdown wanted, and what those that were tried cost in time."""
    day = Day(bundle(folder, TRIED), (SAME, *map(slower, TRIED)), s.core, s.seed)
    try:
        cases = day.measure((SAME, *map(slower, TRIED)), 5 * s.cap_s)
    finally:
        day.close()
    own = cases[SAME].ratio.median
    cost = {n: own / cases[slower(n)].ratio.median for n in TRIED}
    slope, start = np.polyfit(TRIED, [cost[n] for n in TRIED], 1)
    return max(1, round((SLOWDOWN - start) / slope)), cost


def references_of(manifest: Manifest, s: Settings) -> list[Case]:
    """Stored sessions, thrice as long as new ones; a noisy one is measured again, the quietest is kept."""
    day, found = Day(manifest, (SAME,), s.core, s.seed + 1), list[Case]()
    try:
        while len(found) < s.references:
            tries: list[Case] = []
            while not tries or (len(tries) < RULE.most and _noisy(tries[-1])):
                tries.append(day.measure((SAME,), 3 * s.cap_s)[SAME])
            found.append(min(tries, key=lambda case: case.noise_floor))
    finally:
        day.close()
    return found


def _noisy(case: Case) -> bool:
    return RULE.noise_factor * case.noise_floor > RULE.least


def run(s: Settings) -> dict[str, Any]:
    """The whole trial; ends early when its minutes are over."""
    began, trials = time.monotonic(), list[Trial]()
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="attnbench-trial-") as folder:
        extra, cost = calibrated(Path(folder) / "calibration", s)
        print(f"slower: {extra} of {TILES} tiles twice; tried {cost}", flush=True)
        manifest = bundle(Path(folder) / "kernels", (extra,))
        stored = references_of(manifest, s)
        print(f"noise floors of the references: {[round(c.noise_floor, 4) for c in stored]}", flush=True)
        for n in range(s.days):
            day = Day(manifest, (SAME, slower(extra)), s.core, s.seed + 2 + n)
            try:
                for index in range(n * s.comparisons // s.days, (n + 1) * s.comparisons // s.days):
                    if time.monotonic() - began > 60 * s.minutes:
                        break
                    trials += _compared(day, n, index, stored, extra, s)
            finally:
                day.close()
    return {
        "machine": day.machine.model_dump(mode="json"),
        "settings": {**asdict(s), "out": str(s.out.name)},
        "rule": asdict(RULE),
        "nice": os.nice(0),
        "load": {"before": load_before, "after": os.getloadavg()},
        "seconds": round(time.monotonic() - began),
        "slower": {"tiles_twice": extra, "of": TILES, "calibration": cost},
        "references": [_told(case) for case in stored],
        "summary": summary(trials),
        "trials": [_figures(t) for t in trials],
    }


def _compared(day: Day, n: int, index: int, stored: Sequence[Case], extra: int, s: Settings) -> list[Trial]:
    """One comparison of the kernel with itself, and where its turn is one of the slower kernel.

    Who else is in a session may matter, so each has one kernel, as the references have.
    """
    trials = {SAME: Trial("same", n, index % len(stored))}
    share = s.slowdowns / s.comparisons
    if int((index + 1) * share) > int(index * share):
        trials[slower(extra)] = Trial("slower", n, index % len(stored))
    for kernel, trial in trials.items():
        while trial.outcome is Outcome.AGAIN:
            trial.see(stored[trial.reference], day.measure((kernel,), s.cap_s)[kernel])
    said = (
        f"{t.kind}:{t.outcome}/{len(t.looks)} {t.look.speed.median:.3f} in {t.look.band:.3f}"
        for t in trials.values()
        if t.look
    )
    print(f"{n}.{index} {', '.join(said)}", flush=True)
    return list(trials.values())


def _figures(trial: Trial) -> dict[str, Any]:
    found = asdict(trial)
    return {**found, "runs": [_told(run) for run in trial.runs]}


def _told(case: Case) -> dict[str, float]:
    return {
        "ratio": case.ratio.median,
        "low": case.ratio.low,
        "high": case.ratio.high,
        "noise": case.noise_floor,
    }


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """What the claims are about."""
    found: dict[str, Any] = {}
    for kind in ("same", "slower"):
        of = [t for t in trials if t.kind == kind]
        if not of:
            continue
        looks = [one for t in of for one in t.looks]
        logs = np.log([t.looks[0].speed.median for t in of])
        found[kind] = {
            "comparisons": len(of),
            "outcomes": dict(Counter(str(t.outcome) for t in of)),
            "looks": len(looks),
            "first_looks_slower": sum(t.looks[0].change is Change.SLOWER for t in of),
            "change_median": float(np.expm1(np.median(logs))),
            "change_sd": float(logs.std()),
            "noise_floor_quantiles_10_50_90": _quantiles([one.noise_floor for one in looks]),
            "band_quantiles_10_50_90": _quantiles([one.band for one in looks]),
            "interval_half_width_quantiles_10_50_90": _quantiles([one.speed.half_width for one in looks]),
        }
    return found


def _quantiles(values: Sequence[float]) -> list[float]:
    return [round(float(x), 4) for x in np.quantile(values, (0.1, 0.5, 0.9))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one that is used")
    parser.add_argument("--cap-s", type=float, default=2.5, help="sampling time of a session")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--slowdowns", type=int, default=100)
    parser.add_argument("--days", type=int, default=4, help="how often all processes are new")
    parser.add_argument("--references", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    settings = Settings(**vars(parser.parse_args()))
    found = run(settings)
    settings.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"seconds": found["seconds"], **found["summary"]}, indent=1))


if __name__ == "__main__":
    main()
