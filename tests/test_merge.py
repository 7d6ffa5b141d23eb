"""A run made of parts is the run that one machine would have left: every record once, nothing decided."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from harness.experiment import ExperimentError, experiment_of, read_experiment
from harness.merge import merge
from harness.records import Result
from harness.runs import RunSummary
from harness.store import Store, StoreError
from reports.dataset import load_run
from tests.command import attnbench
from tests.reports.synthetic import stored
from tests.reports.synthetic_trials import PLAN, generation_run

WHOLE = """target = "h100"
tasks = ["mha_causal", "mla_prefill"]
methods = ["vanilla", "tl", "tl-compiled", "tl-one-stage"]
only = { tl-one-stage = ["mha_causal"] }
models = "deferred:claude"
samples = 3
"""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    file = tmp_path / "whole.toml"
    file.write_text(WHOLE)
    return file


def part(folder: Path, task: str, text: str = WHOLE) -> Path:
    """What `--task` leaves behind, with a plan of that task alone."""
    methods = [method for of, method in PLAN if of == task]
    generation_run(folder, {key: samples for key, samples in PLAN.items() if key[0] == task})
    text = text.replace('["mha_causal", "mla_prefill"]', f'["{task}"]')
    text = text.replace('["vanilla", "tl", "tl-compiled", "tl-one-stage"]', str(methods).replace("'", '"'))
    if "tl-one-stage" not in methods:
        text = text.replace('only = { tl-one-stage = ["mha_causal"] }\n', "")
    (folder / "experiment.toml").write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_run_of_parts_is_the_whole_run(tmp_path: Path, whole: Path) -> None:
    parts = [part(tmp_path / "b", "mla_prefill"), part(tmp_path / "a", "mha_causal")]
    (
        cache := next((parts[1] / "artifacts").iterdir()) / "__pycache__"
    ).mkdir()  # left by the kernel's process
    (cache / "attention.cpython-312.pyc").write_bytes(b"")
    before = [contents(p) for p in parts]
    merged = merge(parts, read_experiment(str(whole)), WHOLE, tmp_path / "out")
    one, of = load_run(generation_run(tmp_path / "one")), load_run(tmp_path / "out")
    assert {r.result.id: r.result.bare for r in of.rows} == {r.result.id: r.result.bare for r in one.rows}
    assert sorted(map(str, of.endings)) == sorted(map(str, one.endings))
    assert sorted(map(str, of.steps)) == sorted(map(str, one.steps))
    assert sorted(e.id for e in of.exchanges) == sorted({e.id for e in one.exchanges})
    assert (merged.results, merged.stories) == (len(one.rows), len(one.endings))
    assert of.environments == one.environments
    assert (tmp_path / "out" / "experiment.toml").read_text() == WHOLE
    files = contents(tmp_path / "out")
    assert {f: c for f, c in files.items() if f.startswith("artifacts/")} == {
        f: c for f, c in contents(tmp_path / "one").items() if f.startswith("artifacts/")
    }
    for p, was in zip(parts, before, strict=True):
        assert {f: c for f, c in contents(p).items() if f != ".lock"} == was


def test_invocations_of_the_parts_stand_in_order_of_time(tmp_path: Path, whole: Path) -> None:
    parts = [part(tmp_path / "a", "mha_causal"), part(tmp_path / "b", "mla_prefill")]
    for p, began in zip(parts, ("2026-11-25T12:00:00Z", "2026-11-25T11:00:00Z"), strict=True):
        summary = RunSummary(started_at=began, wall_s=1, gpu_work_s=1, results=1, stages_s={})
        (p / "summary.jsonl").write_text(summary.model_dump_json() + "\n")
    merge(parts, read_experiment(str(whole)), WHOLE, tmp_path / "out")
    assert [s.started_at[11:13] for s in load_run(tmp_path / "out").summaries] == ["11", "12"]


def test_what_two_parts_hold_alike_is_kept_once(tmp_path: Path, whole: Path) -> None:
    first, second = (part(tmp_path / name, "mha_causal") for name in "ab")
    merged = merge([first, second], read_experiment(str(whole)), WHOLE, tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_text() == (first / "results.jsonl").read_text()
    assert merged.results == len(load_run(first).rows)


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("results.jsonl", '"recorded_at":"', '"recorded_at":"1999-', "result"),
        ("trials.jsonl", '"wall_s":', '"wall_s":1', "story"),
        ("transcripts.jsonl", '"text":"', '"text":"Not so. ', "answer"),
    ],
)
def test_two_records_of_one_thing_are_refused_and_nothing_is_written(
    tmp_path: Path, whole: Path, file: str, old: str, new: str, what: str
) -> None:
    first, second = (part(tmp_path / name, "mha_causal") for name in "ab")
    text = (second / file).read_text()
    assert old in text
    text = text.replace(old, new, 1)
    if file == "results.jsonl":  # another record, not one that was changed
        parsed = [Result.model_validate_json(line) for line in text.splitlines()]
        text = "".join(line + "\n" for line in stored(parsed))
    (second / file).write_text(text)
    with pytest.raises(StoreError, match=f"different records of {what}"):
        merge([first, second], read_experiment(str(whole)), WHOLE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('target = "h100"', 'target = "h200"', "target is 'h200', and 'h100'"),
        ("samples = 3", "samples = 4", "samples is 4, and 3"),
        ('"deferred:claude"', '"deferred:other"', "models is"),
        ('tasks = ["mha_causal"]', 'tasks = ["mha_causal", "cross"]', "tasks is"),
        ("samples = 3", "samples = 3\n[sampling]\ntime_cap_s = 9", "sampling is"),
    ],
)
def test_a_run_of_another_experiment_is_no_part(
    tmp_path: Path, whole: Path, old: str, new: str, says: str
) -> None:
    folder = part(tmp_path / "a", "mha_causal")
    text = (folder / "experiment.toml").read_text()
    assert old in text
    (folder / "experiment.toml").write_text(text.replace(old, new))
    with pytest.raises(ExperimentError, match=says):
        merge([folder], read_experiment(str(whole)), WHOLE, tmp_path / "out")


def test_a_method_on_a_task_where_the_whole_has_it_not_is_no_part(tmp_path: Path) -> None:
    folder = part(tmp_path / "a", "mha_causal")
    data = {
        "target": "h100",
        "tasks": ["mha_causal", "mla_prefill"],
        "models": "deferred:claude",
        "samples": 3,
    }
    methods = ["vanilla", "tl", "tl-compiled", "tl-one-stage"]
    narrower = experiment_of({**data, "methods": methods, "only": {"tl-one-stage": ["mla_prefill"]}}, "test")
    with pytest.raises(ExperimentError, match="no tl-one-stage on mha_causal"):
        merge([folder], narrower, "", tmp_path / "out")


def test_a_run_that_is_being_written_and_one_that_is_there_are_refused(tmp_path: Path, whole: Path) -> None:
    folder, experiment = part(tmp_path / "a", "mha_causal"), read_experiment(str(whole))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="being written"):
            merge([folder], experiment, WHOLE, tmp_path / "out")
    with pytest.raises(StoreError, match="holds a run already"):
        merge([folder], experiment, WHOLE, folder)
    with pytest.raises(ExperimentError, match="holds no run"):
        merge([tmp_path / "nowhere"], experiment, WHOLE, tmp_path / "out")


def test_a_merge_that_fails_leaves_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = part(tmp_path / "a", "mha_causal"), set(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "add_summary", full)
    with pytest.raises(StoreError, match="full"):
        merge([folder], read_experiment(str(whole)), WHOLE, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
    monkeypatch.undo()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        merge([folder], read_experiment(str(whole)), WHOLE, tmp_path / "file" / "out")


def test_the_command_says_what_it_made_and_what_comes_next(tmp_path: Path, whole: Path) -> None:
    parts = [str(part(tmp_path / "a", "mha_causal")), str(part(tmp_path / "b", "mla_prefill"))]
    out = str(tmp_path / "out")
    made = attnbench("merge", str(whole), *parts, "--out", out)
    assert made.returncode == 0, made.stderr
    assert "21 trials of models" in made.stdout and f"--out {out} --resume" in made.stdout
    assert load_run(Path(out)).endings
    again = attnbench("merge", str(whole), *parts, "--out", out)
    assert again.returncode != 0 and "holds a run already" in again.stderr
