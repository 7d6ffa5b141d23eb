"""The clock part of a cell with workers that do as they are told: who leaves, who stays, who is believed."""

import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.build.manifest import Manifest
from harness.entrants import Acceptance, Entrant, baseline_trial, candidate_trial
from harness.entrants import plan as plan_entrant
from harness.experiment import Cell
from harness.ledger import Ledger
from harness.looks import CLAIMS, QUIETER, SECOND_LOOKS, UNCAPTURED
from harness.measure.session import Policy
from harness.measure.sight import Sight
from harness.measure.telemetry import open_telemetry
from harness.race import Race
from harness.records import Check
from harness.targets import find_target
from harness.verdicts import Verdict
from harness.verify.exam import Limits, Rejected
from harness.worker.protocol import RequestFailed, WorkerDied, WorkerTimeout, layout_of
from tasks import find

SLOTS = 2


class FakeWorker:
    """Answers at once with the times it was given; `faults` maps (op, kernel) to an error or an answer."""

    def __init__(self, trusted, times_ms, faults=None, records=False):
        self.trusted, self.times_ms, self.records = trusted, times_ms, records
        self.faults = faults or {}
        self.captured = True
        self.alive, self.hushed, self.asked, self.recorded, self.answer = True, False, [], [], None
        self.sight = lambda: Sight()

    def ask(self, op, args=None, *, limit_s, fds=()):
        args = args or {}
        kernel = args.get("kernel", "")
        self.asked.append((op, kernel))
        self.hushed = False
        if not self.alive:
            raise WorkerDied("dead already")
        fault = self.faults.get((op, kernel))
        if isinstance(fault, Exception):
            self.alive = not isinstance(fault, WorkerDied | WorkerTimeout)
            raise fault
        if fault is not None:
            return fault
        ms = self.times_ms.get(kernel)
        match op:
            case "plan":
                return {"estimate_ms": ms, "captured": self.captured}
            case "latency":
                return {"samples_ms": [ms + 0.1] * args["calls"]}
            case "block":
                self.recorded.append(
                    {
                        "kernel": kernel,
                        "spans_ms": [ms] * args["iterations"],
                        "kernels": [[f"void {kernel}", 1.0, ms]],
                    }
                )
                return {"samples_ms": [ms] * args["iterations"]}
            case "spin" | "read_back":
                return {}
            case "operators":
                return {"calls": [{"operators": {"aten::matmul": ms}, "wall_ms": ms}] * args["calls"]}
            case "start_records":
                self.recorded = []
                return {"available": self.records}
            case "stop_records":
                return {"blocks": self.recorded}
        raise AssertionError(op)

    def post(self, op, args):
        self.answer = (op, args)
        return "nonce"

    def wait(self, nonce, *, limit_s):
        return self.ask(*self.answer, limit_s=limit_s)

    def stop(self):
        self.hushed = True

    def busy(self):
        return False

    def cpu_ms(self):
        return 0.0

    def count(self, op, kernel):
        return self.asked.count((op, kernel))


class FakeBench:
    """The library worker and what else a race needs of the machine."""

    kind = "cuda"

    def __init__(self, library):
        self.library, self.ledger, self.telemetry = library, Ledger(), open_telemetry(None)
        self.policy = Policy(min_rounds=4, max_rounds=4, time_cap_s=60)
        self.limits, self.target = Limits(), find_target("h100")
        self.failures, self._seeds = [], itertools.count()
        self.presses = SimpleNamespace(of=lambda *_: None)
        self.experiment = SimpleNamespace(anchor=None)

    def load_baseline(self, name, kernel):
        fault = self.library.faults.get(("load", kernel))
        if fault is not None:
            raise fault
        self.library.times_ms.setdefault(kernel, self.library.times_ms[name])
        return self.library

    def slots(self, cell):
        return SLOTS

    def fresh_seed(self):
        return next(self._seeds)

    def after_failure(self, worker, error):
        self.failures.append((worker, error))


