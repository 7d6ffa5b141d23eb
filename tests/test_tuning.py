"""The search of tiles tells how far it is: compilations first, then timings. The GPU's part is played."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from harness import tuning
from harness.targets import find_target
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from tasks import find


class HerePool:
    """Does in this process what a pool would do in others."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def map(self, do: Any, jobs: Iterable[Any], chunksize: int) -> Iterable[Any]:
        return map(do, jobs)


def test_each_compilation_and_each_timing_moves_the_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, target = find("mha_causal"), find_target("h100")
    text = next(e.text for e in corpus("reference") if e.task == task.name)
    program = check(text, task).program
    assert program is not None
    first, second = task.workloads["models"][:2]
    space = tuning.choices(program, target, first.dim, first.dim_v, 2)[:5]
    monkeypatch.setattr(tuning, "ProcessPoolExecutor", HerePool)
    monkeypatch.setattr(tuning, "choices", lambda *_: space)
    monkeypatch.setattr(tuning, "_try", lambda job: "it spills" if job[3] == space[0] else "")
    monkeypatch.setattr(tuning, "_tensors", lambda *_: {})
    monkeypatch.setattr(
        tuning, "_time", lambda folder, task, w, tensors, choice, ms: 1.0 + space.index(choice)
    )
    monkeypatch.setattr(tuning.torch.cuda, "get_device_name", lambda: "a GPU")
    told: list[tuple[int, int]] = []
    tuned, lowered = tuning.tune(
        program,
        task,
        target,
        [first, second],
        tmp_path,
        1,
        moved=lambda done, total: told.append((done, total)),
    )
    spaces = len({(w.dim, w.dim_v) for w in (first, second)})
    compiled, timed = spaces * 5, 2 * 5
    assert told == [
        *((n, compiled + timed) for n in range(1, compiled + 1)),
        (compiled + 5, compiled + timed),
        (compiled + timed, compiled + timed),
    ]
    assert [t.error for t in tuned.timings if t.choice == space[0]] == ["it spills"] * 2
    assert len(tuned.timings) == timed
    told = tomllib.loads(lowered.files["schedule.toml"])
    assert [(s["cell"], s["size"], s["timings"]) for s in told["searches"]] == [
        (w.key, 5, 5 + 3) for w in (first, second)
    ]
    varied = {key for key in space[0] if len({c[key] for c in space}) > 1}
    assert varied and all(set(row["search"]) == varied for row in told["rows"])


def test_a_search_times_few_schedules_and_counts_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With times that depend on the choice alone, the best is found; groups of heads share a compilation."""
    task, target = find("mha_causal"), find_target("h100")
    program = check(next(e.text for e in corpus("reference") if e.task == task.name), task).program
    assert program is not None
    workloads = [w for w in task.workloads["paper"] if w.dim == 128 and w.dtype == "fp16"][:4]
    compiled: list[dict[str, int]] = []

    def time_ms(folder: object, task: object, w: object, tensors: object, choice: Any, ms: int) -> float:
        cost = {128: 1.0, 64: 1.2, 256: 1.5}[choice["BN"]] * (1.3 - 0.3 * choice["overlap"])
        return cost * (1.0 if choice["persistent"] == 2 else 1.1) * (1.0 if choice["heads"] == 4 else 1.05)

    monkeypatch.setattr(tuning, "ProcessPoolExecutor", HerePool)
    monkeypatch.setattr(tuning, "_try", lambda job: compiled.append(job[3]) or "")
    monkeypatch.setattr(tuning, "_tensors", lambda *_: {})
    monkeypatch.setattr(tuning, "_time", time_ms)
    monkeypatch.setattr(tuning.torch.cuda, "get_device_name", lambda: "a GPU")
    tuned, lowered = tuning.tune(program, task, target, workloads, tmp_path, 1, "gluon", searched=True)
    assert {c["heads"] for c in compiled} == {0} and len(compiled) > 20
    for row in tuned.rows:
        best = dict(row.choice)
        assert (best["BN"], best["overlap"], best["persistent"], best["heads"]) == (128, 1, 2, 4)
    assert set(tuned.searches) == {w.key for w in workloads}
    for key, budget in tuned.searches.items():
        timed = sum(t.cell == key for t in tuned.timings)
        assert budget.evaluations == timed + 3 and timed <= max(16, 0.15 * budget.size) < budget.size / 3
    assert "BN=128" in lowered.files["attention.py"]
    told = tomllib.loads(lowered.files["schedule.toml"])
    assert {s["cell"]: s["timings"] for s in told["searches"]} == {
        key: budget.evaluations for key, budget in tuned.searches.items()
    }
    assert all(
        {"BN", "overlap", "heads"} <= set(row["search"])
        for row in told["rows"]
        if row["bytes"] == 2 and row["file"] == "attention.py"
    )
    assert all("registers" not in row.get("search", []) for row in told["rows"]), "nobody varied it"
