"""What can go wrong on a machine, on purpose: the run goes on or stops cleanly, and everything is kept.

Bad kernels share one run with sound ones that must not suffer. What only a GPU can do lies in `gpu`.
"""

from __future__ import annotations

import ast
import contextlib
import datetime as datetime_module
import errno
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import pipeline
from harness.bench import Bench, MachineError
from harness.entrants import Entrant
from harness.exits import EXIT_STORE
from harness.measure.session import Session
from harness.measure.telemetry import NvmlTelemetry
from harness.records import Result, Telemetry
from harness.seals import read_result
from harness.store import StoreError
from harness.verdicts import Verdict
from harness.verify.exam import Exam
from harness.worker import family, process
from harness.worker.caps import GIB, Caps
from harness.worker.family import members
from harness.worker.process import Worker
from harness.worker.protocol import RequestFailed, WorkerError
from tests import ground as ground_module
from tests.conftest import GOOD, SANDBOX
from tests.ground import Ground, Silent, command_of, of, verdicts, workers_left

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # a run with twenty workers, on a machine that does much else
CAPS = Caps(
    memory_bytes=3 * GIB // 4,
    processes=64,
    tasks=8192,
    file_bytes=GIB // 4,
    folder_bytes=GIB // 4,
    open_files=4096,
)
LIMITS = {"load_s": 20, "first_call_s": 12, "call_s": 12}

# A kernel that is sound until its first call; then `{}` happens.
THEN = GOOD + "    {}\n"
FULL_MEMORY = """
import torch

HELD = []

def attention(q, k, v, out, *, scale):
    while True:
        HELD.append(torch.ones(8 << 20))  # 32 MiB, and all of it written
"""
FULL_OF_CHILDREN = """
import subprocess, sys, time

def attention(q, k, v, out, *, scale):
    fill = "import time; x = bytearray(80 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(600)"
    children = [subprocess.Popen([sys.executable, "-c", fill]) for _ in range(12)]
    for child in children:
        child.wait()
"""
DEEP = """
import sys

sys.setrecursionlimit(10**9)

class Deep:
    def __repr__(self):
        return repr([Deep()])

"""
NUMBA_DEEP = """
import numba

@numba.njit("float64(float64)")
def fall(x):
    if x < 0.0:
        return x
    return fall(x + 1.0) ** 1.5 + x

def attention(q, k, v, out, *, scale):
    fall(0.0)
"""
COMPILER_FALLS = """
import ast, sys

sys.setrecursionlimit(10**9)
at = {"lineno": 1, "col_offset": 0}
tree = ast.Constant(1, **at)
for _ in range(10**5):
    tree = ast.UnaryOp(ast.USub(), tree, **at)
compile(ast.Expression(tree), "deep", "eval")
"""
CHILD_CRASHES = (
    "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; os.abort()'], check=True)\n"
)
CHILD_HANGS = "import subprocess\nsubprocess.run(['sleep', '600'], check=True)\n"
FULL_FOLDER = """
import tempfile, pathlib

def attention(q, k, v, out, *, scale):
    for n in range(10**6):
        pathlib.Path(tempfile.gettempdir(), f"{n}").write_bytes(bytes(32 << 20))
"""
OVER = r"GiB of host memory, and 0\.8 are allowed"
FAULTS: dict[str, tuple[str, Verdict, str]] = {
    "loops": (THEN.format("while True: pass"), Verdict.TIMEOUT, "time limit"),
    # in C, with the interpreter's lock held: nothing in the worker can answer
    "loops_in_c": (
        THEN.format("import ctypes; ctypes.PyDLL(None).sleep(10**6)"),
        Verdict.TIMEOUT,
        "time limit",
    ),
    "fills_memory": (FULL_MEMORY, Verdict.CRASH, OVER),
    "asks_for_too_much": (
        THEN.format("torch.empty(1 << 48)"),
        Verdict.CRASH,
        "allocate memory|overflow|sizes",
    ),
    "recurses": (THEN.format("f = lambda: f(); f()"), Verdict.CRASH, "RecursionError"),
    "overflows_the_stack": (DEEP + THEN.format("repr(Deep())"), Verdict.CRASH, "SIGSEGV"),
    "overflows_in_numba": (NUMBA_DEEP, Verdict.CRASH, "SIGSEGV"),
    "compiler_overflows": (COMPILER_FALLS + GOOD, Verdict.CRASH, "SIGSEGV"),
    "compiler_crashes": ("import ctypes; ctypes.string_at(0)\n", Verdict.CRASH, "SIGSEGV"),
    "compilers_process_crashes": (CHILD_CRASHES, Verdict.BUILD_ERROR, "SIGABRT"),
    "compiles_forever": ("while True: pass\n", Verdict.TIMEOUT, "time limit"),
    "compilers_process_hangs": (CHILD_HANGS, Verdict.TIMEOUT, "time limit"),
    "loses_its_device": (
        THEN.format("raise RuntimeError('CUDA error: an illegal memory access was encountered')"),
        Verdict.CRASH,
        "CUDA error",
    ),
}
CONFINED = {  # kernels that only a sandbox or its caps hold back
    "fills_memory_by_children": (FULL_OF_CHILDREN, Verdict.CRASH, OVER),
    "fills_its_folder": (FULL_FOLDER, Verdict.CRASH, "No space left"),
}
if SANDBOX is not None:
    FAULTS |= CONFINED