class FakeExam:
    """Everything is right but for `wrong`: kernel -> what marking it while timed gives."""

    layout = layout_of([("q", (1, 8, 1, 4), "fp16", "input", 64)], 2)

    def __init__(self):
        self.wrong, self.touched, self.marked, self.early = {}, set(), [], set()

    def moved(self, content, moves):
        return content

    def prepare(self, worker, kernel):
        pass

    def fill(self, worker, pairs):
        pass

    def fetch(self, worker, kernel, slot, *, timed=False):
        worker.ask("read_back", {"kernel": kernel}, limit_s=1)

    def mark(self, worker, kernel, slot, content, *, timed=False, fetched=False):
        if fetched:  # by the judge's burst, whose clock is a fake here: nothing was moved or fetched
            return check(passed=kernel not in self.early, timed=True, note="not there yet")
        self.marked.append((kernel, slot, content))
        found = self.wrong.get(kernel)
        if isinstance(found, Exception):
            raise found
        return check(passed=found is None, timed=timed, note=found or "")

    def inputs_untouched(self, worker, kernel, slot, content):
        return kernel not in self.touched


def check(*, passed=True, timed=False, note=""):
    return Check(
        workload="w", recipe="normal", seed=1, passed=passed, error_max=0, error_allowed=1,
        tile_error=0, tile_error_allowed=1, cosine_distance=0, timed=timed, note=note,
    )  # fmt: skip


class FakeStore:
    """What is recorded already: id -> result."""

    def __init__(self):
        self.results = {}

    def __contains__(self, id_):
        return id_ in self.results


class FakeClock:
    """The judge's: sees what the track says, a time or (without a request's cost, with it)."""

    def __init__(self, track, bursts, most, sight):
        assert most == SLOTS
        worker, kernel = bursts._worker, bursts._kernel
        track.sights.append((worker, sight))
        self.track, self.worker, self.kernel = track, worker, kernel
        self.slope_ms = self.at_most_ms = float("inf")

    def look(self):
        self.track.looks.append(self.kernel)
        assert all(w.hushed for w in self.track.workers.values() if w is not self.worker)
        seen = self.track.seen[self.kernel]
        found = seen.pop(0) if len(seen) > 1 else seen[0]
        if isinstance(found, Exception):
            self.worker.alive = False
            raise found
        if isinstance(found, tuple):
            self.slope_ms, self.at_most_ms = found
        else:
            self.slope_ms = self.at_most_ms = min(found, self.at_most_ms)


class Track:
    """One race to be run: a library with baselines, each candidate in a worker of its own."""

    def __init__(self, cell, baselines, candidates, monkeypatch):
        self.cell, self.baselines = cell, baselines
        self.library = FakeWorker(True, dict(baselines))
        self.bench, self.exam = FakeBench(self.library), FakeExam()
        self.workers, self.entrants = {}, []
        for name in baselines:
            trial = baseline_trial(name, cell, self.bench)
            self.entrants.append(Entrant(trial, self.library, name, [check()]))
        for name, ms in candidates.items():
            worker = self.workers[name] = FakeWorker(False, {name: ms})
            trial = candidate_trial(manifest(name), cell, self.bench)
            self.entrants.append(Entrant(trial, worker, name, [check()]))
        every = {**baselines, **candidates}
        self.seen = {name: [ms] for name, ms in every.items()}  # by the judge; the last one for good
        self.looks, self.sights, self.monkeypatch, self.unsteady = [], [], monkeypatch, {}
        self.store = FakeStore()
        monkeypatch.setattr("harness.looks.JudgesClock", partial(FakeClock, self))
        # The judge waits a second for every plan: workers that answer at once do not bound an estimate.
        monkeypatch.setattr("harness.entrants.time", SimpleNamespace(monotonic=itertools.count().__next__))

    def without_baselines(self):
        """As for the second group: the baselines are recorded already, with their times."""
        for entrant in [e for e in self.entrants if not e.is_candidate]:
            self.entrants.remove(entrant)
            time = SimpleNamespace(device_time=SimpleNamespace(median_ms=self.baselines[entrant.name]))
            self.store.results[entrant.trial.id] = SimpleNamespace(measurement=time)

    def run(self):
        race = Race(self.cell, self.exam, self.entrants, self.bench)
        found = [(e.name, out) for e, out in race.run(list(self.baselines), self.store)]
        self.unsteady = race.unsteady
        assert len({name for name, _ in found}) == len(found)  # nobody ends twice
        return dict(found)


def manifest(name):
    return Manifest(name, ("tiny",), "torch", (), Path(), {"tiny": "attention.py"}, {name: name.encode()})


