"""Owns the folders in which commands of the pages are run, and the small form of what they measure.

Command lines stay as the pages have them. What is made smaller: the shipped experiments (short sampling, one
baseline), and in `eval` the tasks (one small workload of each set, one hidden shape).
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.experiment import SHIPPED
from tasks import Task, registry
from tests.command import Done, attnbench
from tests.docs.ledger import ASK, EVAL, EXPORT, GENERATION, IMPORT, RUN, Step
from tests.docs.pages import ROOT, blocks, files

PAPER = ROOT / "reports" / "published" / "h100-2026-11-23-paper"
ANSWER = "```python\nimport torch\n\ndef attention(q, k, v, out, *, scale):\n    out.zero_()\n```\n"
STEPS = {step.line: step for step in RUN}

SMALL = {
    "cpu": """
target = "cpu"
tasks = ["mha", "mha_causal"]
workloads = "smoke"
dtypes = "fp32"
baselines = ["sdpa-flash"]
candidates = ["my_kernels"]
[sampling]
half_width = 0.9
time_cap_s = 0.05
block_ms = 1
min_rounds = 2
max_rounds = 2
""",
    "t4": f"""
target = "t4"
tasks = ["mha_causal"]
workloads = "models"
candidates = ["{ROOT}/examples/candidates/cuda_plain"]
""",
    "a100": 'target = "a100"\ntasks = ["mha_causal"]\nworkloads = "models"\n',
    "h100": (PAPER / "experiment.toml").read_text(),
    "h100-generation": """
target = "h100"
tasks = ["mha_causal", "gqa_causal"]
workloads = "models"
dtypes = "fp16"
methods = ["vanilla"]
models = "deferred:claude"
""",
    "h100-cuda": """
target = "h100"
tasks = ["mha_causal"]
workloads = "models"
dtypes = "fp16"
methods = ["vanilla"]
models = "deferred:claude"
backends = "cuda"
""",
}


class Grounds:
    """Folders by name, made when they are first needed; a command line is run once on each."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done: dict[tuple[str, str], Done] = {}
        experiments = root / "experiments"
        experiments.mkdir()
        for file in SHIPPED.glob("*.toml"):  # those that no step needs smaller are as shipped
            (experiments / file.name).write_text(SMALL.get(file.stem) or file.read_text())
        self._experiments = experiments

    def folder(self, name: str) -> Path:
        """The folder of a ground."""
        folder = self._root / name
        if not folder.exists():
            folder.mkdir()
            PREPARE.get(name, lambda _: None)(folder)
        return folder

    def do(self, step: Step) -> Done:
        """What became of a step; what it needs is done before."""
        for line in step.needs:
            self.do(STEPS[line])
        key = (step.ground, step.run)
        if key not in self._done:
            folder = self.folder(step.ground)
            before = {p.name for p in folder.glob("runs/*")}
            words = shlex.split(step.run)
            with self._small(words[1]):
                self._done[key] = attnbench(*words[1:], cwd=folder)
            after(step, folder, before)
        return self._done[key]

    @contextmanager
    def _small(self, command: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("harness.experiment.SHIPPED", self._experiments)
            patch.setattr(tempfile, "tempdir", str(self._root))  # the device's lock is there
            if command == "eval":
                load = registry._load_folder
                patch.setattr(registry, "_load_folder", lambda folder: tuple(map(small, load(folder))))
            yield


def small(task: Task) -> Task:
    """The task with one workload in each set: its first, and in `smoke` and `hidden` one of a few tokens."""
    sets = {name: found[:1] for name, found in task.workloads.items()}
    first = task.workloads["smoke"][0].with_(batch=1, seq_q=48, seq_k=48, dim=32, dim_v=32)
    return replace(task, workloads={**sets, "smoke": (first,), "hidden": (first.with_(seq_q=33, seq_k=65),)})


def after(step: Step, folder: Path, before: set[str]) -> None:
    """What a reader does between two commands of a page: looks up the run's name, writes answers."""
    if step.run == EVAL:
        (new,) = {p.name for p in folder.glob("runs/*")} - before
        (folder / "runs" / new).rename(folder / "runs" / "NAME")
    if step.run == EXPORT:
        for question in (folder / "questions").glob("*.md"):
            question.with_suffix(".answer.md").write_text(ANSWER)


def _kernels(folder: Path) -> None:
    for name, text in files("docs/write-a-kernel.md").items():
        if name.startswith("plain/"):
            _write(folder / "my_kernels" / name, text)
    (mine,) = (text for text in blocks("docs/write-a-kernel.md", "toml") if "my_kernels" in text)
    _write(folder / "mine.toml", mine)
    (example,) = (text for text in blocks("docs/tasks.md", "python") if "TASK = Task(" in text)
    _write(folder / "my_tasks" / "strided.py", example)
    strider = folder / "my_kernels" / "strider"
    _write(strider / "candidate.toml", 'task = "strided"\nbackend = "torch"\n')
    _write(strider / "attention.py", STRIDER)


STRIDER = """
import torch


def attention(q, k, v, out, *, scale, stride):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    seq_q, seq_k = q.shape[-2], k.shape[-2]
    distance = torch.arange(seq_q)[:, None] + seq_k - seq_q - torch.arange(seq_k)[None]
    seen = (distance >= 0) & (distance % stride == 0)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    out.copy_((torch.softmax(scores, -1).nan_to_num(0.0) @ v).transpose(1, 2))
"""


def _language(folder: Path) -> None:
    (folder / "harness").symlink_to(ROOT / "harness")
    _write(folder / "first.tl", blocks("docs/tl.md", "tl")[0])


def _published(folder: Path) -> None:
    (folder / "reports").symlink_to(ROOT / "reports")
    leave = shutil.ignore_patterns("report")
    shutil.copytree(ROOT / GENERATION, folder / "runs" / "gen", ignore=leave)
    lines = (PAPER / "results.jsonl").read_text().splitlines(keepends=True)
    for name, task in (("a", "mha"), ("b", "mha_causal")):
        part = folder / "runs" / name
        shutil.copytree(PAPER, part, ignore=leave)
        mine = [line for line in lines if json.loads(line)["task"] == task]
        (part / "results.jsonl").write_text("".join(mine))
        text = (part / "experiment.toml").read_text()
        (part / "experiment.toml").write_text(text.replace('["mha", "mha_causal"]', f'["{task}"]'))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


PREPARE = {"kernels": _kernels, "language": _language, "published": _published}
assert {ASK, IMPORT} <= set(STEPS)