SOUND = 4


class Small(Bench):
    """A bench on a small machine."""

    def __init__(self, *args, **more) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **{"caps": CAPS} | more)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """All faults in one run, and sound kernels among them."""
    ground = Ground(tmp_path_factory.mktemp("faulty"))
    folders = [ground.candidate(name, source) for name, (source, _, _) in FAULTS.items()]
    for n in range(SOUND):
        folders.insert(5 * n + 1, ground.candidate(f"sound{n}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_module, "Bench", Small)
        return ground.run(folders, limits=LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_kernel_is_its_own(faulty, name):
    _, verdict, reason = FAULTS[name]
    (result,) = of(faulty, name)
    assert result.verdict is verdict, result.reason
    assert re.search(reason, result.reason), result.reason


@pytest.mark.slow
def test_sound_kernels_do_not_suffer_from_faults_beside_them(faulty):
    for name in ["naive", *(f"sound{n}" for n in range(SOUND))]:
        (result,) = of(faulty, name)
        assert result.verdict is Verdict.OK, (name, result.reason)
    assert len(faulty) == len({r.id for r in faulty}) == 1 + len(FAULTS) + SOUND


@pytest.mark.slow
def test_nothing_of_them_is_left_running(faulty):
    assert workers_left() == []


# --- killed from outside ------------------------------------------------------------------------------

# candidate -> what is called when its worker is killed, the how-manieth call of it, and who is killed how
KILLS: dict[str, tuple[type, str, int, str, signal.Signals]] = {
    "verified_kill": (Exam, "run", 3, "first", signal.SIGKILL),
    "verified_term": (Exam, "run", 5, "first", signal.SIGTERM),
    "verified_inner": (Exam, "run", 4, "last", signal.SIGKILL),
    "timed_kill": (Session, "_block", 3, "first", signal.SIGKILL),
    "timed_term": (Session, "_block", 2, "first", signal.SIGTERM),
    "timed_inner": (Session, "_block", 5, "last", signal.SIGKILL),
}


def _strike(worker: Worker, who: str, how: signal.Signals) -> None:
    """As the operating system, or a person in the wrong terminal, does it."""
    found = members(worker.pid)
    os.kill(found[0] if who == "first" else found[-1], how)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Result], set[str]]:
    """A run in which the workers of six sound kernels are killed by others, and two are left alone."""
    ground = Ground(tmp_path_factory.mktemp("killed"))
    folders = [ground.candidate(name) for name in (*KILLS, "spared0", "spared1")]
    workers: dict[int, str] = {}
    calls: dict[tuple[str, str], int] = {}
    struck: set[str] = set()

    def watched(method: str, function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def call(self: object, *args: object, **more: object) -> object:
            subject = args[0]
            worker = subject if isinstance(subject, Worker) else subject.worker  # type: ignore[attr-defined]
            name = workers.get(id(worker), "")
            count = calls[method, name] = calls.get((method, name), 0) + 1
            if name in KILLS and KILLS[name][1:3] == (method, count) and name not in struck:
                struck.add(name)
                _strike(worker, *KILLS[name][3:])
            return function(self, *args, **more)

        return call

    build = pipeline.build

    def known(trial, bench):  # type: ignore[no-untyped-def]
        entrant: Entrant = build(trial, bench)
        if entrant.is_candidate:
            workers[id(entrant.worker)] = entrant.name
            KEPT.append(entrant.worker)
        return entrant

    KEPT: list[Worker] = []  # so that no two have the same id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "build", known)
        for owner, method in {(owner, method) for owner, method, *_ in KILLS.values()}:
            patch.setattr(owner, method, watched(method, getattr(owner, method)))
        return ground.run(folders, limits=LIMITS), struck


@pytest.mark.slow
def test_a_worker_that_is_killed_from_outside_ends_no_run(killed):
    results, struck = killed
    assert struck == set(KILLS)
    assert len(results) == len({r.id for r in results}) == 1 + len(KILLS) + 2
    for name in ("naive", "spared0", "spared1"):
        assert verdicts(results, name) == {Verdict.OK}, of(results, name)[0].reason
    for name in KILLS:
        (result,) = of(results, name)
        assert result.verdict in (Verdict.CRASH, Verdict.INFRA, Verdict.OK)
        assert result.verdict is Verdict.OK or re.search("SIGKILL|SIGTERM|gone|closed", result.reason)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in KILLS if not n.endswith("inner")])
