"""The search of tiles tells how far it is, compiles each kernel once, and keeps what it found. The GPU's part is played."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from harness import tl_tune, tuning, tuning_clock, tuning_compile
from harness.crew import LostDevice
from harness.stopwatch import tile_search
from harness.targets import find_target
from harness.tl import ir
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from tasks import Task, Workload, find

Choice = Mapping[str, int]


class Played:
    """In place of the GPU and of the processes: what is asked of them, and times from a formula."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cost: Callable[[Workload, Choice], float | None]
    ) -> None:
        self.jobs: list[tuple[Workload, Choice]] = []
        self.wrong: Callable[[Choice], str] = lambda choice: ""
        self.cost = cost
        self.timed: list[tuple[str, Choice]] = []
        self.clock = 1.0
        patch = monkeypatch.setattr
        patch(tuning, "Crew", lambda do, count: self)
        patch(tuning_compile, "kernels_of", self.kernel)
        patch(tuning_compile, "empty", lambda task, w: {})
        patch(tuning_clock, "tensors_of", lambda task, w: {})
        patch(tuning_clock, "warm", lambda: None)
        patch(tuning_clock, "time_choices", self.time_choices)
        patch(tuning_clock, "time_together", self.time_together)
        patch(tuning_clock.torch.cuda, "synchronize", lambda: None)
        patch(tuning.torch.cuda, "get_device_name", lambda: "a GPU")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def answers(self, jobs: Sequence[Any], done: Callable[[int], None]) -> list[str]:
        for count, (_, w, _, choice) in enumerate(jobs, 1):
            self.jobs.append((w, choice))
            done(count)
        return [self.wrong(choice) for _, _, _, choice in jobs]

    def kernel(self, folder: str, task: Task, w: Workload, tensors: object, choice: Choice) -> str:
        """As a compiler of such kernels sees it: groups of heads are a number, their queries a constant."""
        return f"{w.group} {w.dim} {sorted({**choice, 'heads': 0}.items())}"

    def time_choices(
        self, folder: str, task: Task, w: Workload, tensors: object, choices: Sequence[Choice], ms: float
    ) -> list[float]:
        self.timed.append((w.key, choices[0]))
        self.clock *= 1.01  # it drifts
        found = [self.cost(w, choice) for choice in choices]
        if None in found:
            raise RuntimeError("out of resource")
        return [self.clock * ms for ms in found if ms is not None]

    def time_together(
        self, folder: str, task: Task, w: Workload, tensors: object, choices: Sequence[Choice], ms: float
    ) -> list[float | None]:
        return [self.cost(w, choice) for choice in choices]


def reference(name: str) -> tuple[Task, ir.Program]:
    task = find(name)
    program = check(next(e.text for e in corpus("reference") if e.task == name), task).program
    assert program is not None
    return task, program


def formula(w: Workload, choice: Choice) -> float:
    """The best: 128 columns, overlap, tickets, groups of 4 heads, rare rescaling as by default."""
    cost = {128: 1.0, 64: 1.2, 256: 1.5}[choice["BN"]] * (1.3 - 0.3 * choice["overlap"])
    cost *= {0: 1.1, 1: 1.02, 2: 1.0}[choice["rescale"]]
    return cost * (1.0 if choice["persistent"] == 2 else 1.1) * (1.0 if choice["heads"] == 8 else 1.05)


H100 = find_target("h100")


