"""Kernels of libraries are compiled once each, in parallel, and a failure there costs nothing but itself."""

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from baselines.base import Library
from harness import warmup
from harness.experiment import Cell
from harness.targets import find_target
from harness.verify.exam import Limits
from harness.warmup import FEWEST_JOBS, MOST_WORKERS, Job, compile_ahead, jobs
from harness.worker.protocol import RequestFailed, WorkerDied, WorkerTimeout
from tasks import find

CPU = find_target("cpu")
LIMITS = Limits(load_s=1, first_call_s=2, call_s=3, library_s=4)


@dataclass(frozen=True)
class FakeBaseline:
    """A baseline that compiles as it is told."""

    compiles: str
    missing: str = ""
    refuses: tuple[int, ...] = ()  # lengths it cannot run

    def library(self):
        return Library("fake", "1", self.missing)

    def unsupported(self, task, workload, target):
        return "too long" if workload.seq_q in self.refuses else None


@pytest.fixture
def cells(tiny_tasks):
    """Three lengths of one configuration, then another head dim."""
    task = find("tiny", tiny_tasks)
    smoke = task.workloads["smoke"]
    return [Cell(task, w) for w in (*smoke, smoke[0].with_(dim=16, dim_v=16))]


@pytest.fixture
def known(monkeypatch):
    """Replace the baselines by those given by name."""
    return lambda **baselines: monkeypatch.setattr(warmup, "BASELINES", baselines)


def lengths(found):
    return [(job.baseline, job.cell.workload.seq_q, job.cell.workload.dim) for job in found]


def test_what_compiles_by_configuration_is_compiled_once_for_each(cells, known):
    known(fa=FakeBaseline("configuration"))
    assert lengths(jobs(cells, ["fa"], CPU)) == [("fa", 64, 32), ("fa", 64, 16)]


def test_what_compiles_by_shape_is_compiled_for_every_shape_once(cells, known):
    known(flex=FakeBaseline("shape"))
    found = jobs([*cells, *cells], ["flex"], CPU)
    assert lengths(found) == [("flex", 64, 32), ("flex", 96, 32), ("flex", 128, 32), ("flex", 64, 16)]


def test_what_never_compiles_or_is_missing_or_unsupported_is_left_out(cells, known):
    known(naive=FakeBaseline("never"), gone=FakeBaseline("shape", missing="not installed"))
    assert jobs(cells, ["naive", "gone"], CPU) == []
    known(fa=FakeBaseline("configuration", refuses=(64,)))
    assert lengths(jobs(cells, ["fa"], CPU)) == [("fa", 96, 32)]  # the first shape that it can run


def test_parameters_and_groups_are_configurations_of_their_own(cells, known):
    known(fa=FakeBaseline("configuration"))
    task, one = cells[0].task, cells[0].workload
    others = [one.with_(dtype="fp16"), one.with_(heads=4, kv_heads=2), one.with_(batch=7)]
    found = jobs([Cell(task, w) for w in (one, *others)], ["fa"], CPU)
    assert len(found) == 3  # the batch makes no difference


class FakeWorker:
    """Notes what it is asked; `fate` maps a baseline to the error that its compilation ends in."""

    started: list = []  # noqa: RUF012 - reset by the fixture
    fate: dict = {}  # noqa: RUF012

    def __init__(self, device, *, trusted, cache):
        assert trusted
        self.device, self.cache, self.asked, self.alive, self.closed = device, cache, [], True, False
        self.loaded = None
        FakeWorker.started.append(self)

    def ask(self, op, args=None, *, limit_s):
        self.asked.append((op, limit_s, threading.get_ident()))
        if op == "load":
            self.loaded = args["baseline"]
        if op == "prepare" and self.loaded in self.fate:
            error = self.fate[self.loaded]
            self.alive = not isinstance(error, WorkerDied | WorkerTimeout)
            raise error
        return {}

    def close(self):
        self.closed = True


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(FakeWorker, "started", [])
    monkeypatch.setattr(FakeWorker, "fate", {})
    monkeypatch.setattr(warmup, "Worker", FakeWorker)
    monkeypatch.setattr(warmup.os, "sched_getaffinity", lambda pid: set(range(8)))
    return FakeWorker


def work(cells, *names):
    return [Job(name, cells[0]) for name in names]


def compile_(wanted, tmp_path: Path):
    return compile_ahead(wanted, "cpu", tmp_path, LIMITS, [tmp_path])


def test_few_jobs_are_left_to_where_they_are_needed(cells, workers, tmp_path):
    assert compile_(work(cells, *["a"] * (FEWEST_JOBS - 1)), tmp_path) == 0
    assert workers.started == []


def test_one_core_compiles_nothing_ahead(cells, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(warmup.os, "sched_getaffinity", lambda pid: {0})
    assert compile_(work(cells, *["a"] * 9), tmp_path) == 0
    assert workers.started == []


def test_jobs_are_shared_out_and_every_worker_is_closed(cells, workers, tmp_path):
    assert compile_(work(cells, *["a"] * 20), tmp_path) == 20
    assert len(workers.started) == 6  # three quarters of eight cores
    assert all(w.closed and w.cache == tmp_path for w in workers.started)
    prepared = [sum(op == "prepare" for op, *_ in w.asked) for w in workers.started]
    assert sum(prepared) == 20
    assert max(prepared) - min(prepared) <= 1
    limits = {op: limit for w in workers.started for op, limit, _ in w.asked}
    assert limits == {"load": LIMITS.load_s, "open_layout": LIMITS.call_s, "prepare": LIMITS.library_s}


def test_there_are_never_more_workers_than_jobs_or_the_most(cells, workers, tmp_path, monkeypatch):
    compile_(work(cells, *["a"] * 4), tmp_path)
    assert len(workers.started) == 4
    workers.started.clear()
    monkeypatch.setattr(warmup.os, "sched_getaffinity", lambda pid: set(range(200)))
    compile_(work(cells, *["a"] * 60), tmp_path)
    assert len(workers.started) == MOST_WORKERS


def test_a_baseline_that_cannot_run_costs_only_itself(cells, workers, tmp_path):
    workers.fate["bad"] = RequestFailed("cannot_run", "not here")
    wanted = work(cells, *["bad"] * 6, *["a"] * 6)  # one of both for each of six workers
    assert compile_(wanted, tmp_path) == 6
    assert all(w.closed for w in workers.started)


@pytest.mark.parametrize("error", [WorkerDied("gone"), WorkerTimeout("no answer")])
def test_a_worker_that_dies_takes_only_its_own_share_along(cells, workers, tmp_path, error):
    workers.fate["bad"] = error
    assert compile_(work(cells, "bad", *["a"] * 11), tmp_path) == 10
    assert sorted(len(w.asked) for w in workers.started) == [3, 6, 6, 6, 6, 6]
    assert all(w.closed for w in workers.started)