def test_a_kernel_is_not_blamed_for_a_kill_from_outside(killed, name):
    results, _ = killed
    assert verdicts(results, name) <= {Verdict.OK, Verdict.INFRA}


LEAVES_A_CHILD = "import subprocess\n" + THEN.format(
    "subprocess.Popen(['sleep', '86399'], start_new_session=True); import os; os._exit(0)"
)


def _sleepers() -> list[int]:
    found = [
        int(p.name) for p in Path("/proc").glob("[0-9]*") if command_of(int(p.name)) == b"sleep\x0086399\0"
    ]
    return [] if family.gone(found, within_s=2) else found


@pytest.mark.parametrize(
    "confined",
    [
        pytest.param(True, marks=pytest.mark.skipif(SANDBOX is None, reason="no sandbox here")),
        # Without a sandbox a process of another group lives on: docs say so, and the mark fails if it ends.
        pytest.param(
            False, marks=pytest.mark.xfail(strict=True, reason="Worker.kill leaves what a dead one began")
        ),
    ],
)
def test_what_a_kernel_started_ends_with_it(tmp_path, monkeypatch, confined):
    ground = Ground(tmp_path)
    if not confined:
        monkeypatch.setattr(ground_module, "SANDBOX", None)
    try:
        results = ground.run([ground.candidate("leaves", LEAVES_A_CHILD)])
        assert verdicts(results, "leaves") == {Verdict.CRASH}
        assert not _sleepers()
    finally:
        for pid in _sleepers():
            os.kill(pid, signal.SIGKILL)


# --- the disk -----------------------------------------------------------------------------------------


def _full_from(nth: int, file: str, patch: pytest.MonkeyPatch) -> None:
    """The disk is full when the n-th line of `file` is to be forced to it."""
    real, seen = os.fsync, [0]

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(file):
            seen[0] += 1
            if seen[0] >= nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    patch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("nth", [1, 3])
