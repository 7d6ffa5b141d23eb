"""The library worker is lost at every moment of a cell: every trial has its result, and the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from harness import race
from harness.measure.session import Session
from harness.verdicts import Verdict
from harness.verify.exam import Exam
from tests.ground import Ground, Silent, of, verdicts

# What is called when the worker is lost, and the how-manieth call of it in a cell (later cells only).
MOMENTS = {
    "before its first call": (Exam, "admit", 1),
    "while a baseline is verified": (Exam, "prepare", 2),
    "while a candidate is verified": (Exam, "admit", 2),
    "while a baseline is planned": (race, "plan", 1),
    "before the session": (race, "latency", 1),
    "in a block": (Session, "_block", 5),
    "between the phases": (Session, "_stop_records", 1),
}
LENGTHS = tuple(range(64, 64 + 8 * (1 + len(MOMENTS)), 8))  # in the first cell nothing is lost


class Loss:
    """Kills the library worker once in each cell, at the moment that belongs to the cell."""

    def __init__(self, ground: Ground, patch: pytest.MonkeyPatch) -> None:
        self.ground, self.cell, self.calls, self.killed = ground, -1, Counter[str](), set[str]()
        for moment, (owner, name, _) in MOMENTS.items():
            patch.setattr(owner, name, self.lossy(moment, getattr(owner, name)))

    def begin(self) -> None:
        self.cell += 1
        self.calls.clear()

    def lossy(self, moment: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            self.calls[moment] += 1
            here = self.cell and list(MOMENTS)[self.cell - 1] == moment
            if here and self.calls[moment] == MOMENTS[moment][2]:
                self.ground.kill_library()
                self.killed.add(moment)
            return function(*args, **more)

        return call


def test_the_death_of_the_library_worker_loses_nothing(tmp_path, monkeypatch):
    ground = Ground(tmp_path, LENGTHS)
    loss = Loss(ground, monkeypatch)
    results = ground.run([ground.candidate("good")], Silent(at_cell=loss.begin), ("sdpa-flash", "naive"))
    assert loss.killed == set(MOMENTS)
    assert len(results) == len({r.id for r in results}) == 3 * len(LENGTHS)
    assert verdicts(results, "good") == {Verdict.OK}
    for cell, length in enumerate(LENGTHS):
        moment = list(MOMENTS)[cell - 1] if cell else "never"
        here = [r for r in results if r.workload.seq_q == length and r.candidate.kind == "baseline"]
        found = Counter(r.verdict for r in here)
        assert found[Verdict.OK] >= 1, moment  # the one that ran just then may be blamed, no other
        assert found.keys() <= {Verdict.OK, Verdict.CRASH}, moment
        if moment in ("never", "before its first call"):
            assert found[Verdict.OK] == 2, moment


def test_a_later_group_loses_nothing_either(tmp_path):
    ground = Ground(tmp_path)
    folders = [ground.candidate(f"good{n}") for n in range(2)]
    results = ground.run(folders, Silent(at=2, act=ground.kill_library), group=1)
    assert [len(of(results, name)) for name in ("naive", "good0", "good1")] == [1, 1, 1]
    assert {r.verdict for r in results} == {Verdict.OK}
