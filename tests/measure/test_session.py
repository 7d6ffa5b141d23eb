"""A session finds what is there, whatever the clock does, and believes nobody."""

import itertools
import math

import numpy as np
import pytest

from harness.measure.session import (
    Contender,
    ContenderFailed,
    Policy,
    Session,
)
from harness.measure.telemetry import open_telemetry
from harness.worker.moves import Move, from_json
from harness.worker.protocol import WorkerDied


class FakeWorker:
    """Answers like a worker; times follow a clock that drifts and a little noise."""

    alive = True

    def __init__(self, times_ms, world, trusted=True, records=False):
        self.times_ms, self.world, self.trusted, self.records = times_ms, world, trusted, records
        self.stopped = False
        self.recorded = None
        self.answer = None
        self.break_with = None

    def ask(self, op, args=None, *, limit_s, fds=()):
        if op == "start_records":
            self.recorded = []
            return {"available": self.records}
        if op == "stop_records":
            return {"blocks": self.recorded}
        raise AssertionError(op)

    def post(self, op, args):
        assert not any(w.running_untrusted(self) for w in self.world.workers)
        self.cont()
        n = args["iterations"]
        base = self.times_ms[args["kernel"]] * self.world.drift()
        samples = list(base * self.world.rng.lognormal(0, 0.003, n))
        self.world.log.append(args["kernel"])
        told = {"samples_ms": [s + 0.004 for s in samples]}
        self.answer = told if self.break_with is None else self.break_with
        if self.recorded is not None:
            kernels = [(f"kernel of {args['kernel']}", 1.0, base)]
            self.recorded.append({"kernel": args["kernel"], "spans_ms": samples, "kernels": kernels})
        return "nonce"

    def wait(self, nonce, *, limit_s):
        return self.answer

    def running_untrusted(self, active):
        return self is not active and not self.trusted and not self.stopped

    def stop(self):
        self.stopped = True

    def cont(self):
        self.stopped = False


class World:
    def __init__(self, drift=0.0, seed=0):
        self.rng = np.random.default_rng(seed)
        self.workers, self.log, self._drift, self._n = [], [], drift, 0

    def worker(self, **kwargs):
        worker = FakeWorker(world=self, **kwargs)
        self.workers.append(worker)
        return worker

    def drift(self):
        """Slowly up and down by `drift`, like a clock that follows the temperature."""
        self._n += 1
        return 1 + self._drift * math.sin(self._n / 60)


def race(times, *, drift=0.0, seed=0, records=False, policy=None, judged=("candidate", "anchor#2")):
    world = World(drift, seed)
    library = world.worker(times_ms=times, records=records)
    hostile = world.worker(times_ms=times, trusted=False, records=records)
    where = {"candidate": hostile}
    if "rival" in times:
        where["rival"] = world.worker(times_ms=times, trusted=False, records=records)
    contenders = [
        Contender(name, where.get(name, library), name, ms, True, name in judged)
        for name, ms in times.items()
    ]
    policy = policy or Policy(time_cap_s=30, max_rounds=40)
    session = Session(contenders, "anchor", policy, open_telemetry(None), "cuda", 2)
    return world, session


TIMES = {"anchor": 1.0, "anchor#2": 1.0, "candidate": 1.0}