def test_a_full_disk_stops_the_run_and_resume_completes_it(tmp_path, nth):
    ground = Ground(tmp_path)
    folders = [ground.candidate(f"good{n}") for n in range(3)]
    before = set(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as patch:
        _full_from(nth, "results.jsonl", patch)
        with pytest.raises(StoreError, match=r"No space left.*kept.*--resume"):
            ground.run(folders)
    file = ground.run_path / "results.jsonl"
    kept = file.read_bytes()
    assert kept.count(b"\n") == nth - 1
    assert kept == b"" or kept.endswith(b"\n")
    assert not workers_left()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the connection of some library may stay
    observer = Silent()
    results = ground.run(folders, observer)
    assert file.read_bytes().startswith(kept)
    assert observer.seen == 4 - (nth - 1)
    assert len(results) == 4
    assert {r.verdict for r in results} == {Verdict.OK}


def test_a_disk_that_fills_before_the_first_trial_says_so_at_once(tmp_path):
    ground = Ground(tmp_path)
    folders = [ground.candidate("good")]
    with pytest.MonkeyPatch.context() as patch:
        _full_from(1, "environment.json.new", patch)
        with pytest.raises(StoreError, match=r"No space left.*--resume"):
            ground.run(folders)
    assert verdicts(ground.run(folders), "good") == {Verdict.OK}


EXPERIMENT = """
target = "cpu"
tasks = ["tiny"]
workloads = "smoke"
baselines = ["naive", "sdpa-math", "sdpa-flash"]
[sampling]
half_width = 0.5
time_cap_s = 0.3
block_ms = 10
min_rounds = 4
max_rounds = 8
"""
# Mounts a disk of so many KiB, runs, and takes away what lies there then.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size}k none {disk} && {command} --out {disk}/run
code=$?
cp -a {disk}/run {saved}
exit $code
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_stops_the_command_and_resume_completes_it(tmp_path, tiny_tasks):
    disk, saved, file = tmp_path / "disk", tmp_path / "saved", tmp_path / "tiny.toml"
    disk.mkdir()
    file.write_text(EXPERIMENT)
    command = [sys.executable, "-m", "harness.cli", "eval", str(file), "--tasks", str(tiny_tasks)]
    script = ON_A_SMALL_DISK.format(size=28, disk=disk, saved=saved, command=" ".join(command))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}

    def done(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=400)

    if done(["unshare", "-rm", "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    found = done(["unshare", "-rm", "sh", "-c", script])
    assert found.returncode == EXIT_STORE, found.stdout + found.stderr
    assert "No space left" in found.stderr and "--resume" in found.stderr
    assert "Traceback" not in found.stderr
    kept = (saved / "results.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") < 9 and kept.endswith(b"\n")
    again = done([*command, "--out", str(saved), "--resume"])
    assert again.returncode == 0, again.stdout + again.stderr
    whole = (saved / "results.jsonl").read_bytes()
    assert whole.startswith(kept)
    assert len({read_result(line).id for line in whole.decode().splitlines()}) == whole.count(b"\n") == 9


def test_a_full_temporary_folder_stops_the_run_with_a_sentence(tmp_path, monkeypatch):
    ground = Ground(tmp_path)
    folders = [ground.candidate(f"good{n}") for n in range(3)]
    real = tempfile.TemporaryDirectory

    def full(*args: object, prefix: str = "", **more: object) -> object:
        if prefix == "attnbench-worker-" and (ground.run_path / "results.jsonl").read_bytes():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, prefix=prefix, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises((WorkerError, MachineError, StoreError)):
        ground.run(folders, group=1)


# --- the clock ----------------------------------------------------------------------------------------

HOURS = [0.0, 7200.0, -86400.0, 3.5e8, -3600.0]


class JumpingDatetime(datetime_module.datetime):
    """Now, give or take some hours."""

    calls = 0

    @classmethod
    def now(cls, tz: datetime_module.tzinfo | None = None) -> datetime_module.datetime:
        cls.calls += 1
        there = datetime_module.timedelta(seconds=HOURS[cls.calls % len(HOURS)])
        return datetime_module.datetime.now(tz) + there


def test_a_clock_that_jumps_moves_no_measurement(tmp_path, monkeypatch):
    ground = Ground(tmp_path)
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + HOURS[calls[0] % len(HOURS)]

    monkeypatch.setattr(time, "time", jumping)
    fake = SimpleNamespace(datetime=JumpingDatetime, UTC=datetime_module.UTC)
    monkeypatch.setattr(pipeline, "datetime", fake)
    begin = time.monotonic()
    folders = [ground.candidate(f"good{n}") for n in range(2)]
    results = ground.run(folders)
    wall = time.monotonic() - begin
    assert {r.verdict for r in results} == {Verdict.OK}
    assert JumpingDatetime.calls >= 4
    assert 0 < ground.summary.wall_s < wall
    assert all(0 <= s < wall for s in ground.summary.stages_s.values())
    for result in results:
        assert all(0 <= s < wall for s in result.cost.wall_s.values())
        assert result.measurement is not None
        assert 0 < result.measurement.device_time.median_ms < wall * 1e3
        assert all(0 <= b.started_s < wall for b in result.measurement.blocks)
    assert len(ground.run(folders)) == 3  # records whose times lie out of order can be read again


def _calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_no_duration_is_taken_from_the_clock_on_the_wall():
    found = {}
    for folder in ("harness", "baselines", "tasks"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            tree = ast.parse(text)
            wall = {c for c in _calls(tree) if c in ("time.time", "time.time_ns", "time.clock_gettime")}
            if file.name == "sight.py":
                wall -= {"time.clock_gettime"}  # of a process's own clock of processor time
            bare = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "time"]
            if wall or any(a.name in ("time", "time_ns") for n in bare for a in n.names):
                found[file.relative_to(ROOT).as_posix()] = wall
            # A date is written down; nothing is taken from it.
            if "datetime" in text:
                taken = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Sub)]
                assert not [n for n in taken if "datetime" in ast.unparse(n)], file
    assert not found


# --- the GPU ------------------------------------------------------------------------------------------


class LostError(Exception):
    """As pynvml raises it."""