@pytest.fixture
def track(tiny_tasks, monkeypatch):
    """track(candidates, baselines): a race on a cell whose floor on an H100 is 10 ns."""
    task = find("tiny", tiny_tasks)
    cell = Cell(task, task.workloads["smoke"][0].with_(dtype="fp16"))

    def make(candidates, baselines=None):
        return Track(cell, baselines or {"cudnn": 1.0, "sdpa-flash": 2.0}, candidates, monkeypatch)

    return make


def verdicts(outcomes):
    return {name: out.verdict for name, out in outcomes.items()}


def test_everyone_is_measured_beside_the_fastest_baseline(track):
    outcomes = track({"mine": 0.5, "slow": 1.5}).run()
    assert set(verdicts(outcomes).values()) == {Verdict.OK}
    ratios = {name: out.measurement.ratio for name, out in outcomes.items()}
    assert {r.anchor for r in ratios.values()} == {"cudnn"}
    assert {n: r.median for n, r in ratios.items()} == pytest.approx(
        {"cudnn": 1.0, "sdpa-flash": 0.5, "mine": 2.0, "slow": 1 / 1.5}
    )
    assert all(out.measurement.noise.median == 1.0 for out in outcomes.values())
    assert outcomes["mine"].measurement.judge_slope_ms == 0.5
    assert outcomes["cudnn"].measurement.judge_slope_ms is None
    assert outcomes["mine"].measurement.call_latency.median_ms == pytest.approx(0.6)


def test_a_pinned_anchor_stays_it_though_another_is_faster_and_all_are_measured_precisely(track):
    made = track({"mine": 0.5})
    made.bench.experiment.anchor = "sdpa-flash"
    ratios = {name: out.measurement.ratio for name, out in made.run().items()}
    assert {r.anchor for r in ratios.values()} == {"sdpa-flash"}
    assert ratios["cudnn"].median == 2.0
    assert len({r.pairs for r in ratios.values()}) == 1
    assert "screened" not in {r.stopped for r in ratios.values()}


def test_where_the_pinned_anchor_fails_no_other_takes_its_place(track):
    made = track({"mine": 0.5})
    made.bench.experiment.anchor = "sdpa-flash"
    made.library.faults["plan", "sdpa-flash"] = RequestFailed("call", "no")
    outcomes = made.run()
    assert outcomes["mine"].verdict is Verdict.INFRA


def test_a_timed_output_of_each_phase_is_checked_against_what_lay_in_its_slot_then(track):
    made = track({"mine": 0.5})
    outcomes = made.run()
    assert [c.timed for c in outcomes["mine"].verification.checks] == [False, True, True, True, True]
    assert outcomes["mine"].verification.inputs_untouched
    marked = [(slot, content) for kernel, slot, content in made.exam.marked if kernel == "mine"]
    assert {slot for slot, _ in marked[:2]} == {slot for slot, _ in marked[2:]} == {0, 1}
    assert all(content == slot % 2 for slot, content in marked[:2])
    assert all(content == (slot + 1) % 2 for slot, content in marked[2:])  # swapped in between


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (WorkerDied("gone"), Verdict.CRASH),
        (WorkerTimeout("late"), Verdict.TIMEOUT),
        (RequestFailed("candidate", "ValueError: no"), Verdict.CRASH),
        (RequestFailed("device", "CUDA error: illegal address"), Verdict.CRASH),
        (RequestFailed("cannot_run", "let me off"), Verdict.CRASH),
    ],
)
@pytest.mark.parametrize("op", ["plan", "latency", "block"])
def test_a_candidate_that_fails_on_the_clock_leaves_and_the_others_are_measured(track, op, error, verdict):
    made = track({"mine": 0.5, "bad": 0.7})
    made.workers["bad"].faults[op, "bad"] = error
    outcomes = made.run()
    assert outcomes.pop("bad").verdict is verdict
    assert verdicts(outcomes) == dict.fromkeys(("mine", "cudnn", "sdpa-flash"), Verdict.OK)
    assert (made.workers["bad"], error) in made.bench.failures  # who buries it after a device error


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"estimate_ms": None, "captured": False},
        {"estimate_ms": float("nan"), "captured": False},
        {"estimate_ms": float("inf"), "captured": False},
        {"estimate_ms": "soon", "captured": False},
        {"estimate_ms": -1.0, "captured": False},
        {"estimate_ms": 10**400, "captured": False},
    ],
)
def test_a_plan_that_is_no_plan_ends_its_candidate(track, answer):
    made = track({"mine": 0.5, "liar": 0.5})
    made.workers["liar"].faults["plan", "liar"] = answer
    found = verdicts(made.run())
    assert found.pop("liar") is Verdict.CRASH
    assert set(found.values()) == {Verdict.OK}


