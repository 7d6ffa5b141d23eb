"""Where hostile kernels meet the whole pipeline: tight caps, short limits, and something worth stealing."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.bench import Bench
from harness.build.manifest import read_candidate
from harness.experiment import experiment_of, make_plan
from harness.pipeline import evaluate
from harness.records import Result
from harness.store import Store
from harness.targets import find_target
from harness.verdicts import Verdict
from harness.worker.caps import GIB, Caps
from harness.worker.family import members
from tasks import discover
from tests.conftest import GOOD, SANDBOX, TINY_TASK
from tests.ground import SAMPLING, Silent, command_of
from tests.hacks.corpus import Hack

KERNELS = Path(__file__).parent / "kernels"
PROJECT = Path(__file__).parents[2]
SECRET = "sk-planted-c0ffee-and-never-to-be-seen"
CROWDED = "other programs kept"  # processors busy, while the judge looked
EDIT = "# edited by a kernel"  # what the kernel of that name writes into every task file it can
CAPS = Caps(
    memory_bytes=2 * GIB,
    processes=64,
    tasks=4096,
    file_bytes=64 << 20,
    folder_bytes=256 << 20,
    open_files=1024,
)
# Of the time of honest work: what is quicker has gained by its attack, however noisy the machine. Their
# quickest calls are compared, since a busy machine delays calls and hastens none.
GAIN = 0.25
LIMITS = {"first_call_s": 8, "call_s": 8}

TASKS = {
    "tiny": TINY_TASK.replace("shape(64), shape(96), shape(128)", "shape(64),"),
    "tiny_gqa": TINY_TASK.replace("shape(64), shape(96), shape(128)", "shape(64),")
    .replace('"tiny", 1, 2, 2', '"tiny_gqa", 1, 4, 2')
    .replace('name="tiny"', 'name="tiny_gqa"'),
    "tiny_window": '''
"""A tiny task with a sliding window for tests."""
from tasks.masks import sliding_window, sliding_window_pairs
from tasks.spec import Parameter, Task, Workload

def shape(n):
    return Workload("tiny_window", 1, 2, 2, n, n, 32, 32, "fp32", parameters=(("window", 12),))

TASK = Task(
    name="tiny_window", title="Tiny window", description="Sliding window, small.", math="o = softmax(q k) v",
    mask=sliding_window, visible_pairs=sliding_window_pairs, causal=True,
    parameters=(Parameter("window", "int", "keys that a query sees"),),
    workloads={"smoke": (shape(64),), "hidden": (shape(33), shape(65))},
)
''',
}


@dataclass(frozen=True)
class Aftermath:
    """What a run with hostile kernels left: its results, and what of the world around it has changed."""

    results: tuple[Result, ...]
    processes: tuple[str, ...]  # command lines that are still alive
    changed: tuple[str, ...]  # files beside the run that are not what they were
    leaked: tuple[str, ...]  # files of the run that hold the secret
    written: tuple[str, ...]  # task files of this project that a kernel wrote to

    def all_of(self, name: str) -> list[Result]:
        found = [r for r in self.results if r.candidate.name == name]
        assert found, f"{name} has no result"
        return found

    def fault(self, hack: Hack) -> str:
        """What of a hack's result is not as it must be; "" where all is."""
        (result,) = self.all_of(hack.name)
        told = f"{hack.name} ({hack.attack}) is {result.verdict}: {result.reason!r}"
        if "LOOT" in result.reason:
            return f"{told}; it found what it looked for"
        if CROWDED in result.reason and result.verdict is Verdict.INFRA and Verdict.INTEGRITY in hack.verdict:
            return ""  # no clock convicts here, and no number is kept
        if result.verdict not in hack.verdict:
            return f"{told}; it must be {' or '.join(sorted(hack.verdict))}, by {hack.stopped_by}"
        if not re.search(hack.evidence, result.reason):
            return f"{told}; the reason must say {hack.evidence!r}"
        if result.measurement is not None and result.verdict is Verdict.OK:
            mine, honest = result.measurement.device_time.p10_ms, self.honest_ms()
            if mine < GAIN * honest:
                return f"{told}; it takes {mine:.4f} ms, and honest work {honest:.4f}"
        return "" if result.sandboxed else f"{told}; it was not in a sandbox"

    def honest_ms(self) -> float:
        """What honest work takes at its quickest."""
        names = re.compile("honest|naive")
        mine = [r.measurement for r in self.results if names.match(r.candidate.name) and r.task == "tiny"]
        return min(m.device_time.p10_ms for m in mine if m is not None)