class Lost:
    """An NVML whose device is lost after so many questions."""

    NVMLError = LostError
    NVML_CLOCK_SM = NVML_CLOCK_MEM = NVML_TEMPERATURE_GPU = 0

    def __init__(self, answers: int) -> None:
        self.left = answers

    def __getattr__(self, name: str) -> Callable[..., int]:
        def answer(*_: object) -> int:
            self.left -= 1
            if self.left < 0:
                raise LostError("GPU is lost")
            return 1

        return answer


def test_telemetry_of_a_lost_gpu_is_empty():
    source = NvmlTelemetry(Lost(5), None)  # it dies after one sample
    assert source.sample().sm_mhz == 1
    assert source.sample() == Telemetry()
    source.close()


class TheGpuGoes:
    """From some moment on no worker can open its device, and those that had it get errors of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gone = False
        real = process.Worker._post

        def post(worker, op, args, fds=()):  # type: ignore[no-untyped-def]
            # The judge's own device stays, so that what happens to workers is seen apart.
            args = {**args, "device": "cuda:0"} if self.gone and op == "hello" else args
            return real(worker, op, args, fds)

        patch.setattr(process.Worker, "_post", post)

    def go(self) -> None:
        self.gone = True


def _lose_the_gpu(
    path: Path, lengths: tuple[int, ...], group: int, at: int, *, library_too: bool
) -> tuple[list[Result], list[Result]]:
    """Results of a run whose GPU goes after result `at`, however it ends, and those after it was resumed."""
    ground = Ground(path, lengths)
    folders = [ground.candidate(f"good{n}") for n in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        gpu = TheGpuGoes(patch)

        def go() -> None:
            gpu.go()
            if library_too:
                ground.kill_library()

        with contextlib.suppress(WorkerError, MachineError):  # the command says it in one sentence
            ground.run(folders, Silent(at=at, act=go), group=group)
    lines = (ground.run_path / "results.jsonl").read_text().splitlines()
    return [read_result(line) for line in lines], ground.run(folders, group=group)


def test_a_lost_gpu_ends_the_run_cleanly_and_what_was_recorded_is_kept(tmp_path):
    found, again = _lose_the_gpu(tmp_path, (64,), 1, 2, library_too=True)
    assert [r.verdict for r in found] == [Verdict.OK, Verdict.OK]
    assert {r.id for r in found} <= {r.id for r in again}
    assert [r.verdict for r in again] == [Verdict.OK] * 4
    assert not workers_left()


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["a candidate's", "the baselines'"])
def test_a_lost_gpu_convicts_nobody(tmp_path, whose):
    library = whose == "the baselines'"
    lengths, group, at = ((64, 96), 4, 4) if library else ((64,), 1, 2)
    _, again = _lose_the_gpu(tmp_path, lengths, group, at, library_too=library)
    assert len(again) == 4 * len(lengths)
    assert {r.verdict for r in again} <= {Verdict.OK, Verdict.INFRA}


@pytest.mark.slow
@pytest.mark.parametrize("short", ["a neighbour", "the baselines"])
def test_a_kernel_that_filled_the_device_leaves_room_for_others(tmp_path, monkeypatch, short):
    ground = Ground(tmp_path)
    folders = [ground.candidate("greedy", THEN.format("raise RuntimeError('CUDA out of memory')"))]
    folders.append(ground.candidate("good"))
    holders: list[Worker] = []
    build, ask = pipeline.build, Worker.ask

    def known(trial, bench):  # type: ignore[no-untyped-def]
        entrant = build(trial, bench)
        if entrant.name == "greedy":
            holders.append(entrant.worker)
        return entrant

    def crowded(worker, op, *args, **more):  # type: ignore[no-untyped-def]
        short_of_it = worker.trusted == (short == "the baselines") and worker not in holders
        if op == "open_layout" and short_of_it and any(w.alive for w in holders):
            raise RequestFailed("out_of_memory", "CUDA out of memory. Tried to allocate 2.00 GiB")
        return ask(worker, op, *args, **more)

    monkeypatch.setattr(pipeline, "build", known)
    monkeypatch.setattr(Worker, "ask", crowded)
    results = ground.run(folders)
    assert verdicts(results, "greedy") == {Verdict.CRASH}
    assert verdicts(results, "good") == verdicts(results, "naive") == {Verdict.OK}


def test_a_process_that_ends_while_it_is_looked_at_is_no_error(monkeypatch):
    if not family._TELLS_CHILDREN:
        pytest.skip("this kernel does not tell children")

    def vanished(path: object = ".") -> object:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr(os, "scandir", vanished)
    assert family.members(os.getpid()) == [os.getpid()]