def test_an_estimate_cannot_stretch_the_time_limits(track):
    made = track({"liar": 0.5})
    made.workers["liar"].faults["plan", "liar"] = {"estimate_ms": 9e8, "captured": 1}
    contender = plan_entrant(made.entrants[-1], made.bench)
    assert contender.estimate_ms == 1000  # what the judge waited for the answer
    assert not contender.captured


def test_what_the_library_worker_took_along_has_no_outcome_and_is_tried_again(track):
    made = track({"mine": 0.5})
    made.library.faults["block", "sdpa-flash"] = WorkerDied("killed")
    outcomes = made.run()
    assert verdicts(outcomes) == {"sdpa-flash": Verdict.CRASH}


def test_a_library_worker_lost_while_it_plans_is_charged_to_one_baseline_only(track):
    made = track({"mine": 0.5})
    made.library.faults["plan", "cudnn"] = WorkerTimeout("compiled for ever")
    assert verdicts(made.run()) == {"cudnn": Verdict.TIMEOUT}


def test_a_candidate_that_died_between_its_checks_and_the_clock_has_crashed(track):
    made = track({"mine": 0.5, "gone": 0.5})
    made.workers["gone"].alive = False
    found = verdicts(made.run())
    assert found.pop("gone") is Verdict.CRASH
    assert set(found.values()) == {Verdict.OK}


def test_a_baseline_that_fails_leaves_and_the_next_best_is_the_anchor(track):
    made = track({"mine": 0.5})
    made.library.faults["block", "cudnn"] = RequestFailed("candidate", "CUDNN_STATUS_BAD_PARAM")
    outcomes = made.run()
    assert outcomes.pop("cudnn").verdict is Verdict.CRASH
    assert set(verdicts(outcomes).values()) == {Verdict.OK}
    assert {out.measurement.ratio.anchor for out in outcomes.values()} == {"sdpa-flash"}


@pytest.mark.parametrize("op", ["load", "plan", "block"])
def test_an_anchor_whose_duplicate_fails_is_out(track, op):
    made = track({"mine": 0.5})
    made.library.faults[op, "cudnn#2"] = RequestFailed("out_of_memory", "out of memory")
    outcomes = made.run()
    assert outcomes.pop("cudnn").verdict is Verdict.SKIPPED  # not enough memory for what a race takes
    assert set(verdicts(outcomes).values()) == {Verdict.OK}
    assert outcomes["mine"].measurement.ratio.anchor == "sdpa-flash"


def test_a_later_group_races_against_the_best_baseline_on_record(track):
    made = track({"mine": 0.5})
    made.without_baselines()
    outcomes = made.run()
    assert verdicts(outcomes) == {"mine": Verdict.OK}
    assert outcomes["mine"].measurement.ratio.anchor == "cudnn"
    assert outcomes["mine"].measurement.noise.anchor == "cudnn"


def test_a_recorded_baseline_that_no_longer_runs_gives_way_to_the_next(track):
    made = track({"mine": 0.5})
    made.without_baselines()
    made.library.faults["plan", "cudnn"] = RequestFailed("out_of_memory", "out of memory")
    assert made.run()["mine"].measurement.ratio.anchor == "sdpa-flash"


@pytest.mark.parametrize("kernel", ["cudnn", "cudnn#2"])
def test_a_recorded_anchor_that_fails_on_the_clock_ends_the_race_for_now(track, kernel):
    made = track({"mine": 0.5})
    made.without_baselines()
    made.library.faults["block", kernel] = RequestFailed("candidate", "not today")
    assert made.run() == {}
    assert made.library.count("block", kernel) == 1


def test_without_any_human_baseline_there_is_no_measurement(track):
    made = track({"mine": 0.5})
    made.without_baselines()
    made.store.results.clear()
    outcomes = made.run()
    assert verdicts(outcomes) == {"mine": Verdict.INFRA}
    assert "no human baseline" in outcomes["mine"].reason