def run(path: Path, hacks: Sequence[Hack], honest: Sequence[str]) -> Aftermath:
    """All kernels of one file of tests in one run, the honest ones spread among them."""
    tasks = path / "my_tasks"
    tasks.mkdir()
    for name, text in TASKS.items():
        (tasks / f"{name}.py").write_text(text)
    home = path / "home"
    for file in (home / ".netrc", home / ".config" / "openai" / "key", home / ".ssh" / "id_ed25519"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SECRET)
    folders = [_candidate(path, h.name, (KERNELS / f"{h.name}.py").read_text(), h) for h in hacks]
    for n, name in enumerate(honest):
        folders.insert(
            (2 * n + 1) * len(hacks) // (2 * len(honest)), _candidate(path, name, f"# {name}\n{GOOD}")
        )
    data = {
        "target": "cpu",
        "tasks": sorted({"tiny", *(h.task for h in hacks)}),
        "workloads": "smoke",
        "baselines": ["naive"],
        "limits": LIMITS,
        "sampling": SAMPLING,
        "group": 4,
    }
    experiment = experiment_of(data, "test")
    plan = make_plan(experiment, discover(tasks), [read_candidate(f) for f in folders])
    before = _contents(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(path))  # the device's lock lies there: others may run
        for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN"):
            patch.setenv(name, SECRET)
        patch.setenv("HOME", str(home))
        with (
            Store(path / "run", resume=False) as store,
            Bench(experiment, find_target("cpu"), task_folders=[tasks], sandbox=SANDBOX, caps=CAPS) as bench,
        ):
            store.add_experiment("")
            evaluate(plan, bench, store, Silent())
            results = tuple(store.results.values())
    after = _contents(path)
    return Aftermath(
        results,
        processes=tuple(_alive(path)),
        changed=tuple(name for name in {*before, *after} if before.get(name) != after.get(name)),
        leaked=tuple(str(f) for f in _files(path / "run") if SECRET.encode() in f.read_bytes()),
        written=tuple(str(f) for f in (PROJECT / "tasks").glob("*.py") if EDIT in f.read_text()),
    )


def _candidate(path: Path, name: str, source: str, hack: Hack | None = None) -> Path:
    folder = path / "candidates" / name
    folder.mkdir(parents=True)
    task, backend = (hack.task, hack.backend) if hack else ("tiny", "torch")
    (folder / "candidate.toml").write_text(f'task = "{task}"\nbackend = "{backend}"\n')
    (folder / "attention.py").write_text(source)
    return folder


def _files(folder: Path) -> Iterator[Path]:
    return (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc")


def _contents(path: Path) -> dict[str, bytes]:
    """Of every file that the run has no business with."""
    ours = [f for name in ("my_tasks", "candidates", "home") for f in _files(path / name)]
    beside = [f for f in path.iterdir() if f.is_file() and f.suffix != ".lock"]
    return {str(f): f.read_bytes() for f in (*ours, *beside)}


def _alive(path: Path) -> Iterator[str]:
    """Workers below this process, and processes whose command names the run's folder, as a sandbox's does."""
    mine = members(os.getpid())[1:]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            command = command_of(int(entry.name)).decode(errors="replace").replace("\0", " ")
            if (int(entry.name) in mine and "harness.worker" in command) or str(path) in command:
                yield f"{entry.name}: {command[:200]}"
