"""A worker is another process that may be as hostile as it likes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from harness.build.manifest import read_candidate
from harness.verdicts import Verdict
from harness.verify.acceptance import accept
from harness.verify.exam import Exam, ImageStore, Limits, Question, Rejected, rejection_of
from harness.worker.family import freeze
from harness.worker.loading import packed
from harness.worker.pool import WorkerPool
from harness.worker.protocol import RequestFailed, WorkerDied, WorkerTimeout
from tasks import find
from tests.conftest import GOOD, SANDBOX

CPU = torch.device("cpu")
LIMITS = Limits(load_s=30, first_call_s=6, call_s=6)


def loading(folder: Path) -> dict[str, object]:
    """A request to load the torch candidate in a folder."""
    source = packed("k", read_candidate(folder).files)
    return {"kernel": "k", "source": source, "entry": "attention.py", "backend": "torch"}


@pytest.fixture
def pool():
    pool = WorkerPool("cpu", sandbox=SANDBOX)
    yield pool
    pool.close()


@pytest.fixture
def sit(pool, tiny_tasks, write_candidate):
    """Put a candidate through the first look on the task `tiny`; returns the checks."""
    task = find("tiny", tiny_tasks)
    images = ImageStore()

    def examine(source: str, recipes: tuple[str, ...] = ("normal", "large_logits")):
        folder = write_candidate(f"c{time.monotonic_ns()}", source)
        worker = pool.take(refill=False)
        worker.ask("load", loading(folder), limit_s=30)
        asked = [(w, [Question(r, 7) for r in recipes]) for w in task.workloads["hidden"]]
        return worker, lambda: accept(
            worker, "k", asked, lambda w, qs: Exam(task, w, qs, images, CPU, LIMITS, [tiny_tasks])
        )

    yield examine
    images.close()


def body(lines: str) -> str:
    """The good kernel with lines added at the end of its function."""
    return GOOD + "".join(f"    {line}\n" for line in lines.splitlines())


def test_a_sound_kernel_passes_every_check(sit):
    _, go = sit(GOOD)
    checks = go()
    assert len(checks) == 4
    assert all(c.passed for c in checks)


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ("out[0, 3, 1, 5] = float('nan')", Verdict.WRONG_NUMERICS),
        ("out[:, -1] = 0", Verdict.WRONG_NUMERICS),
        ("k[0, 0, 0, 0] = 5.0", Verdict.INTEGRITY),
        ("out += torch.rand_like(out) * 1e-7", Verdict.NON_DETERMINISTIC),
        (
            "import ctypes\nctypes.memset(out.data_ptr() + out.numel() * 4, 0, 4)",
            Verdict.OUT_OF_BOUNDS,
        ),
        ("import ctypes\nctypes.memset(out.data_ptr() - 4, 0, 4)", Verdict.OUT_OF_BOUNDS),
        ("raise ValueError('no')", Verdict.CRASH),
        ("import os; os.abort()", Verdict.CRASH),
        ("import os; os._exit(0)", Verdict.CRASH),
        ("import sys; sys.exit(0)", Verdict.CRASH),
        ("import os; os.closerange(0, 100)", Verdict.CRASH),
        ("while True: pass", Verdict.TIMEOUT),
    ],
)
def test_each_way_to_fail_has_its_verdict(sit, lines, verdict):
    worker, go = sit(body(lines))
    with pytest.raises(Rejected) as caught:
        go()
    assert caught.value.verdict is verdict, caught.value.reason
    assert caught.value.reason
    worker.close()
    assert not group_alive(worker.pid)


def test_a_kernel_that_answers_right_only_on_easy_inputs_is_found(sit):
    _, go = sit(body("if q.abs().max() > 8: out.zero_()"), ("normal", "large_logits", "outlier_channels"))
    with pytest.raises(Rejected) as caught:
        go()
    assert caught.value.verdict is Verdict.WRONG_NUMERICS
    assert caught.value.verification is not None
    assert not caught.value.verification.passed


def test_printing_does_not_disturb_the_protocol(sit):
    _, go = sit(body("print('{\"ok\": true}' * 1000)"))
    assert all(c.passed for c in go())


def test_what_a_candidate_prints_last_is_in_the_account_of_its_death(sit):
    _, go = sit(body("import os, sys; print('my last words', flush=True); os.abort()"))
    with pytest.raises(Rejected, match=r"SIGABRT.*my last words"):
        go()


def test_the_environment_is_cleared_and_home_is_private(pool, monkeypatch, write_candidate):
    monkeypatch.setenv("SECRET_API_KEY", "sk-planted")
    folder = write_candidate("peek", "import os\nraise RuntimeError(str(dict(os.environ)))\n")
    worker = pool.take(refill=False)
    with pytest.raises(RequestFailed) as caught:
        worker.ask("load", loading(folder), limit_s=30)
    told = caught.value.message + caught.value.trace
    assert caught.value.kind == "build"
    assert "sk-planted" not in told
    assert "'HOME': '/tmp" in told
    assert f"'HOME': '{os.environ['HOME']}'" not in told


def test_a_stopped_worker_runs_nothing(pool):
    worker = pool.take(refill=False)
    worker.stop()
    time.sleep(0.05)
    assert state_of(worker.pid) == "T"
    worker.cont()
    time.sleep(0.05)
    assert state_of(worker.pid) != "T"


def test_the_pool_hands_out_a_new_worker_each_time(pool):
    first = pool.take()
    pool.bury(first)
    second = pool.take(refill=False)
    assert first.pid != second.pid
    assert not group_alive(first.pid)


def test_an_answer_with_another_nonce_is_a_death(pool):
    worker = pool.take(refill=False)
    worker.post("close_layout", {})
    with pytest.raises(WorkerDied, match="not asked"):
        worker.wait("0" * 32, limit_s=10)
    assert not worker.alive


def test_a_request_past_its_limit_kills_the_worker(pool):
    worker = pool.take(refill=False)
    freeze(worker.pid)
    nonce = worker._post("close_layout", {})
    with pytest.raises(WorkerTimeout):
        worker.wait(nonce, limit_s=0.1)
    assert not worker.alive


def test_workers_end_with_their_judge_however_it_ends(tmp_path: Path):
    script = tmp_path / "judge.py"
    script.write_text(
        "import sys, time\n"
        "from harness.worker.process import Worker\n"
        "worker = Worker('cpu', trusted=False)\n"
        "worker.wait_ready()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    judge = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env, text=True)
    assert judge.stdout is not None
    pid = int(judge.stdout.readline())
    assert group_alive(pid)
    judge.kill()
    judge.wait()
    deadline = time.monotonic() + 5
    while group_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group_alive(pid)


def test_a_baseline_without_memory_is_skipped_and_a_candidate_is_not():
    failed = RequestFailed("out_of_memory", "CUDA out of memory")
    assert rejection_of(failed, trusted=True).verdict is Verdict.SKIPPED
    assert rejection_of(failed).verdict is Verdict.CRASH
    assert rejection_of(RequestFailed("build", "x")).verdict is Verdict.BUILD_ERROR
    assert rejection_of(RequestFailed("cannot_run", "x"), trusted=True).verdict is Verdict.SKIPPED
    for excuse in ("cannot_run", "protocol"):  # else a failure would leave every rate
        assert rejection_of(RequestFailed(excuse, "not my fault")).verdict is Verdict.CRASH
    assert rejection_of(RequestFailed("candidate", " ")).reason  # a record must have one


def group_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return state_of(pid) not in ("Z", "")


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
