"""Every wrong input gets one clear sentence on standard error and an exit code; no traceback."""

import json
import resource
import time
from pathlib import Path

import pytest

from baselines import find_baseline
from baselines.base import Library
from harness.commands import absent
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
        (["eval", "h1000"], 2, "did you mean h100?"),
        (["eval", "missing.toml"], 2, "missing.toml: No such file or directory; give a .toml file"),
        (
            ["eval", "broken.toml"],
            2,
            "not TOML: Invalid value (at end of document). docs/run-and-report.md shows",
        ),
        (["eval", "cpu", "--method", "tll"], 2, "--method: unknown method 'tll'; did you mean tl"),
        (["eval", "cpu", "--model", "gpt-5"], 2, "--model: 'gpt-5' is no model; write provider:model"),
        (
            ["eval", "cpu", "--time-cap", "0"],
            2,
            "--time-cap: sampling.time_cap_s: Input should be greater than 0",
        ),
        (["eval", "cpu", "--candidates", "file"], 2, "file: is a file; give the folder that it is in"),
        (
            ["eval", "cpu", "--candidates", "empty"],
            2,
            "holds no candidate.toml, and neither do its subfolders",
        ),
        (["eval", "cpu", "--tasks", "file"], 2, "is a file; give the folder that it is in"),
        (["eval", "cpu", "--compile-only"], 2, "Name one: attnbench eval t4 --compile-only"),
        (["eval", "t4", "--compile-only", "--resume"], 2, "leave out --prove-on and --resume"),
        (["eval", "cpu", "--out", "file", "--task", "mha"], 4, "cannot write file: File exists"),
        (["generate", "cpu", "--out", "file"], 4, "or choose another --out"),
        (["generate", "cpu", "--resume"], 2, "--resume needs --out"),
        (["eval", "cpu", "--task", "mha_casual"], 2, "unknown task 'mha_casual'; did you mean mha_causal"),
        (["eval", "cpu", "--baseline", "cuddn"], 2, "unknown baseline 'cuddn'; did you mean cudnn"),
        (["eval", "cpu", "--dtype", "fp8"], 2, "no workload in fp8"),
        (["eval", "cpu", "--workloads", "huge"], 2, "no workload set 'huge'; it has:"),
        (["eval", "cpu", "--resume"], 2, "--resume needs --out"),
        (["eval", "cpu", "--candidates", "nowhere"], 2, "nowhere: no such folder"),
        (["eval", "cpu", "--tasks", "nowhere"], 2, "nowhere does not exist"),
        (["eval", "cpu", "--out", "new", "--resume"], 4, "no run to resume"),
        (["tasks", "show", "softcup"], 2, "did you mean softcap"),
        (
            ["report", "nowhere"],
            2,
            "holds no results.jsonl; give the directory of a run, as `attnbench eval`",
        ),
        (["report", "file"], 2, "holds no results.jsonl"),
        (["report", "fresh"], 2, "holds no result yet. See attnbench verify fresh, or go on with the run"),
        (
            ["report", "junk"],
            2,
            "junk holds no result yet; 2 lines of it cannot be read. See attnbench verify junk",
        ),
        (["report", "folder"], 2, "has no results.jsonl"),
        (["verify", "empty"], 2, "holds no results.jsonl; give the directory of a run, as `attnbench eval`"),
        (["merge", "cpu", "empty", "--out", "new"], 2, "give directories that `attnbench eval` filled"),
        (["merge", "nowhere", "empty", "--out", "new"], 2, "no experiment 'nowhere'"),
        (["show"], 2, "name one with --run DIR"),
        (["show", "x", "--run", "fresh"], 2, "see: attnbench show --run fresh"),
        (["show", "--run", "empty"], 2, "give the directory of a run"),
        (
            ["answers", "import", "nowhere", "--run", "fresh"],
            2,
            "nowhere does not exist; give a file or a folder",
        ),
        (
            ["answers", "import", "file", "--run", "fresh"],
            2,
            "See how its trials stand: attnbench show --run",
        ),
        (["answers", "export", "--run", "asked", "--out", "file"], 4, "give another folder with --out"),
        (
            ["tl", "check", "nowhere.tl"],
            2,
            "No such file or directory; give a file with a program, or --task",
        ),
        (["tl", "explain", "TL999"], 2, "did you mean TL908? See them all: attnbench tl codes"),
        (["tl", "explain", "zebra"], 2, "there is no code 'zebra'. See them all: attnbench tl codes"),
    ],
)
def test_a_wrong_word_is_answered_with_the_way_out(arguments, code, says, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "broken.toml").write_text("target = [")
    for run, lines in (("fresh", ""), ("junk", "no\nrecord\n")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "results.jsonl").write_text(lines)
    (tmp_path / "folder" / "results.jsonl").mkdir(parents=True)
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "pending.jsonl").touch()
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


def test_a_baseline_without_its_library_is_named_before_anything_runs(monkeypatch):
    """A run of hours beside fewer humans than it names says so at its beginning, not at its end."""
    gone = Library(
        "flash-attn-4", "4.0", "flash-attn-4 is installed but cannot import cutlass", "pip install x"
    )
    monkeypatch.setattr(type(find_baseline("flash-attn-4")), "library", lambda self: gone)
    assert absent(("sdpa-flash", "naive")) == []
    (said,) = absent(("naive", "flash-attn-4"))
    assert said.startswith("flash-attn-4 takes no part: ") and "cannot import cutlass (pip install x)" in said


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


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["evl"], "Did you mean 'eval'?"),
        (["eval", "--candidate", "x"], "--candidate"),
        (["eval", "cpu", "--samples", "0"], "greater than or equal to 1"),
        (["report"], "Missing argument 'RUN'"),
        (["answers", "import", "x"], "Missing option '--run'"),
    ],
)
def test_a_line_that_cannot_be_read_points_to_its_help(arguments, near):
    found = attnbench(*arguments)
    assert found.returncode == 2
    assert near in found.stderr
    assert " -h' for help" in found.stderr


def test_a_key_that_is_missing_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for command in ("generate", "eval"):
        found = attnbench(command, "cpu", "--model", "openai:x", "--out", "run", cwd=tmp_path)
        assert found.returncode == 2
        assert "there is no key; set the variable OPENAI_API_KEY" in found.stderr
        assert not (tmp_path / "run").exists()


def test_records_that_cannot_be_read_are_said_with_their_file(tmp_path, monkeypatch):
    """As an unreadable file does; the tests may run as a user who reads everything."""
    import reports

    def refused(run):
        raise PermissionError(13, "Permission denied", str(run / "results.jsonl"))

    (tmp_path / "results.jsonl").write_text("")
    monkeypatch.setattr(reports, "load_run", refused)
    for command in (["report", str(tmp_path)], ["show", "--run", str(tmp_path)]):
        found = attnbench(*command)
        assert (found.returncode, found.stdout) == (4, "")
        assert f"cannot read {tmp_path / 'results.jsonl'}: Permission denied" in found.stderr


def test_completion_answers_at_once(tmp_path):
    """Processor time, as another program may be busy. Once before, so that the files are in memory."""
    from tests.test_completion import completed

    completed("attnbench eval --baseline ", tmp_path)
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "cudnn" in completed("attnbench eval --baseline ", tmp_path).stdout
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (
        end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 0.75
    )  # 0.42 to 0.5 s on two slow cores, half of it typer's
