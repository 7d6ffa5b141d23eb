"""Claims about the steps that need a device, on the CPU with real workers: the verdict of each kind of kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.assignments import Commission, commissions
from harness.bench import RESTING, Bench
from harness.experiment import Experiment, experiment_of
from harness.generate.method import Compile, Examine, Step, Time, Try
from harness.store import Store
from harness.targets import find_target
from harness.tl.corpus_index import corpus
from harness.verdicts import Verdict
from harness.workshop import Done, Workshop, seed_of
from tasks import discover
from tests.conftest import GOOD, SANDBOX, TINY_TASK

PROGRAM = next(e.text for e in corpus("reference") if e.task == "mha_causal")


def experiment(backend: str = "torch", model: str = "deferred:m") -> Experiment:
    return experiment_of(
        {
            "target": "cpu",
            "tasks": ["tiny"],
            "workloads": "smoke",
            "methods": ["vanilla"],
            "models": [model],
            "backends": [backend],
            "limits": {"first_call_s": 150, "call_s": 10},
        },
        "test",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    text = TINY_TASK.replace("shape(64), shape(96), shape(128)", "shape(64),")
    (path / "tiny.py").write_text(text)
    return path


@pytest.fixture(scope="module")
def bench(folder: Path) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # the device's lock lies there: others may run
        with Bench(experiment(), find_target("cpu"), task_folders=[folder], sandbox=SANDBOX) as opened:
            yield opened


@pytest.fixture
def do(bench: Bench, folder: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Carry out a step with a kernel of this backend."""
    with Store(tmp_path / "run", resume=False) as store:
        workshop = Workshop(store, bench)

        def carry_out(step: Step, backend: str = "torch", standing=None) -> Done:  # type: ignore[no-untyped-def]
            return workshop.do(step, commission(folder, backend), 0, standing)

        yield carry_out


def commission(folder: Path, backend: str = "torch", model: str = "deferred:m") -> Commission:
    return commissions(experiment(backend, model), discover(folder)).trials[0]


def test_a_right_kernel_passes_and_is_kept(do, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = do(Try("kernel", {"attention.py": GOOD}))
    assert done.reply.passed and done.reply.verdict is None
    assert done.manifest.origin.method == "vanilla" and done.manifest.origin.trial
    kept = tmp_path / "run" / "artifacts" / done.manifest.sha256
    assert (kept / "attention.py").read_text() == GOOD
    assert 'backend = "torch"' in (kept / "candidate.toml").read_text()


@pytest.mark.parametrize(
    ("source", "verdict", "says"),
    [
        ("import nothing_of_this_name\n", Verdict.BUILD_ERROR, "nothing_of_this_name"),
        (
            "def attention(q, k, v, out, *, scale):\n    out.zero_()\n",
            Verdict.WRONG_NUMERICS,
            "worst at batch",
        ),
        ("import os\ndef attention(q, k, v, out, *, scale):\n    os._exit(0)\n", Verdict.CRASH, ""),
    ],
)
def test_a_wrong_kernel_gets_its_verdict_and_the_model_is_told_why(do, source, verdict, says) -> None:  # type: ignore[no-untyped-def]
    done = do(Try("kernel", {"attention.py": source}))
    assert not done.reply.passed and done.reply.verdict is verdict
    assert says in done.reply.told
    if verdict is Verdict.WRONG_NUMERICS:
        assert done.verification is not None and not done.verification.passed


def test_a_traceback_is_told_from_the_kernels_own_line_on_without_folders(do) -> None:  # type: ignore[no-untyped-def]
    source = "import torch\n\n\ndef attention(q, k, v, out, *, scale):\n    torch.softmax(q)\n"
    told = do(Try("kernel", {"attention.py": source})).reply.told
    assert 'File "attention.py", line 5, in attention' in told and "torch.softmax(q)" in told
    assert "TypeError" in told and "/" not in told.split("TypeError")[0]


def test_a_program_is_compiled_and_verified(do) -> None:  # type: ignore[no-untyped-def]
    done = do(Compile("compile", PROGRAM), "numba")
    assert done.reply.passed, done.reply.told
    assert "attention.py" in done.manifest.files


def test_what_the_compiler_refuses_is_told_and_costs_no_verification(do) -> None:  # type: ignore[no-untyped-def]
    done = do(Compile("compile", "Kernel x\nCopy Z from global to shared\n"), "numba")
    assert done.refused and done.reply.verdict is Verdict.NO_CODE  # there was nothing to build
    assert "errors" in done.reply.told
    done = do(Compile("compile", PROGRAM), "torch")
    assert done.refused and done.reply.verdict is Verdict.BUILD_ERROR
    assert "the compiler" in done.reply.told and "torch" in done.reply.told


def test_a_right_kernel_is_timed_and_a_wrong_one_has_no_time(do) -> None:  # type: ignore[no-untyped-def]
    tried = do(Try("kernel", {"attention.py": GOOD}))
    done = do(Time("refine"), standing=tried.manifest)
    assert done.reply.passed and done.reply.score is not None and done.reply.score > 0
    assert "ms" in done.reply.told and "TFLOP/s" in done.reply.told
    tried = do(Try("kernel", {"attention.py": "def attention(q, k, v, out, *, scale):\n    out.zero_()\n"}))
    done = do(Time("refine"), standing=tried.manifest)
    assert not done.reply.passed and done.reply.score is None


def test_without_a_device_only_examining_can_be_done(tmp_path: Path, folder: Path) -> None:
    with Store(tmp_path / "run", resume=False) as store:
        workshop = Workshop(store, None)
        assert workshop.can(Examine("code", PROGRAM))
        assert not any(workshop.can(s) for s in (Try("k", {}), Compile("c", ""), Time("t")))


def test_seeds_follow_from_the_trial_whoever_answers(folder: Path) -> None:
    deferred, replay = (commission(folder, model=m).assignment for m in ("deferred:m", "replay:m"))
    other = commission(folder, model="replay:n").assignment
    assert seed_of(deferred, 3) == seed_of(replay, 3) != seed_of(replay, 4)
    assert seed_of(other, 3) != seed_of(replay, 3)


def test_the_latest_kernels_that_passed_keep_their_processes_frozen(do, bench: Bench) -> None:  # type: ignore[no-untyped-def]
    def seats() -> dict[str, bool]:
        return {sha: seat.worker.stopped for sha, seat in bench._seats.items() if seat.worker.alive}

    passed = [do(Try("kernel", {"attention.py": f"# {n}\n{GOOD}"})).manifest for n in range(RESTING + 2)]
    assert seats() == {m.sha256: True for m in passed[2:]}
    process = bench._seats[passed[2].sha256].worker
    again = do(Try("kernel", {"attention.py": f"# 2\n{GOOD}"}))  # frozen, and goes on where it is asked
    assert again.reply.passed and bench._seats[passed[2].sha256].worker is process
    wrong = do(Try("kernel", {"attention.py": GOOD.replace("out.copy_(", "out.copy_(2 * ")}))
    assert not wrong.reply.passed and wrong.manifest.sha256 not in seats()
    assert len(seats()) == RESTING
    for m in passed:
        bench.dismiss(m)
    assert seats() == {}