def test_a_wrong_output_of_a_timed_call_is_cheating(track):
    made = track({"mine": 0.5})
    made.exam.wrong["mine"] = "error 3.0, allowed 0.1"
    outcomes = made.run()
    out = outcomes.pop("mine")
    assert out.verdict is Verdict.INTEGRITY
    assert out.verification.detectors == ("stale_output",)
    assert "allowed 0.1" in out.reason
    assert out.measurement is not None
    assert set(verdicts(outcomes).values()) == {Verdict.OK}


def test_a_baseline_that_is_wrong_on_the_clock_is_wrong_and_no_cheat(track):
    made = track({"mine": 0.5})
    made.exam.wrong["sdpa-flash"] = "error 3.0, allowed 0.1"
    outcomes = made.run()
    assert outcomes["sdpa-flash"].verdict is Verdict.WRONG_NUMERICS
    assert outcomes["sdpa-flash"].measurement is None
    assert outcomes["mine"].verdict is Verdict.OK


def test_a_write_out_of_bounds_that_comes_late_is_found(track):
    made = track({"mine": 0.5, "other": 0.6})
    made.exam.wrong["mine"] = Rejected(Verdict.OUT_OF_BOUNDS, "wrote outside the tensor 'out'")
    outcomes = made.run()
    out = outcomes.pop("mine")
    assert out.verdict is Verdict.OUT_OF_BOUNDS
    assert "while timed" in out.reason
    assert out.measurement is None
    assert set(verdicts(outcomes).values()) == {Verdict.OK}


def test_inputs_changed_on_the_clock_are_found(track):
    made = track({"mine": 0.5})
    made.exam.touched.add("mine")
    out = made.run()["mine"]
    assert out.verdict is Verdict.INTEGRITY
    assert out.verification.detectors == ("mutated_inputs",)


def test_a_claim_that_the_judges_clock_contradicts_is_cheating(track):
    made = track({"mine": 0.5})
    made.seen["mine"] = [2.0]
    out = made.run()["mine"]
    assert out.verdict is Verdict.INTEGRITY
    assert out.verification.detectors == ("judge_clock",)
    assert "0.5000" in out.reason
    assert "2.0000" in out.reason
    assert made.looks == ["mine"] * (1 + SECOND_LOOKS + CLAIMS)
    assert made.unsteady == {}


@pytest.mark.parametrize(("seen_ms", "found"), [(0.6, "ok"), (2.0, None), (9.0, "integrity")])
def test_launches_from_python_convict_nobody_and_nobody_is_believed_for_them(track, seen_ms, found):
    """A kernel that says it cannot be captured: its work and its launches look alike from outside."""
    made = track({"mine": 0.5, "other": 0.6})
    made.workers["mine"].captured = False
    made.seen["mine"] = [seen_ms]
    outcomes = made.run()
    assert outcomes["other"].verdict is Verdict.OK
    assert ("mine" in outcomes) == (found is not None)
    if found is None:
        assert UNCAPTURED in made.unsteady["mine"]
    else:
        assert outcomes["mine"].verdict == found


def test_a_wrong_output_convicts_whatever_launches_take(track):
    made = track({"mine": 0.5})
    made.workers["mine"].captured = False
    made.seen["mine"] = [2.0]
    made.exam.early.add("mine")
    assert made.run()["mine"].verdict is Verdict.INTEGRITY


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_judge_sees_processor_time_where_the_processor_is_what_works(track, kind):
    made = track({"mine": 0.5})
    made.bench.kind = kind
    made.run()
    (worker, sight), *_ = made.sights
    assert sight is (worker.sight if kind == "cpu" else Sight)


def test_a_claim_that_stands_at_the_time_of_the_looks_convicts_nobody_and_is_not_believed(track):
    """Measured on a quiet machine, looked at on a busy one: the worker's own times are longer now as well."""
    made = track({"mine": 0.5, "other": 0.6})
    made.seen["mine"] = [2.0]
    worker = made.workers["mine"]

    def look(clock, honest=FakeClock.look):
        if made.looks.count("mine") == SECOND_LOOKS:
            worker.times_ms["mine"] = 2.1
        honest(clock)

    made.monkeypatch.setattr(FakeClock, "look", look)
    assert verdicts(made.run()) == dict.fromkeys(("cudnn", "sdpa-flash", "other"), Verdict.OK)
    assert made.unsteady == {
        "mine": "claimed 0.5000 ms a call, a tenth of them under 0.5000, and later 2.1000 ms a call, a tenth of them "
        f"under 2.1000; the judge saw 2.0000 ms from outside: {QUIETER}"
    }


