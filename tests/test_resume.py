"""kill -9 at random moments, then --resume: the same results, none twice, nothing left running."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
KILLS = 5


@pytest.fixture
def experiment(tmp_path, tiny_tasks) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT)
    return file


def start(experiment: Path, tasks: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    # A temporary folder of its own: the lock of the device lies there, and another run may hold it.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(experiment.parent)}
    command = [sys.executable, "-m", "harness.cli", "eval", str(experiment), "--tasks", str(tasks)]
    return subprocess.Popen(
        [*command, "--out", str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=experiment.parent,
    )


def resume_of(run: Path) -> list[str]:
    """The option, where there is a run to resume."""
    return ["--resume"] if (run / "experiment.toml").exists() else []


def recorded(run: Path) -> list[str]:
    """Ids of the whole lines."""
    file = run / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["id"] for line in lines if line.endswith(b"\n")]


def none_left(folder: Path) -> bool:
    """Whether every worker of runs in `folder` is gone; the kernel may take a moment to bury them."""
    deadline = time.monotonic() + 5
    while workers(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not workers(folder)


def workers(folder: Path) -> set[int]:
    """Process ids of workers whose private folders lie in `folder`."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"harness.worker.child" in (process / "cmdline").read_bytes() and (
                str(folder).encode() in (process / "environ").read_bytes()
            ):
                found.add(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_five_kills_lose_nothing_and_repeat_nothing(experiment, tiny_tasks, tmp_path):
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}")
    whole = tmp_path / "whole"
    began = time.monotonic()
    process = start(experiment, tiny_tasks, whole)
    assert process.wait(120) == 0, process.stderr.read()
    length = time.monotonic() - began
    expected = recorded(whole)
    assert len(expected) == 9

    run = tmp_path / "killed"
    hits = 0
    for _ in range(4 * KILLS):
        if len(recorded(run)) == len(expected):
            (run / "results.jsonl").unlink()  # done before its kill came: once more from the start
        process = start(experiment, tiny_tasks, run, *resume_of(run))
        try:
            process.wait(chance.uniform(0.2, 0.75) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hits += 1
        if hits == KILLS:
            break
    assert hits == KILLS
    process = start(experiment, tiny_tasks, run, *resume_of(run))
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error + out
    ids = recorded(run)
    assert sorted(ids) == sorted(set(ids)) == sorted(expected)
    assert none_left(tmp_path)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_go_on(experiment, tiny_tasks, tmp_path, which):
    run = tmp_path / "run"
    process = start(experiment, tiny_tasks, run)
    deadline = time.monotonic() + 60
    while not recorded(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers(tmp_path)  # there are some to be left
    process.send_signal(which)
    out, error = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 130, error + out
    assert "--resume" in error
    assert str(run) in error
    assert "Traceback" not in error
    assert recorded(run)
    assert json.loads((run / "summary.jsonl").read_text().splitlines()[-1])["interrupted"]
    assert none_left(tmp_path)
