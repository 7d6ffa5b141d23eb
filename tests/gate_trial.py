"""What the gate is worth on this machine: a kernel beside itself, and a slower one beside it, measured.

    nice -n 2 python -m tests.gate_trial --out trial.json [--core 1] [--minutes 30]

A comparison is that of `attnbench gate` where a kernel has changed: one session has the anchor, its duplicate,
the kernel as it was and as it is, each of the two in a process of its own; the same sampling code, the same rule,
further sessions in other processes where runs must agree. What is not slower differs in a remark only. The slower
one does about ten per cent more of the same work: it computes some tiles twice; how many is calibrated, and
what it cost is in the results. It has sessions of its own, with the kernel as it was: who else is in a session
may matter. Every `days`-th part of the comparisons has new processes.

Two things differ from a gate's run: the kernels, our own, are verified once a day and run without a sandbox; and
one core is used, so that no call waits for a second one. The file is written after every comparison.
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
from harness.entrants import Entrant, Trial, baseline_trial, build, candidate_trial, slot_contents
from harness.entrants import plan as plan_entrant
from harness.experiment import Cell, experiment_of
from harness.measure.session import Policy, Session
from harness.measure.statistics import Change
from harness.targets import find_target
from harness.verify.exam import Question
from harness.worker.moves import draw
from harness.worker.process import Worker
from reports.gate.beside import speed_over
from reports.gate.change import RULE, Look
from reports.gate.decision import Outcome, weigh
from reports.gate.saved import Case, Machine, OldSelf
from tasks import find
from tasks.spec import Workload

EXAMPLE = Path(__file__).parents[1] / "examples" / "candidates" / "numba_cpu"
TASK, ANCHOR = "mha_causal", "sdpa-flash"
WORKLOAD = Workload(TASK, 1, 2, 2, 512, 512, 64, 64, "fp32")
SLOWDOWN = 1.10  # in time
TILES = 16  # two heads, eight tiles of queries each; the first ones see most keys
TRIED = (1, 2, 3)  # tiles computed twice, while calibrating
PLACES = 2  # processes of each kernel: a further session of a comparison is in others than the one before
SAMPLING = {
    "block_ms": 12.0, "flush_ms": 0.3, "min_iterations": 2, "max_iterations": 40, "min_rounds": 10,
    "max_rounds": 1000, "cold": False,
}  # fmt: skip
LOOP = "for work in prange(batch * heads * blocks):\n"
TWICE = (
    "for item in prange(batch * heads * blocks + extra):\n        work = item % (batch * heads * blocks)\n"
)
KERNEL = """
from flash import flash_attention

def attention(q, k, v, out, *, scale):
    flash_attention(q, k, v, out, scale=scale, causal=True, extra={extra})