@pytest.mark.parametrize(("others_ms", "convicted"), [(0.0, True), (1e9, False)])
def test_no_clock_convicts_on_a_machine_that_others_keep_busy(track, others_ms, convicted):
    """Two threads that wait for each other take twice as long where one of them has no processor."""
    made = track({"mine": 0.5, "other": 0.6})
    made.bench.kind, made.seen["mine"] = "cpu", [2.0]
    told = iter([Sight(begun=1), Sight(begun=1, busy_ms=others_ms)])
    made.workers["mine"].sight = lambda: next(told)
    found = made.run()
    assert ("mine" in found and found["mine"].verdict is Verdict.INTEGRITY) == convicted
    assert ("other programs kept" in made.unsteady.get("mine", "")) == (not convicted)
    assert found["other"].verdict is Verdict.OK


def test_a_claim_that_stands_after_all_looks_stands(track):
    """The first looks were late, all of them; the least time is kept, and that of the last is no contradiction."""
    made = track({"mine": 0.5})
    made.seen["mine"] = [2.0] * (1 + SECOND_LOOKS) + [0.6]
    assert made.run()["mine"].verdict is Verdict.OK
    assert made.unsteady == {}


def test_a_claim_whose_quickest_calls_are_the_most_is_a_lie_however_slow_the_others_are(track):
    """What is reported is the median: a tenth of slow calls excuses nothing."""
    made = track({"mine": 0.5})
    made.bench.kind, made.seen["mine"] = "cpu", [2.0]
    worker, lot = made.workers["mine"], itertools.count()
    honest = worker.ask

    def ask(op, args=None, **more):
        told = honest(op, args, **more)
        if op == "block":
            told = {"samples_ms": [9.0 if next(lot) % 5 == 0 else ms for ms in told["samples_ms"]]}
        return told

    worker.ask = ask
    assert made.run()["mine"].verification.detectors == ("judge_clock",)


def test_quick_calls_alone_convict_nobody_and_are_not_believed(track):
    """A kernel of two threads on a busy machine, as recorded: most calls wait for one of them, the judge's all do."""
    made = track({"mine": 0.5, "other": 0.5})
    made.bench.kind, made.seen["mine"] = "cpu", [2.0]
    worker, lot = made.workers["mine"], itertools.count()
    honest = worker.ask

    def ask(op, args=None, **more):
        told = honest(op, args, **more)
        if op == "block":
            told = {"samples_ms": [ms if next(lot) % 4 == 0 else 3.0 for ms in told["samples_ms"]]}
        return told

    worker.ask = ask
    made.run()
    assert "the judge saw 2.0000 ms" in made.unsteady["mine"]


def test_one_low_figure_clears_nobody(track):
    """A request's cost that was overrated hides the work: the judge looks until it is sure of either."""
    made = track({"mine": 0.5, "liar": 0.5})
    made.seen["liar"] = [(0.0, 2.0), (0.0, 2.0), (1.9, 2.0)]
    made.seen["mine"] = [(0.4, 0.6)]  # stands whatever the request's cost was: no second look
    found = made.run()
    assert found["liar"].verdict is Verdict.INTEGRITY
    assert found["mine"].verdict is Verdict.OK
    assert (made.looks.count("liar"), made.looks.count("mine")) == (1 + SECOND_LOOKS + CLAIMS, 1)


def test_what_may_be_a_requests_cost_convicts_nobody(track):
    made = track({"mine": 0.5})
    made.seen["mine"] = [(0.4, 2.0)]
    assert made.run()["mine"].verdict is Verdict.OK
    assert len(made.looks) == 1 + SECOND_LOOKS


def test_on_a_cpu_the_claim_holds_the_call_too_so_a_launch_is_no_excuse(track):
    made = track({"mine": 0.05})
    made.workers["mine"].captured = False
    made.seen["mine"] = [0.2]
    assert "mine" not in made.run()  # eager on a GPU: Python's launch may have taken it
    made = track({"mine": 0.05})
    made.seen["mine"], made.bench.kind = [0.2], "cpu"
    assert made.run()["mine"].verdict is Verdict.INTEGRITY


