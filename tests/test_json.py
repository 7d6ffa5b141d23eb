"""Claims about --json: standard output holds one value for a script, and all else goes to standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks import discover
from tests.command import Done, attnbench

PUBLISHED = Path(__file__).parents[1] / "reports" / "published"
PROVEN = PUBLISHED / "h100-2026-11-25-proves-l40s"
PAPER = PUBLISHED / "h100-2026-11-23-paper"
GENERATION = PUBLISHED / "h100-2026-11-25-cuda-generation"
DEFERRED = """
target = "cpu"
tasks = ["mha_causal"]
workloads = "smoke"
methods = ["vanilla"]
models = ["deferred:m"]
samples = 2
"""


def value(found: Done, code: int = 0) -> Any:
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout)


def test_tasks_are_listed_with_the_sizes_of_their_sets() -> None:
    rows = value(attnbench("tasks", "--json"))
    assert [row["name"] for row in rows] == list(discover())
    assert all(row["title"] and row["workloads"]["smoke"] >= 1 for row in rows)


def test_a_task_is_told_whole() -> None:
    told = value(attnbench("tasks", "show", "sliding_window", "--json"))
    task = discover()["sliding_window"]
    assert told["signature"] == task.signature
    assert [p["name"] for p in told["parameters"]] == ["window"]
    assert [t["name"] for t in told["tensors"]] == ["q", "k", "v", "out"]
    first, w = told["workloads"]["models"][0], task.workloads["models"][0]
    assert (first["key"], first["flops"], first["bytes"]) == (w.key, task.flops(w), task.bytes(w))
    assert first["parameters"] == w.params and first["scale"] == w.softmax_scale


def test_a_report_is_told_in_short_and_written_whole(tmp_path: Path) -> None:
    found = attnbench("report", str(PROVEN), "--out", str(tmp_path / "new"), "--json")
    told = value(found)
    lines = (PROVEN / "results.jsonl").read_text().splitlines()
    assert told["format"] == "attnbench-digest-1"
    assert (told["run"], told["targets"], told["results"]) == (str(PROVEN), ["l40s"], len(lines))
    assert sum({**told["candidates"], **told["baselines"]}.values()) == len(lines)
    assert told["candidates"] == {"proven": len(lines)}
    assert {h["candidate"] for h in told["headline"]} and all(h["measured"] == 0 for h in told["headline"])
    assert all(Path(path).is_file() for path in told["report"])
    whole = json.loads((tmp_path / "new" / "report.json").read_text())
    assert whole["headline"] == told["headline"] and whole["warnings"] == told["warnings"]


def test_a_merge_and_a_verification_are_told(tmp_path: Path) -> None:
    experiment, whole = PAPER / "experiment.toml", tmp_path / "whole"
    merged = value(attnbench("merge", str(experiment), str(PAPER), "--out", str(whole), "--json"))
    count = len((PAPER / "results.jsonl").read_text().splitlines())
    assert merged == {"run": str(whole), "results": count, "stories": 0, "answers": 0}
    checked = value(attnbench("verify", str(whole), "--json"))
    assert checked["clean"] and checked["results"] == count


def test_trials_and_a_story_are_told() -> None:
    trials = value(attnbench("show", "--run", str(GENERATION), "--json"))
    assert len(trials) == len({t["trial"] for t in trials}) > 20
    story = value(attnbench("show", trials[0]["trial"], "--run", str(GENERATION), "--json"))
    assert story["ending"]["trial"] == trials[0]["trial"] and story["exchanges"] and story["results"]


def test_the_way_of_answers_from_outside_is_told_at_each_step(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(DEFERRED)
    run, questions = tmp_path / "run", tmp_path / "questions"
    asked = value(attnbench("generate", "mine.toml", "--out", "run", "--json", cwd=tmp_path), 75)
    assert asked == {"run": "run", "trials_ended": 0, "waiting_for_answers": 2, "waiting_for_a_device": 0}
    told = value(attnbench("answers", "export", "--run", str(run), "--out", str(questions), "--json"))
    assert told["questions"] == 2 == len(told["files"])
    Path(told["files"][0]).with_suffix(".answer.md").write_text("```python\ndef attention(): ...\n```\n")
    taken = value(attnbench("answers", "import", str(questions), "--run", str(run), "--json"))
    counts = {"taken": 1, "waiting": 1, "there_already": 0, "failed": [], "not_asked_for": []}
    assert taken == {"run": str(run), **counts}
    again = attnbench("answers", "import", str(questions), "--run", str(run))
    assert "0 answers taken, 1 questions still wait" in again.stdout
    assert f"attnbench generate {run / 'experiment.toml'} --out {run} --resume" in again.stdout
    more = value(attnbench("generate", "mine.toml", "--out", "run", "--resume", "--json", cwd=tmp_path), 75)
    assert more == {"run": "run", "trials_ended": 0, "waiting_for_answers": 1, "waiting_for_a_device": 1}


@pytest.mark.parametrize("command", [("tl", "codes"), ("tl", "check", "--task", "mha"), ("doctor",)])
def test_other_listings_are_json_too(command: tuple[str, ...]) -> None:
    assert value(attnbench(*command, "--json"))