# {remark}
"""
OLD, SAME, SLOWER = "old", "same", "slower"


@dataclass
class Settings:
    """Of a trial."""

    out: Path
    core: int
    cap_s: float
    half_width: float
    minutes: float
    comparisons: int
    slowdowns: int
    days: int
    tiles: int
    seed: int


@dataclass
class Comparison:
    """What each look said, and what they came to."""

    kind: str
    day: int
    outcome: Outcome = Outcome.AGAIN
    looks: tuple[Look, ...] = ()
    look: Look | None = None
    runs: list[Case] = field(default_factory=list)

    def see(self, stored: Case, new: Case) -> None:
        self.runs.append(new)
        weighed = weigh(stored, self.runs, RULE)
        self.outcome, self.looks, self.look = weighed.outcome, weighed.looks, weighed.look


def kernel(folder: Path, extra: int = 0, remark: str = "as it was") -> Manifest:
    """The example kernel, or one that computes so many tiles twice."""
    source = (EXAMPLE / "flash.py").read_text()
    for old, new in (
        (LOOP, TWICE),
        ("_forward(q, k, v, out, scale, causal)", "_forward(q, k, v, out, scale, causal, extra)"),
        ("scale: float, causal: bool)", "scale: float, causal: bool, extra: int)"),
        ("np.float32(scale * LOG2_E), causal)", "np.float32(scale * LOG2_E), causal, extra)"),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    folder.mkdir(parents=True)
    (folder / "flash.py").write_text(source)
    (folder / "kernel.py").write_text(KERNEL.format(extra=extra, remark=remark))
    (folder / "candidate.toml").write_text(f'task = "{TASK}"\nbackend = "numba"\nentry = "kernel.py"\n')
    return read_candidate(folder)


class Day:
    """Fresh processes: the anchor and its duplicate in one, each kernel in one of its own."""

    def __init__(self, kernels: dict[str, Manifest], core: int, seed: int) -> None:
        experiment = experiment_of(
            {"target": "cpu", "tasks": TASK, "workloads": "smoke", "baselines": ANCHOR}, "trial"
        )
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # workers inherit it; the judge may run where there is room
        self.core, self.manifests = core, kernels
        self.bench = Bench(experiment, find_target("cpu"), sandbox=None)
        self.cell, self.lot = Cell(find(TASK), WORKLOAD), random.Random(seed)
        self.slots = self.bench.slots(self.cell)
        self.exam = self.bench.exam(
            self.cell.task, WORKLOAD, [Question("normal", seed), Question("normal", seed + 1)]
        )
        self.library = self.bench.library_worker()
        self.exam.admit(self.library, self.slots)
        self.anchor = build(baseline_trial(ANCHOR, self.cell, self.bench), self.bench)
        self.exam.prepare(self.library, ANCHOR)
        self.bench.load_baseline(ANCHOR, ANCHOR + "#2")
        self.exam.prepare(self.library, ANCHOR + "#2")
        self._fill([self.library], swap=False)
        self.kernels: dict[str, tuple[Trial, Worker]] = {}
        os.sched_setaffinity(0, cores)
        self.machine = Machine.of(self.bench.environment)

    def _seat(self, name: str) -> None:
        """Started, verified and stopped, when it is needed first."""
        if name in self.kernels:
            return
        cores, manifest = os.sched_getaffinity(0), self.manifests[name]
        os.sched_setaffinity(0, {self.core})
        worker = self.bench.seat(manifest, "kernel.py").worker
        os.sched_setaffinity(0, cores)
        self.exam.admit(worker, self.slots)
        self._fill([worker], swap=False)
        self.exam.prepare(worker, "kernel.py")
        self.exam.run(worker, "kernel.py", 0, first=True)
        assert self.exam.mark(worker, "kernel.py", 0, 0).passed, name
        worker.stop()
        self.kernels[name] = candidate_trial(manifest, self.cell, self.bench), worker

    def close(self) -> None:
        self.bench.__exit__()

    def measure(self, names: Sequence[str], cap_s: float, half_width: float) -> Session:
        """One session of these kernels beside the anchor and its duplicate."""
        twin = Entrant(self.anchor.trial, self.library, ANCHOR + "#2", [])
        contenders = [
            plan_entrant(self.anchor, self.bench, judged=False),
            plan_entrant(twin, self.bench, name=ANCHOR + "#2"),
        ]
        for name in names:
            self._seat(name)
        for name in names:
            trial, worker = self.kernels[name]
            contenders.append(plan_entrant(Entrant(trial, worker, "kernel.py", []), self.bench, name=name))
            worker.stop()
        policy = Policy(half_width=half_width, time_cap_s=cap_s, **SAMPLING)  # type: ignore[arg-type]
        session = Session(
            contenders, ANCHOR, policy, self.bench.telemetry, "cpu", self.slots,
            lambda: draw(self.exam.layout, self.lot),
        )  # fmt: skip
        for phase in (0, 1):
            self._fill([self.library, *(self.kernels[name][1] for name in names)], swap=bool(phase))
            session.sample(share=(phase + 1) / 2)
        return session

    def compared(self, old: str, new: str, s: Settings) -> tuple[Case, Case]:
        """What is stored of the old kernel, and the new one with it beside."""
        session = self.measure((old, new), s.cap_s, s.half_width)
        before, now = session.result(old), session.result(new)
        stored = self._case(old, session)
        beside = OldSelf(
            sha256=stored.sha256,
            time_ms=stored.time_ms,
            speed=speed_over(now, before, old),
            anchored=stored.ratio,
        )
        return stored, self._case(new, session).model_copy(update={"old": beside})

    def _case(self, name: str, session: Session) -> Case:
        sampled, (trial, _) = session.result(name), self.kernels[name]
        return Case(
            task=TASK, workload=WORKLOAD.key, kernel="kernel", kind="candidate", sha256=trial.record.sha256,
            anchor_sha256=self.anchor.trial.record.sha256, clock=sampled.clock,
            time_ms=sampled.device_time.median_ms, ratio=sampled.ratio,
            noise=session.result(ANCHOR + "#2").ratio, machine=self.machine,
        )  # fmt: skip

    def _fill(self, workers: Sequence[Worker], *, swap: bool) -> None:
        for worker in workers:
            self.exam.fill(worker, slot_contents(self.slots, swap=swap))


def calibrated(folder: Path, s: Settings) -> tuple[int, dict[int, float]]:
    """Tiles to compute twice for the slowdown wanted, and what those that were tried cost in time."""
    names = {n: str(n) for n in (0, *TRIED)}
    day = Day({name: kernel(folder / name, n) for n, name in names.items()}, s.core, s.seed)
    try:
        session = day.measure(tuple(names.values()), 5 * s.cap_s, 0.002)
        own = session.result(names[0])
        cost = {n: speed_over(own, session.result(names[n]), names[n]).median for n in TRIED}
    finally:
        day.close()
    slope, start = np.polyfit(TRIED, [cost[n] for n in TRIED], 1)
    return max(1, round((SLOWDOWN - start) / slope)), cost


def kernels_of(folder: Path, extra: int) -> dict[str, Manifest]:
    """Each kernel as often as it has processes, which have different content by their remark."""
    return {
        f"{name}.{place}": kernel(folder / f"{name}.{place}", tiles, f"{name}, in process {place}")
        for place in range(PLACES)
        for name, tiles in ((OLD, 0), (SAME, 0), (SLOWER, extra))
    }


def run(s: Settings) -> dict[str, Any]:
    """The whole trial; ends early when its minutes are over. What there is lies in its file all the time."""
    began, done, found = time.monotonic(), list[Comparison](), dict[str, Any]()
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="attnbench-trial-") as folder:
        extra, cost = (s.tiles, {}) if s.tiles else calibrated(Path(folder) / "calibration", s)
        print(f"slower: {extra} of {TILES} tiles twice; tried {cost or 'nothing'}", flush=True)
        manifests = kernels_of(Path(folder) / "kernels", extra)
        for n in range(s.days):
            if time.monotonic() - began > 60 * s.minutes:
                break
            day = Day(manifests, s.core, s.seed + 1 + n)
            try:
                for index in range(n * s.comparisons // s.days, (n + 1) * s.comparisons // s.days):
                    if time.monotonic() - began > 60 * s.minutes:
                        break
                    done += _compared(day, n, index, s)
                    found = {
                        "machine": day.machine.model_dump(mode="json"),
                        "settings": {**asdict(s), "out": str(s.out.name)},
                        "rule": asdict(RULE),
                        "nice": os.nice(0),
                        "load": {"before": load_before, "after": os.getloadavg()},
                        "seconds": round(time.monotonic() - began),
                        "slower": {"tiles_twice": extra, "of": TILES, "calibration": cost},
                        "summary": summary(done),
                        "comparisons": [_figures(c) for c in done],
                    }
                    _write(s.out, found)
                    print(f"  {found['seconds']} s: {tally(done)}", flush=True)
            finally:
                day.close()
    return found


def _compared(day: Day, n: int, index: int, s: Settings) -> list[Comparison]:
    """One comparison of the kernel with itself, and where its turn is one with the slower kernel."""
    comparisons = [Comparison(SAME, n)]
    share = s.slowdowns / s.comparisons
    if int((index + 1) * share) > int(index * share):
        comparisons.append(Comparison(SLOWER, n))
    for c in comparisons:
        while c.outcome is Outcome.AGAIN:
            place = (index + len(c.runs)) % PLACES
            stored, new = day.compared(f"{OLD}.{place}", f"{c.kind}.{place}", s)
            # Every process has a content of its own, which is one kernel all the same.
            old = new.old.model_copy(update={"sha256": "0" * 64}) if new.old else None
            c.see(stored.model_copy(update={"sha256": "0" * 64}), new.model_copy(update={"old": old}))
    said = (
        f"{c.kind}: {c.outcome} in {len(c.looks)}, {c.look.speed.median:.3f}, band {c.look.band:.3f}"
        for c in comparisons
        if c.look
    )
    print(f"{n}.{index} {'; '.join(said)}", flush=True)
    return comparisons


def _write(file: Path, found: dict[str, Any]) -> None:
    unfinished = file.with_name(file.name + ".new")
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.replace(file)


def _figures(comparison: Comparison) -> dict[str, Any]:
    found = asdict(comparison)
    return {**found, "runs": [_told(run) for run in comparison.runs]}


def _told(case: Case) -> dict[str, float]:
    """Of one session: the kernel over its old self, both over the anchor, and the noise floor."""
    assert case.old is not None and case.old.speed is not None and case.old.anchored is not None
    speed = case.old.speed
    return {
        "speed": speed.median,
        "low": speed.low,
        "high": speed.high,
        "rounds": speed.pairs,
        "ratio": case.ratio.median,
        "old_ratio": case.old.anchored.median,
        "noise": case.noise_floor,
    }


def tally(comparisons: Sequence[Comparison]) -> str:
    """What there is so far, in a line."""
    counts = Counter((c.kind, str(c.outcome)) for c in comparisons)
    return ", ".join(f"{kind} {outcome} {n}" for (kind, outcome), n in sorted(counts.items()))


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What the claims are about."""
    found: dict[str, Any] = {}
    for kind in (SAME, SLOWER):
        of = [c for c in comparisons if c.kind == kind]
        if not of:
            continue
        looks = [one for c in of for one in c.looks]
        logs = np.log([c.looks[0].speed.median for c in of])
        found[kind] = {
            "comparisons": len(of),
            "outcomes": dict(Counter(str(c.outcome) for c in of)),
            "looks": len(looks),
            "first_looks_slower": sum(c.looks[0].change is Change.SLOWER for c in of),
            "change_median": float(np.expm1(np.median(logs))),
            "change_sd": float(logs.std()),
            "noise_floor_quantiles_10_50_90": _quantiles([one.noise_floor for one in looks]),
            "band_quantiles_10_50_90": _quantiles([one.band for one in looks]),
            "interval_half_width_quantiles_10_50_90": _quantiles([one.speed.half_width for one in looks]),
        }
    return found


def _quantiles(values: Sequence[float]) -> list[float]:
    return [round(float(x), 4) for x in np.quantile(values, (0.1, 0.5, 0.9))]


def settings_of(words: Sequence[str] | None = None) -> Settings:
    """What a command line of this module asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one that is used")
    parser.add_argument("--cap-s", type=float, default=2.5, help="sampling time of a session")
    parser.add_argument("--half-width", type=float, default=0.01, help="as gate-cpu: precise enough")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--slowdowns", type=int, default=100)
    parser.add_argument("--days", type=int, default=4, help="how often all processes are new")
    parser.add_argument("--tiles", type=int, default=0, help="computed twice; 0: calibrate first")
    parser.add_argument("--seed", type=int, default=1)
    return Settings(**vars(parser.parse_args(words)))


def main() -> None:
    found = run(settings_of())
    print(json.dumps({"seconds": found["seconds"], **found["summary"]}, indent=1))


if __name__ == "__main__":
    main()
