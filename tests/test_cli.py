"""Every wrong input gets one clear sentence on standard error and an exit code; no traceback."""

import json
import time
from pathlib import Path

import pytest

from tests.command import attnbench, attnbench_process


@pytest.mark.parametrize("command", [[], ["doctor"], ["tasks"], ["tasks", "show"], ["eval"], ["report"]])
def test_help_answers(command):
    found = attnbench(*command, "--help")
    assert found.returncode == 0
    assert "Usage" in found.stdout


def test_the_version_is_printed():
    found = attnbench_process("--version")
    assert found.stdout.startswith("attnbench")
    assert (found.returncode, found.stdout) == (0, attnbench("--version").stdout)


def test_a_process_ends_as_the_command_does(tmp_path):
    asked = ("eval", "cpu", "--task", "mha_casual")
    found, same = attnbench_process(*asked, cwd=tmp_path), attnbench(*asked, cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (same.returncode, same.stdout, same.stderr)
    assert found.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["eval", "nowhere"], 2, "no experiment 'nowhere'; shipped: a100"),
        (["eval", "missing.toml"], 2, "missing.toml: No such file"),
        (["eval", "cpu", "--task", "mha_casual"], 2, "unknown task 'mha_casual'; did you mean mha_causal"),
        (["eval", "cpu", "--baseline", "cuddn"], 2, "unknown baseline 'cuddn'; did you mean cudnn"),
        (["eval", "cpu", "--dtype", "fp8"], 2, "no workload in fp8"),
        (["eval", "cpu", "--workloads", "huge"], 2, "no workload set 'huge'; it has:"),
        (["eval", "cpu", "--resume"], 2, "--resume needs --out"),
        (["eval", "cpu", "--candidates", "nowhere"], 2, "nowhere: no such folder"),
        (["eval", "cpu", "--tasks", "nowhere"], 2, "nowhere does not exist"),
        (["eval", "cpu", "--out", "new", "--resume"], 4, "no run to resume"),
        (["tasks", "show", "softcup"], 2, "did you mean softcap"),
        (["report", "nowhere"], 2, "holds no results.jsonl"),
    ],
)
def test_a_wrong_word_is_answered_with_the_way_out(arguments, code, says, tmp_path):
    found = attnbench(*arguments, cwd=tmp_path)
    assert found.returncode == code, found.stderr
    assert says in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("target", ["a100", "h100", "h200", "l40s", "t4", "rtx8000"])
def test_a_missing_gpu_is_said_at_once(target):
    begin = time.monotonic()
    found = attnbench_process("eval", target)
    assert time.monotonic() - begin < 3
    assert found.returncode == 3
    assert "no NVIDIA GPU" in found.stderr
    assert "eval-cpu" in found.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('task = "mha"\nbackend = "tritno"\n', "triton"),
        ('tsak = "mha"\nbackend = "torch"\n', "task"),
        ("task = mha\n", "candidate.toml"),
        ('backend = "torch"\n', "task"),
    ],
)
def test_a_malformed_candidate_is_named_with_its_key(tmp_path, text, says):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "candidate.toml").write_text(text)
    (folder / "attention.py").write_text("def attention(q, k, v, out, *, scale): ...\n")
    found = attnbench("eval", "cpu", "--candidates", str(folder), cwd=tmp_path)
    assert found.returncode == 2
    assert "candidate.toml" in found.stderr
    assert says in found.stderr
    assert "Traceback" not in found.stderr


def test_a_wrong_key_of_an_experiment_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text('target = "cpu"\ntasks = ["mha"]\nbaseline = ["naive"]\n')
    found = attnbench("eval", "mine.toml", cwd=tmp_path)
    assert found.returncode == 2
    assert "mine.toml: baseline: unknown key; did you mean baselines?" in found.stderr


def test_an_out_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = attnbench("eval", "cpu", "--task", "mha", "--out", str(tmp_path / "file" / "run"), cwd=tmp_path)
    assert found.returncode == 4, found.stderr
    assert "cannot write" in found.stderr
    assert "Traceback" not in found.stderr


def test_doctor_lists_every_baseline_with_a_reason_or_a_version():
    rows = json.loads(attnbench("doctor", "--json").stdout)
    by_name = {row["what"]: row for row in rows}
    assert by_name["baseline naive"]["usable"]
    assert all(row["state"] for row in rows)
    missing = [row for row in rows if row["what"].startswith("baseline") and not row["usable"]]
    assert all(row["advice"] for row in missing)


def test_tasks_shows_mathematics_signature_and_workloads():
    found = attnbench("tasks", "show", "sliding_window").stdout
    assert "def attention(q, k, v, out, *, scale: float, window: int) -> None" in found
    assert "Mistral 7B" in found
