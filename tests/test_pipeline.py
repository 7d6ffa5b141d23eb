"""The whole way of a trial on the CPU, with real workers: kernels of one's own, good and bad."""

import json
import os
import signal
from pathlib import Path

import pytest

from harness.bench import Bench
from harness.build.manifest import read_candidate
from harness.experiment import experiment_of, make_plan
from harness.pipeline import evaluate
from harness.records import Result, Verdict
from harness.store import Store
from harness.targets import find_target
from reports import load_run, render
from tasks import discover
from tests.conftest import GOOD

STALE = GOOD.replace(
    "def attention(q, k, v, out, *, scale):",
    "CACHE, CALLS = {}, [0]\n\n"
    "def attention(q, k, v, out, *, scale):\n"
    "    CALLS[0] += 1\n"
    "    key = (q.data_ptr(), out.data_ptr(), tuple(q.shape))\n"
    "    if key in CACHE and CALLS[0] > 40:\n"
    "        out.copy_(CACHE[key])\n"
    "        return\n"
    "    _attention(q, k, v, out, scale=scale)\n"
    "    CACHE[key] = out.clone()\n\n"
    "def _attention(q, k, v, out, *, scale):",
)
LATER = GOOD + "    COUNT[0] += 1\n    if COUNT[0] > 40:\n        {then}\n"
LATER = LATER.replace("import torch\n", "import torch\nCOUNT = [0]\n")


class Silent:
    """An observer that can act at the n-th result."""

    def __init__(self, at: int = -1, act=None):
        self.at, self.act, self.seen = at, act, 0

    def begin(self, trials, done):
        self.total = trials

    def cell(self, cell):
        pass

    def recorded(self, result):
        self.seen += 1
        if self.seen == self.at:
            self.act()


def run_tiny(tmp_path, tiny_tasks, folders, observer=None, baselines=("sdpa-flash", "naive")) -> list[Result]:
    data = {
        "target": "cpu",
        "tasks": ["tiny"],
        "workloads": "smoke",
        "baselines": list(baselines),
        "limits": {"first_call_s": 8, "call_s": 5},
        "sampling": {"half_width": 0.1, "time_cap_s": 0.4, "block_ms": 15, "min_rounds": 4, "max_rounds": 12},
    }
    experiment = experiment_of(data, "test")
    plan = make_plan(experiment, discover(tiny_tasks), [read_candidate(f) for f in folders])
    target = find_target("cpu")
    run = tmp_path / "run"
    with (
        Store(run, resume=(run / "results.jsonl").exists()) as store,
        Bench(experiment, target, task_folders=[tiny_tasks]) as bench,
    ):
        store.add_experiment("")
        watcher = observer or Silent()
        if isinstance(watcher, Silent):
            watcher.bench = bench
        evaluate(plan, bench, store, watcher)
        assert watcher.total == len(store.results)
        return list(store.results.values())


def verdicts(results, name):
    return {r.verdict for r in results if r.candidate.name == name}


def results_of(results, name):
    return [r for r in results if r.candidate.name == name]


def test_a_kernel_of_ones_own_goes_the_whole_way(tmp_path, tiny_tasks, write_candidate):
    results = run_tiny(tmp_path, tiny_tasks, [write_candidate("good")])
    assert len(results) == 9
    assert {r.verdict for r in results} == {Verdict.OK}
    mine = [r for r in results if r.candidate.name == "good"]
    for result in mine:
        measured = result.measurement
        assert measured is not None
        assert result.verification is not None
        assert measured.clock == "wall"
        assert measured.noise is not None
        assert measured.judge_slope_ms is not None
        assert measured.ratio.anchor in ("sdpa-flash", "naive")
        assert sum(c.timed for c in result.verification.checks) == 2
        assert {c.workload for c in result.verification.checks} > {result.workload.key}
        assert result.verification.repeats_identical
        assert result.verification.inputs_untouched
    files = {p.name for p in render(tmp_path / "run")}
    assert {"report.html", "report.md", "report.csv", "report.json", "table.tex"} <= files
    assert len(load_run(tmp_path / "run").rows) == 9
    assert (tmp_path / "run" / "artifacts" / mine[0].candidate.sha256 / "attention.py").exists()
    summary = json.loads((tmp_path / "run" / "summary.jsonl").read_text())
    assert summary["results"] == 9
    assert sum(summary["stages_s"].values()) == pytest.approx(summary["wall_s"], abs=0.2)


