"""No false conviction: kernels that are honest and odd come out clean, through the whole pipeline.

Each file of `kernels` says in its first line what is odd about it. They share one run, so that none of them
disturbs the others either.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.bench import Bench
from harness.build.manifest import read_candidate
from harness.experiment import experiment_of, make_plan
from harness.pipeline import evaluate
from harness.programs import program_candidates
from harness.records import Result
from harness.store import Store
from harness.targets import find_target
from harness.verdicts import Verdict
from tasks import discover
from tasks.spec import Task
from tests.conftest import SANDBOX
from tests.ground import EXAMPLES, SAMPLING, Ground, Silent, of

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(900)  # a run with twenty workers, on a machine that does much else
KERNELS = sorted(p.stem for p in (HERE / "kernels").glob("*.py"))
GPU_KERNELS = sorted((HERE / "gpu").glob("*.py"))
TASKS = (
    "mha", "mha_causal", "gqa_causal", "mqa_causal", "sliding_window", "softcap", "cross", "mla_prefill",
)  # fmt: skip
BASELINES_HERE = ("sdpa-flash", "sdpa-math", "naive")  # flex compiles for minutes; it has tests of its own


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    ground = Ground(tmp_path_factory.mktemp("honest"))
    folders = [ground.candidate(name, (HERE / "kernels" / f"{name}.py").read_text()) for name in KERNELS]
    return ground.run(folders, limits={"first_call_s": 90, "call_s": 30})


def test_there_are_enough_of_them():
    assert len(KERNELS) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_an_odd_but_honest_kernel_is_ok(results, name):
    (result,) = of(results, name)
    assert result.verdict is Verdict.OK, f"{result.verdict}: {result.reason}"


def _tiny(task: Task) -> Task:
    """The task on its first fp32 workload for smoke tests, made small, and one hidden shape."""
    first = next(w for w in task.workloads["smoke"] if w.dtype == "fp32")
    small = first.with_(batch=1, seq_q=min(first.seq_q, 96), seq_k=min(first.seq_k, 96))
    hidden = small.with_(seq_q=33, seq_k=50)
    return dataclasses.replace(task, workloads={"smoke": (small,), "hidden": (hidden,)})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Each reference program compiled for Numba, the example in Numba, and the baselines that run on a CPU."""
    path = tmp_path_factory.mktemp("shipped")
    data = {
        "target": "cpu",
        "tasks": list(TASKS),
        "workloads": "smoke",
        "programs": ["reference"],
        "backends": ["numba"],
        "baselines": list(BASELINES_HERE),
        "limits": {"first_call_s": 90, "call_s": 30},
        "sampling": SAMPLING,
    }
    experiment = experiment_of(data, "test")
    known = {name: _tiny(task) for name, task in discover().items() if name in TASKS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(path))  # the device's lock lies there: others may run
        with (
            Store(path / "run", resume=False) as store,
            Bench(experiment, find_target("cpu"), sandbox=SANDBOX) as bench,
        ):
            programs, refused = program_candidates(experiment, known, store, "test")
            assert not refused
            assert len(programs) == len(TASKS)
            plan = make_plan(experiment, known, [*programs, read_candidate(EXAMPLES / "numba_cpu")])
            evaluate(plan, bench, store, Silent())
            return list(store.results.values())


@pytest.mark.slow
def test_every_reference_program_compiled_for_numba_is_ok(shipped):
    found = {r.task: f"{r.verdict} {r.reason}".strip() for r in shipped if r.candidate.method == "program"}
    assert found == dict.fromkeys(TASKS, "ok")


@pytest.mark.slow
def test_the_example_in_numba_is_ok_on_its_tasks(shipped):
    found = {r.task: f"{r.verdict} {r.reason}".strip() for r in of(shipped, "numba_cpu")}
    assert found == dict.fromkeys(("mha", "mha_causal", "gqa_causal"), "ok")


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES_HERE)
def test_a_human_baseline_is_ok_or_says_what_it_cannot(shipped, name):
    for result in of(shipped, name):
        assert result.verdict in (Verdict.OK, Verdict.SKIPPED), f"{result.task}: {result.reason}"
    assert Verdict.OK in {r.verdict for r in of(shipped, name)}


def test_kernels_for_a_gpu_are_right_in_the_interpreter():
    """Those that Triton interprets; where they run on a GPU, the soak has them go through the pipeline."""
    files = [p for p in GPU_KERNELS if "def walk(" in p.read_text() and p.stem != "autotuned"]
    assert len(files) >= 5
    command = [sys.executable, "-m", "tests.honest.interpreted", *map(str, files)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    errors = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(errors) == len(files)
    assert max(errors) < 5e-6, done.stdout


@pytest.mark.parametrize(
    "file", GPU_KERNELS + sorted((HERE.parent / "faults" / "gpu").glob("*.py")), ids=lambda p: p.stem
)
def test_a_kernel_for_a_gpu_can_be_read_and_says_what_is_odd(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree)
    (found,) = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "attention"]
    assert [a.arg for a in found.args.args + found.args.kwonlyargs] == ["q", "k", "v", "out", "scale"]
