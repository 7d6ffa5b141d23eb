"""Where tests run the whole pipeline on the CPU, with real workers: a tiny task and candidates beside it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.bench import Bench
from harness.build.manifest import read_candidate
from harness.experiment import Cell, experiment_of, make_plan
from harness.pipeline import evaluate
from harness.records import Result
from harness.runs import RunSummary
from harness.store import Store
from harness.targets import find_target
from harness.verdicts import Verdict
from harness.worker import family
from tasks import discover
from tests.conftest import GOOD, SANDBOX, TINY_TASK

EXAMPLES = Path(__file__).parents[1] / "examples" / "candidates"
SAMPLING = {"half_width": 0.1, "time_cap_s": 0.4, "block_ms": 15, "min_rounds": 4, "max_rounds": 12}


class Silent:
    """An observer that can act at the n-th result and when a cell begins."""

    def __init__(
        self,
        at: int = -1,
        act: Callable[[], None] = lambda: None,
        at_cell: Callable[[], None] = lambda: None,
    ):
        self.at, self.act, self.at_cell, self.seen = at, act, at_cell, 0

    def begin(self, trials: int, done: int) -> None:
        self.total = trials

    def cell(self, cell: Cell) -> None:
        self.at_cell()

    def recorded(self, result: Result) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.act()


@dataclass
class Ground:
    """A folder to run in: the task `tiny` with the lengths given, candidates, and one run's directory."""

    path: Path
    lengths: tuple[int, ...] = (64,)
    bench: Bench | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        smoke = "".join(f"shape({n})," for n in self.lengths)
        self.tasks = self.path / "my_tasks"
        self.tasks.mkdir()
        text = TINY_TASK.replace("shape(64), shape(96), shape(128)", smoke)
        assert smoke in text
        (self.tasks / "tiny.py").write_text(text)
        self.run_path = self.path / "run"

    def candidate(self, name: str, source: str = GOOD) -> Path:
        """A torch candidate; its content is its own even where its source is another's."""
        folder = self.path / name
        folder.mkdir()
        (folder / "candidate.toml").write_text('task = "tiny"\nbackend = "torch"\n')
        (folder / "attention.py").write_text(f"# {name}\n{source}")
        return folder

    def example(self, name: str, backend: str, entry: str = "attention.py") -> Path:
        """A shipped candidate, for `tiny`."""
        folder = self.path / name
        folder.mkdir()
        for source in (EXAMPLES / name).glob("*.py"):
            (folder / source.name).write_bytes(source.read_bytes())
        toml = f'task = "tiny"\nbackend = "{backend}"\nentry = "{entry}"\n'
        (folder / "candidate.toml").write_text(toml)
        return folder

    def run(
        self,
        folders: Iterable[Path],
        observer: Silent | None = None,
        baselines: Sequence[str] = ("naive",),
        limits: dict[str, float] | None = None,
        group: int = 4,
    ) -> list[Result]:
        """Every trial, once; a run that is there already is resumed."""
        data = {
            "target": "cpu",
            "tasks": ["tiny"],
            "workloads": "smoke",
            "baselines": list(baselines),
            "limits": limits or {"first_call_s": 10, "call_s": 10},
            "sampling": SAMPLING,
            "group": group,
        }
        experiment = experiment_of(data, "test")
        plan = make_plan(experiment, discover(self.tasks), [read_candidate(f) for f in folders])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(self.path))  # the device's lock lies there: others may run
            with (
                Store(self.run_path, resume=(self.run_path / "results.jsonl").exists()) as store,
                Bench(experiment, find_target("cpu"), task_folders=[self.tasks], sandbox=SANDBOX) as bench,
            ):
                self.bench = bench
                store.add_experiment("")
                watcher = observer or Silent()
                evaluate(plan, bench, store, watcher)
                assert watcher.total == len(store.results)
                return list(store.results.values())

    @property
    def summary(self) -> RunSummary:
        """What the last invocation took."""
        return RunSummary.model_validate_json((self.run_path / "summary.jsonl").read_text().splitlines()[-1])

    def kill_library(self) -> None:
        """What an operating system short of memory does."""
        assert self.bench is not None
        os.kill(self.bench.library_worker().pid, signal.SIGKILL)


def of(results: Iterable[Result], name: str) -> list[Result]:
    return [r for r in results if r.candidate.name == name]


def verdicts(results: Iterable[Result], name: str) -> set[Verdict]:
    return {r.verdict for r in of(results, name)}


def workers_left(within_s: float = 5.0) -> list[int]:
    """Processes of workers below this one that have not ended; whatever else a test runner keeps is its own matter."""
    found = [pid for pid in family.members(os.getpid()) if b"harness.worker" in command_of(pid)]
    return [] if family.gone(found, within_s) else found


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
