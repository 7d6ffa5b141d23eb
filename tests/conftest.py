"""Shared by tests: a tiny task of one's own, and candidates written on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.worker.sandbox import NoSandbox, Sandbox, find_sandbox

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # as many test processes as cores: their threads would wait for each other
    torch.set_num_threads(1)


def _sandbox() -> Sandbox | None:
    try:
        return find_sandbox()
    except NoSandbox:
        return None


SANDBOX = _sandbox()  # None: this machine cannot confine; tests that are about confining are skipped
needs_sandbox = pytest.mark.skipif(SANDBOX is None, reason="no sandbox is to be had on this machine")

# Hostile kernels whose times count (none that is ok may be quicker than honest work), faulty ones, odd but honest
# ones: a session of their own, `nox -s hacks`, on a machine with nothing beside them.
CORPUS = (
    "hacks/test_timing.py",
    "hacks/test_grader.py",
    "honest/",
    "faults/",
    "test_lost_workers.py",
    "test_soak.py",
)
# Files that take longest: they come first, so that no process is left with one while the others are done.
LONGEST = (
    "hacks/test_work.py",
    "test_resume.py",
    "test_generation_commands.py",
    "test_pipeline.py",
    "docs/test_commands.py",
    "tl/test_numba.py",
    "build/",
    "worker/test_worker.py",
    "test_workshop.py",
    "tl/test_triton.py",
    "test_presses.py",
    "verify/test_controls.py",
    "reports/test_site_browser.py",
    "tl/test_reference.py",
    "tl/test_tl_cli.py",
)
# Tests that hold bounds of time: two of them at once would measure each other (`nox -s tests` runs the
# rest on two cores first, then these).
ALONE = ("benchmarks/", "measure/", "tasks/test_suite.py", "test_cli.py", "tl/test_speed.py")

TINY_TASK = '''
"""A tiny causal task for tests."""
from tasks.masks import causal, causal_pairs
from tasks.spec import Task, Workload

def shape(n):
    return Workload("tiny", 1, 2, 2, n, n, 32, 32, "fp32")

TASK = Task(
    name="tiny", title="Tiny causal", description="Causal attention, small.", math="o = softmax(q k) v",
    mask=causal, visible_pairs=causal_pairs, causal=True,
    workloads={"smoke": (shape(64), shape(96), shape(128)), "hidden": (shape(33), shape(65))},
)
'''

GOOD = """
import torch

def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must run alone, and what has a session of its own; the longest come first."""
    items.sort(key=lambda item: next((n for n, f in enumerate(LONGEST) if _place(item).startswith(f)), 99))
    for item in items:
        place = _place(item)
        if place.startswith(ALONE):
            item.add_marker("alone")
        if place.startswith(CORPUS) and not item.get_closest_marker("gpu"):
            item.add_marker("corpus")


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


@pytest.fixture
def tiny_tasks(tmp_path: Path) -> Path:
    """A folder with the task `tiny`."""
    folder = tmp_path / "my_tasks"
    folder.mkdir()
    (folder / "tiny.py").write_text(TINY_TASK)
    return folder


@pytest.fixture
def write_candidate(tmp_path: Path):
    """Write a torch candidate for `tiny` from its source; returns its folder."""

    def write(name: str, source: str = GOOD, backend: str = "torch") -> Path:
        folder = tmp_path / "candidates" / name
        folder.mkdir(parents=True)
        (folder / "candidate.toml").write_text(f'task = "tiny"\nbackend = "{backend}"\n')
        (folder / "attention.py").write_text(source)
        return folder

    return write