def test_bad_kernels_get_their_verdicts_and_the_run_goes_on(tmp_path, tiny_tasks, write_candidate):
    bad = {
        "edge": (GOOD.replace(".tril(", ".tril(-1 + "), {Verdict.WRONG_NUMERICS}),
        "crash": (GOOD + "    import os; os.abort()\n", {Verdict.CRASH}),
        "syntax": ("def attention(:\n", {Verdict.BUILD_ERROR}),
        "nothing": ("x = 1\n", {Verdict.BUILD_ERROR}),
    }
    folders = [write_candidate(name, source) for name, (source, _) in bad.items()]
    results = run_tiny(tmp_path, tiny_tasks, folders, baselines=("naive",))
    for name, (_, expected) in bad.items():
        assert verdicts(results, name) == expected, name
    assert verdicts(results, "naive") == {Verdict.OK}
    assert len(results) == 3 * (1 + len(bad))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (STALE, {Verdict.INTEGRITY, Verdict.WRONG_NUMERICS}),
        (LATER.format(then="k[0, 0, 0, 0] += 1"), {Verdict.INTEGRITY, Verdict.NON_DETERMINISTIC}),
        (LATER.format(then="out.zero_()"), {Verdict.INTEGRITY, Verdict.WRONG_NUMERICS}),
        (LATER.format(then="import os; os.abort()"), {Verdict.CRASH}),
    ],
    ids=["stale results", "mutates later", "skips later", "dies while timed"],
)
def test_what_changes_once_it_is_timed_is_caught(tmp_path, tiny_tasks, write_candidate, source, expected):
    folders = [write_candidate("turncoat", source), write_candidate("good")]
    results = run_tiny(tmp_path, tiny_tasks, folders, baselines=("naive",))
    assert Verdict.OK not in verdicts(results, "turncoat")
    assert verdicts(results, "turncoat") <= expected
    assert results_of(results, "turncoat")[0].verdict in (Verdict.INTEGRITY, Verdict.CRASH)
    assert verdicts(results, "good") == {Verdict.OK}
    assert len(results) == 9


def test_a_hung_kernel_costs_its_limit_once(tmp_path, tiny_tasks, write_candidate):
    results = run_tiny(
        tmp_path, tiny_tasks, [write_candidate("hang", GOOD + "    while True: pass\n")], baselines=("naive",)
    )
    assert verdicts(results, "hang") == {Verdict.TIMEOUT}
    assert verdicts(results, "naive") == {Verdict.OK}


def test_the_death_of_the_library_worker_loses_nothing(tmp_path, tiny_tasks, write_candidate):
    observer = Silent(at=2)
    observer.act = lambda: os.kill(observer.bench.library_worker().pid, signal.SIGKILL)
    results = run_tiny(tmp_path, tiny_tasks, [write_candidate("good")], observer)
    assert len(results) == 9
    assert len({r.id for r in results}) == 9
    assert verdicts(results, "good") == {Verdict.OK}


def test_a_resumed_run_does_nothing_twice(tmp_path, tiny_tasks, write_candidate):
    folders = [write_candidate("good")]
    first = run_tiny(tmp_path, tiny_tasks, folders, baselines=("naive",))
    file = tmp_path / "run" / "results.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)[:-1]
    file.write_bytes(b"".join(kept))
    observer = Silent()
    again = run_tiny(tmp_path, tiny_tasks, folders, observer, baselines=("naive",))
    assert observer.seen == 1
    assert {r.id for r in again} == {r.id for r in first}
    assert file.read_bytes().splitlines(keepends=True)[:-1] == kept


def test_triton_on_a_cpu_is_proven_and_never_timed(tmp_path, tiny_tasks):
    example = Path(__file__).parents[1] / "examples" / "candidates" / "triton_flash"
    folder = tmp_path / "tri"
    folder.mkdir()
    for source in example.glob("*.py"):
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "candidate.toml").write_text('task = "tiny"\nbackend = "triton"\nentry = "causal.py"\n')
    results = run_tiny(tmp_path, tiny_tasks, [folder], baselines=("naive",))
    mine = [r for r in results if r.candidate.name == "tri"]
    assert {r.verdict for r in mine} == {Verdict.PROVEN}
    assert all(r.measurement is None for r in mine)