def test_blocks_are_mirrored_around_the_anchor():
    world, session = race({**TIMES, "slow": 9.0}, policy=Policy(min_rounds=1, max_rounds=1))
    session.sample(1.0)
    assert world.log == world.log[::-1]
    assert world.log[len(world.log) // 2] == "anchor"
    assert world.log[0] == "slow"


@pytest.mark.parametrize("seed", range(5))
def test_the_duplicate_shows_no_difference_under_drift(seed):
    _, session = race(TIMES, drift=0.1, seed=seed)
    session.sample(1.0)
    ratio = session.result("anchor#2").ratio
    assert abs(ratio.median - 1) < 0.005
    assert ratio.low < 1.002
    assert ratio.high > 0.998


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_percent_is_found_under_drift(seed):
    _, session = race({**TIMES, "candidate": 1.01}, drift=0.1, seed=seed)
    session.sample(1.0)
    ratio = session.result("candidate").ratio
    assert ratio.high < 1
    assert ratio.median == pytest.approx(1 / 1.01, abs=0.004)


def test_only_the_judged_and_the_anchor_are_sampled_to_the_end():
    policy = Policy(max_rounds=30, half_width=1e-9, time_cap_s=30)
    _, session = race({**TIMES, "near": 1.1, "behind": 2.0, "far": 9.0}, policy=policy)
    session.sample(1.0)
    pairs = {name: session.result(name).ratio.pairs for name in session.tracks}
    assert pairs["candidate"] == pairs["anchor#2"] == pairs["anchor"] == 30
    assert pairs["near"] == policy.near_rounds
    assert pairs["behind"] == policy.screen_rounds
    assert pairs["far"] == policy.far_rounds
    assert session.result("far").ratio.stopped == "screened"
    assert session.result("candidate").ratio.stopped == "rounds_cap"


def test_sampling_ends_when_precise_and_when_the_time_is_up():
    _, session = race(TIMES, policy=Policy(half_width=0.05, time_cap_s=30))
    session.sample(1.0)
    assert session.result("candidate").ratio.stopped == "precise"
    assert session.result("candidate").ratio.pairs == Policy().min_rounds
    _, session = race(TIMES, policy=Policy(half_width=1e-9, time_cap_s=1e-6))
    session.sample(1.0)
    assert session.result("candidate").ratio.stopped == "time_cap"


def test_untrusted_workers_are_stopped_while_another_is_timed():
    world, session = race({**TIMES, "rival": 1.0}, judged=("candidate", "rival", "anchor#2"))
    session.sample(1.0)  # FakeWorker.post asserts it
    assert sum(w.stopped for w in world.workers) >= 1


@pytest.mark.parametrize(
    "nonsense",
    [
        {"samples_ms": [float("nan")] * 40},
        {"samples_ms": [-1.0] * 40},
        {"samples_ms": [1.0]},
        {"samples_ms": ["fast"] * 40},
        {"samples_ms": [10**400] * 40},
        {"samples_ms": [float("inf")] * 40},
        {"samples_ms": [0.0] * 40},
        {"samples_ms": [1e-7] * 40},
        {"samples_ms": [1.0] * 41},
        {"samples_ms": 7},
        {"samples_ms": None},
        {},
    ],
)
def test_times_that_are_none_fail_their_contender(nonsense):
    world, session = race({**TIMES, "candidate": 0.01})  # so fast that a block is 40 iterations
    world.workers[1].break_with = nonsense
    with pytest.raises(ContenderFailed) as caught:
        session.sample(1.0)
    assert caught.value.name == "candidate"
    assert isinstance(caught.value.error, WorkerDied)


def test_device_time_is_the_kernel_records_and_events_are_the_cross_check():
    _, session = race(TIMES, records=True)
    session.sample(1.0)
    found = session.result("candidate")
    assert found.clock == "kernel_records"
    assert found.graph_time is not None
    assert found.graph_time.median_ms == pytest.approx(found.device_time.median_ms + 0.004, abs=0.003)
    assert [k.name for k in found.kernels] == ["kernel of candidate"]


def with_records(change):
    """A race whose candidate's kernel records `change` (a function of one block's record) spoils."""
    world, session = race(TIMES, records=True)
    worker = world.workers[1]
    honest = worker.post

    def post(op, args):
        nonce = honest(op, args)
        worker.recorded[-1] = change(worker.recorded[-1])
        return nonce

    worker.post = post
    return session


@pytest.mark.parametrize(
    "change",
    [
        lambda block: {**block, "spans_ms": [0.001]},
        lambda block: {**block, "spans_ms": [*block["spans_ms"], 0.001]},
        lambda block: {**block, "kernel": "anchor"},
    ],
    ids=["too few", "too many", "another's name"],
)
def test_records_that_do_not_match_the_blocks_are_not_used(change):
    session = with_records(change)
    session.sample(1.0)
    found = {name: session.result(name) for name in session.tracks}
    clocks = {name: f.clock for name, f in found.items()}  # who spoils records harms nobody else
    assert clocks == {"anchor": "kernel_records", "anchor#2": "kernel_records", "candidate": "graph_events"}
    assert found["candidate"].ratio.median == pytest.approx(1, abs=0.01)  # by events, of both
    assert found["candidate"].device_time.median_ms > 0.9
    assert found["candidate"].kernels == ()
    assert found["candidate"].graph_time is None


@pytest.mark.parametrize(
    "change",
    [
        lambda block: {},
        lambda block: None,
        lambda block: {**block, "spans_ms": None},
        lambda block: {**block, "spans_ms": [-x for x in block["spans_ms"]]},
        lambda block: {**block, "spans_ms": [1e-9 for _ in block["spans_ms"]]},
        lambda block: {**block, "kernels": [["k", 1.0]]},
        lambda block: {**block, "kernels": [["k", 1.0, float("nan")]]},
        lambda block: {**block, "kernels": [["k", 10**400, 1.0]]},
    ],
)
def test_records_that_are_none_fail_their_contender(change):
    with pytest.raises(ContenderFailed) as caught:
        with_records(change).sample(1.0)
    assert caught.value.name == "candidate"
    assert isinstance(caught.value.error, WorkerDied)


@pytest.mark.parametrize("op", ["start_records", "stop_records"])
def test_a_worker_that_fails_around_the_blocks_fails_its_contender(op):
    world, session = race(TIMES, records=True)
    honest = world.workers[1].ask

    def ask(asked, args=None, **more):
        if asked == op:
            raise WorkerDied("gone")
        return honest(asked, args, **more)

    world.workers[1].ask = ask
    with pytest.raises(ContenderFailed, match="candidate: gone"):
        session.sample(1.0)
    session.abandon()  # and that is the end of it


def test_kernel_names_can_be_stored_whatever_they_are():
    session = with_records(lambda block: {**block, "kernels": [["bad \udc80", 1.0, 1.0]]})
    session.sample(1.0)
    (kernel,) = session.result("candidate").kernels
    assert kernel.model_dump_json()
    assert kernel.name == "bad ?"


def test_slots_rotate_over_blocks_and_the_visited_ones_are_known():
    world, session = race({**TIMES, "slow": 30.0}, policy=Policy(max_rounds=2, time_cap_s=30))
    starts = []
    honest = world.workers[0].post

    def post(op, args):
        if args["kernel"] == "slow":
            starts.append((args["start"], args["iterations"]))
        return honest(op, args)

    world.workers[0].post = post
    session.sample(1.0)
    assert starts == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert session.visited == {name: {0, 1} for name in session.tracks}


def test_a_phase_that_is_cut_short_comes_back_to_slots_of_the_phase_before():
    _, session = race({**TIMES, "slow": 30.0}, policy=Policy(max_rounds=2, time_cap_s=30))
    session.slots = 8  # a round leaves most of them out
    session.sample(0.5)
    first = {name: set(slots) for name, slots in session.visited.items()}
    assert session.revisited == first  # nothing was before
    assert first["slow"] == {0, 1}
    session.sample(1.0)
    assert session.revisited == first


@pytest.mark.parametrize(
    "policy",
    [
        Policy(half_width=1e-9, min_rounds=2, max_rounds=6, time_cap_s=30),
        Policy(half_width=1e-9, time_cap_s=1e-6),
        Policy(half_width=0.5, min_rounds=2, time_cap_s=30),
    ],
    ids=["rounds_cap", "time_cap", "precise"],
)
def test_every_phase_has_rounds_however_sampling_ends(request, policy):
    _, session = race(TIMES, policy=policy)
    session.sample(0.5)
    first = len(session.rounds["candidate"])
    assert session.visited["candidate"] == {0, 1}
    session.sample(1.0)
    assert len(session.rounds["candidate"]) > first > 0
    assert session.visited["candidate"] == {0, 1}  # else nothing of this phase could be checked
    assert session.stopped == request.node.callspec.id
    assert len(session.rounds["candidate"]) <= policy.max_rounds


def test_how_inputs_have_changed_is_known_of_each_contender_though_they_share_slots():
    times = {**TIMES, "slow": 9.0}
    _, session = race(times, policy=Policy(min_rounds=1, max_rounds=1))
    drawn = itertools.count()
    session._draw = lambda: (Move("q", next(drawn), 0, 1),)
    for contender in session.order:
        contender.slots = 1 if contender.name == "slow" else None  # as for a slow baseline
    made = {id(c.worker): {0: [], 1: []} for c in session.order}
    at_last = {}
    told = FakeWorker.post

    def post(self, op, args):
        slots = 1 if args["kernel"] == "slow" else 2
        for n, moves in enumerate(args["moves"]):
            slot = (args["start"] + n) % slots
            made[id(self)][slot] += from_json(moves)
            at_last[args["kernel"], slot] = list(made[id(self)][slot])
        return told(self, op, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeWorker, "post", post)
        session.sample(1.0)
    assert {(n, s) for n in times for s in session.visited[n]} == set(at_last)
    for (name, slot), moves in at_last.items():
        assert session.moves(name, slot) == moves
