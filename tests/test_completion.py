"""Claims about completion: the words are those of the registries, and torch is not imported for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.completion

from baselines import BASELINES
from harness import completion
from harness.experiment import SHIPPED
from harness.generate.methods import METHODS
from harness.targets import TARGETS
from harness.tl.diagnostics import CODES
from tasks import DTYPES, discover
from tests.conftest import TINY_TASK

ROOT = Path(__file__).parents[1]
GENERATION = ROOT / "reports" / "published" / "h100-2026-11-25-generation"


def context(**params: object) -> Any:
    return SimpleNamespace(params=params)


def completed(line: str, cwd: Path, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """What a shell is told for a line that ends where the cursor is."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    env = {**os.environ, **asked, "_ATTNBENCH_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT)}
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*(m for m in ('torch', 'numpy', 'triton') if m in sys.modules), "
        "file=sys.stderr))\n"
        "from harness.cli import app\napp(prog_name='attnbench')"
    )
    return subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_the_words_are_those_of_the_registries() -> None:
    assert list(BASELINES) == list(completion.BASELINES), "harness/completion.py lists the baselines too"
    assert completion.tasks(context(), "") == sorted(
        discover(), key=lambda name: list(discover()).index(name)
    )
    assert completion.methods("") == list(METHODS)
    assert completion.targets("") == list(TARGETS)
    assert completion.codes("tl4") == [code for code in CODES if code.startswith("TL4")]
    assert completion.experiments("h1") == sorted(p.stem for p in SHIPPED.glob("h1*.toml"))


def test_closed_sets_are_those_there_are() -> None:
    assert tuple(DTYPES) == completion.DTYPES
    assert set(completion.SETS) == {name for task in discover().values() for name in task.workloads}


def test_tasks_of_a_folder_of_ones_own_are_offered(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY_TASK)
    (tmp_path / "parts.py").write_text('name = "no task"\n')
    assert completion.tasks(context(task_folders=[tmp_path]), "ti") == ["tiny"]


def test_trials_are_offered_of_the_run_that_is_named_or_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = completion.trials(context(run=GENERATION), "mla_prefill/tl-")
    assert "mla_prefill/tl-claude-0" in told and "mla_prefill/tl-compiled-claude-2" in told
    monkeypatch.chdir(tmp_path)
    assert completion.trials(context(), "") == []
    for name, seconds in (("old", 1000), ("new", 2000)):
        file = tmp_path / "runs" / name / "trials.jsonl"
        file.parent.mkdir(parents=True)
        a = {"task": name, "method": "tl", "models": ["x:a", "y:b"], "sample": 1}
        file.write_text(json.dumps({"assignment": a}) + '\n{"assignment": torn')
        os.utime(file, (seconds, seconds))
    assert completion.trials(context(), "") == ["new/tl-a-b-1"]


def test_runs_and_files_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "results.jsonl").touch()
    (tmp_path / "mine.toml").touch()
    (tmp_path / "notes.txt").touch()
    assert completion.runs("") == ["runs/a", "runs/"]
    assert completion.experiments("mi") == ["mine.toml"]
    assert completion.experiments("not") == []
    assert completion.runs("nowhere/") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_answered_without_torch(shell: str, tmp_path: Path) -> None:
    found = completed("attnbench eval --baseline sdpa-m", tmp_path, shell)
    assert "sdpa-math" in found.stdout and "sdpa-flash" not in found.stdout
    assert found.stderr.strip() == "", found.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_to_install(shell: str) -> None:
    script = typer.completion.get_completion_script(
        prog_name="attnbench", complete_var="_ATTNBENCH_COMPLETE", shell=shell
    )
    assert f"complete_{shell}" in script and "attnbench" in script