def test_each_compilation_and_each_timing_moves_the_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, program = reference("mha_causal")
    first, second = task.workloads["models"][:2]
    space = tuning.choices(program, task, H100, first)[:5]
    played = Played(monkeypatch, lambda w, choice: 1.0 + space.index(dict(choice)))
    played.wrong = lambda choice: "it spills" if choice == space[0] else ""
    monkeypatch.setattr(tuning, "choices", lambda *_: space)
    told: list[tuple[int, int]] = []
    tuned, lowered = tuning.tune(
        program, task, H100, [first, second], tmp_path, 1,
        moved=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    spaces = len({(w.dim, w.dim_v) for w in (first, second)})
    compiled, timed = spaces * 5, 2 * 5
    assert told == [
        *((n, compiled + timed) for n in range(1, compiled + 1)),
        (compiled + 5, compiled + timed),
        (compiled + timed, compiled + timed),
    ]
    assert [t.error for t in tuned.timings if t.choice == space[0]] == ["it spills"] * 2
    assert len(tuned.timings) == timed and {dict(r.choice)["BM"] for r in tuned.rows} == {space[1]["BM"]}
    carried = tomllib.loads(lowered.files["schedule.toml"])
    assert [(s["cell"], s["size"], s["timings"]) for s in carried["searches"]] == [
        (w.key, 5, 5 + 3) for w in (first, second)
    ]
    varied = {key for key in space[0] if len({c[key] for c in space}) > 1}
    assert varied and all(set(row["search"]) == varied for row in carried["rows"])


def test_a_search_times_15_percent_and_compiles_each_kernel_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the paper's lengths, of one head dimension and of both; what is timed longer counts too."""
    task, program = reference("mha_causal")
    played = Played(monkeypatch, formula)
    workloads = [w for w in task.workloads["paper"] if w.dtype == "fp16" and w.label == ""]
    tuned, lowered = tuning.tune(program, task, H100, workloads, tmp_path, 1, "gluon")
    assert len(played.jobs) == tuned.kernels == 132 + 248
    for row in tuned.rows:
        best = dict(row.choice)
        assert (best["BN"], best["overlap"], best["persistent"], best["heads"]) == (128, 1, 2, 8)
    assert set(tuned.searches) == {w.key for w in workloads}
    for key, budget in tuned.searches.items():
        timed = sum(t.cell == key for t in tuned.timings)
        assert budget.evaluations == timed + 3 <= 0.15 * budget.size
    assert "BN=128" in lowered.files["attention.py"]
    carried = tomllib.loads(lowered.files["schedule.toml"])
    assert {s["cell"]: s["timings"] for s in carried["searches"]} == {
        key: budget.evaluations for key, budget in tuned.searches.items()
    }
    assert all(
        {"BN", "overlap", "heads"} <= set(row["search"])
        for row in carried["rows"]
        if row["bytes"] == 2 and row["file"] == "attention.py"
    )
    assert all("registers" not in row.get("search", []) for row in carried["rows"]), "nobody varied it"


def test_shapes_with_kernels_of_their_own_compile_what_is_around_the_best_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Groups of 4, 5, 6, 7, 8 and 16 query heads: 132 kernels each, of which one group compiles all."""
    task, program = reference("gqa_causal")
    played = Played(monkeypatch, formula)
    workloads = [w for w in task.workloads["models"] if w.dtype == "fp16"]
    tuned, _ = tuning.tune(program, task, H100, workloads, tmp_path, 1, "gluon")
    counts = sorted(sum(w.group == g for w, _ in played.jobs) for g in {w.group for w in workloads})
    assert len(counts) > 2 and counts[-1] == 132 and counts[0] > 0 and counts[-2] < 40
    assert all(dict(row.choice)["persistent"] == 2 for row in tuned.rows)


def test_a_choice_that_fails_is_a_line_of_the_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task, program = reference("mha_causal")
    played = Played(monkeypatch, lambda w, c: None if c["stages"] == 2 else formula(w, c))
    played.wrong = lambda choice: "wrong: out is off by 1" if choice["BN"] == 128 else ""
    workloads = [w for w in task.workloads["paper"] if w.dim == 64 and w.dtype == "fp16"][:2]
    tuned, _ = tuning.tune(program, task, H100, workloads, tmp_path, 1, "gluon")
    errors = {t.error for t in tuned.timings if t.time_ms is None}
    assert errors == {"wrong: out is off by 1", "RuntimeError: out of resource"}
    assert {dict(r.choice)["BN"] for r in tuned.rows} == {64}
    assert not any(c["BN"] == 128 for _, c in played.timed)


def test_what_was_timed_before_the_device_was_lost_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, program = reference("mha_causal")
    played = Played(monkeypatch, formula)
    workloads = [w for w in task.workloads["paper"] if w.dim == 128 and w.dtype == "fp16"][:6]

    def gone() -> None:
        if len(played.timed) >= 60:
            raise RuntimeError("illegal address")

    monkeypatch.setattr(played, "cost", lambda w, c: formula(w, c) if len(played.timed) < 60 else None)
    monkeypatch.setattr(tuning_clock.torch.cuda, "synchronize", gone)
    tuned, lowered = tuning.tune(program, task, H100, workloads, tmp_path, 1, "gluon")
    assert tuned.stopped == "the device was lost: RuntimeError: out of resource"
    assert 0 < len(tuned.rows) < 6 and len(tuned.timings) == 59
    assert lowered.files["attention.py"].count("Choice(\n") == len(tuned.rows)
    tuned.write(tmp_path / "tuning.json")
    assert json.loads((tmp_path / "tuning.json").read_text())["stopped"] == tuned.stopped
    with pytest.raises(LostDevice):
        tuning_clock.failure(ValueError("after"))


def test_a_tuned_candidate_has_a_name_beside_the_program_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its table is of the bytes of an element, so it serves fp16 and bf16; a shape shorter than all takes the
    shortest's."""
    task, program = reference("mha_causal")
    Played(
        monkeypatch, lambda w, c: formula(w, c) * (1 + 0.5 * (c["stages"] == (3 if w.seq_q > 4096 else 2)))
    )
    workloads = [w for w in task.workloads["paper"] if w.dim == 128 and w.dtype == "fp16"]
    tuned, lowered = tuning.tune(program, task, H100, workloads, tmp_path, 1, "gluon")
    folder = tl_tune._write(tuned, lowered, tmp_path)
    manifest = (folder / "candidate.toml").read_text()
    assert folder.name == "tl_mha_causal_gluon_tuned" and f'name = "{folder.name}"' in manifest
    from tests.tl.gluon_emulator import Device

    choose = Device().module((folder / "attention.py").read_text())._choose
    assert {r.bytes for r in tuned.rows} == {2} and len({r.choice for r in tuned.rows}) > 1
    by_length = {r.seq: dict(r.choice) for r in tuned.rows}
    for asked, served in ((1, 512), (511, 512), (512, 512), (3000, 2048), (99_999, 16384)):
        chosen = choose(128, asked, 0, 0, 1)._asdict()
        assert chosen == {key: by_length[served][key] for key in chosen} and len(chosen) > 8, asked


def test_a_model_s_program_is_searched_not_timed_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    task, _ = reference("mha_causal")
    played = Played(monkeypatch, formula)
    text = next(e.text for e in corpus("reference") if e.task == task.name)
    brief: Any = SimpleNamespace(
        task=task, target=H100, backend="gluon", workloads=task.workloads["models"][:2]
    )
    lowered, best = tile_search(text, brief, tmp_path)
    assert lowered is not None and set(best) == {w.key for w in brief.workloads}
    assert len(played.timed) < 2 * 80