def test_an_output_that_is_not_there_when_the_worker_says_so_convicts(track):
    made = track({"mine": 0.5, "other": 0.6})
    made.exam.early.add("mine")
    out = made.run()
    assert [out[n].verdict for n in ("mine", "other")] == [Verdict.INTEGRITY, Verdict.OK]
    assert out["mine"].verification.detectors == ("late_work",)


def test_a_busy_moment_convicts_nobody(track):
    made = track({"mine": 0.5})
    made.seen["mine"] = [9.0, 5.0, 0.4, 9.0]
    out = made.run()["mine"]
    assert out.verdict is Verdict.OK
    assert out.measurement.judge_slope_ms == 0.4
    assert made.looks == ["mine"] * 3  # no look more than it takes


def test_one_that_dies_under_the_second_look_has_crashed(track):
    made = track({"mine": 0.5, "other": 0.6})
    made.seen["mine"] = [9.0, WorkerDied("gone")]
    found = verdicts(made.run())
    assert found.pop("mine") is Verdict.CRASH
    assert set(found.values()) == {Verdict.OK}


def test_faster_than_the_floor_is_impossible(track):
    made = track({"mine": 5e-6})
    out = made.run()["mine"]
    assert out.measurement.floor_ms > 5e-6
    assert out.verdict is Verdict.IMPOSSIBLE
    assert f"{out.measurement.floor_ms:.4f}" in out.reason


def test_a_kernel_that_is_a_librarys_is_named_as_such(track):
    made = track({"mine": 0.5})
    mine = made.workers["mine"]
    made.library.records = mine.records = True
    name = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop"
    honest = mine.ask

    def ask(op, args=None, **more):
        told = honest(op, args, **more)
        return {
            "blocks": [{**b, "kernels": [[name, 1.0, 0.4], ["mine", 1.0, 0.1]]} for b in told["blocks"]]
        } if op == "stop_records" else told  # fmt: skip

    mine.ask = ask
    outcomes = made.run()
    assert outcomes["mine"].verdict is Verdict.LIBRARY_DISPATCH
    assert "cuDNN" in outcomes["mine"].reason
    assert outcomes["mine"].measurement.clock == "kernel_records"
    assert outcomes["cudnn"].verdict is Verdict.OK  # a baseline is what it is


@pytest.mark.parametrize(
    "blocks",
    [
        WorkerDied("gone"),
        RequestFailed("device", "CUDA error"),
        {"blocks": [{}]},
        {"blocks": [[]]},
        {"blocks": [{"kernel": "bad", "spans_ms": 7, "kernels": []}]},
        {"blocks": [{"kernel": "bad", "spans_ms": [float("nan")], "kernels": []}]},
        {"blocks": [{"kernel": "bad", "spans_ms": [0.5], "kernels": [["k", float("inf"), 1]]}]},
        {"blocks": [{"kernel": "bad", "spans_ms": [0.5], "kernels": [["k"]]}]},
    ],
)
def test_records_that_are_none_end_their_candidate_only(track, blocks):
    made = track({"mine": 0.5, "bad": 0.7})
    bad = made.workers["bad"]
    bad.records, bad.faults["stop_records", ""] = True, blocks
    found = verdicts(made.run())
    assert found.pop("bad") is Verdict.CRASH
    assert found == dict.fromkeys(("mine", "cudnn", "sdpa-flash"), Verdict.OK)


@pytest.mark.parametrize("kind", ["device", "candidate"])
def test_a_first_look_that_breaks_the_device_is_told_to_the_bench(track, monkeypatch, kind):
    made = track({"mine": 0.5})
    entrant = made.entrants[-1]
    error = RequestFailed(kind, "CUDA error: misaligned address")

    def accept(worker, kernel, shapes, make_exam):
        raise Rejected(Verdict.CRASH, "misaligned") from error

    monkeypatch.setattr("harness.entrants.accept", accept)
    acceptance = Acceptance(made.bench)
    for _ in range(2):  # the second time from memory
        with pytest.raises(Rejected, match="misaligned"):
            acceptance.admit(entrant)
    assert made.bench.failures == [(entrant.worker, error)]
