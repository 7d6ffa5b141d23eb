"""`attnbench tl`: findings like a compiler's, exit codes, and one clear sentence for every wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tl.corpus_index import corpus
from harness.tl.diagnostics import CODES
from tests.command import ROOT, Done, attnbench, attnbench_process

MHA = next(entry.text for entry in corpus("reference") if entry.task == "mha")
SMALL = ("--seq-q", "40", "--heads", "1", "--tile", "BM=16,BN=16")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A program for mha that does not rescale its accumulator."""
    path = tmp_path / "broken.tl"
    path.write_text(MHA.replace(" and rescale O", ""))
    return path


@pytest.mark.parametrize(
    "command", ["", "check", "run", "lower", "format", "space", "mutants", "explain", "codes"]
)
def test_help_answers(command: str) -> None:
    found = attnbench("tl", *command.split(), "--help")
    assert found.returncode == 0
    assert "Usage" in found.stdout


def test_check_shows_findings_like_a_compiler(broken: Path) -> None:
    found = attnbench("tl", "check", str(broken))
    assert found.returncode == 1
    line = next(n for n, text in enumerate(MHA.splitlines(), 1) if "GEMM S, V" in text)
    place, statement, caret, fix, *_ = found.stdout.splitlines()
    assert place.startswith(f"{broken}:{line}:5: error TL501: ")
    assert statement.endswith("Compute GEMM S, V and accumulate O")
    assert caret.index("^") == statement.index("Compute")
    assert fix.startswith("  fix: ")
    assert found.stdout.splitlines()[-1] == f"{broken}: 1 error"


def test_check_for_scripts_holds_the_same(broken: Path) -> None:
    found = attnbench("tl", "check", str(broken), "--json")
    record = json.loads(found.stdout)
    assert found.returncode == 1
    assert (record["ok"], record["task"]) == (False, "mha")
    (finding,) = [f for f in record["findings"] if f["severity"] == "error"]
    assert finding["code"] == "TL501"
    assert finding["line"] > 1 and finding["column"] == 5 and finding["fix"]


def test_check_takes_the_reference_program_of_a_task() -> None:
    found = attnbench("tl", "check", "--task", "gqa_causal", "--target", "h100")
    assert found.returncode == 0
    assert "reference/gqa_causal.tl: no error" in found.stdout


def test_check_reads_standard_input_and_hides_notes_behind_a_count(tmp_path: Path) -> None:
    text = "# task: mha\n" + MHA.replace("Kernel mha", "Kernel x").replace("S, scale", "S, sm_scale")
    shown = [piped(text, "tl", "check", "-"), piped(text, "tl", "check", "-", "--notes")]
    assert [done.returncode for done in shown] == [0, 0]
    assert "no error, 1 note (--notes shows them)" in shown[0].stdout and "TL004" not in shown[0].stdout
    assert "note TL004: `sm_scale` is read as `scale`" in shown[1].stdout


def test_check_takes_a_sketch_as_a_sketch() -> None:
    sketch = next(entry.text for entry in corpus("sketch") if entry.task == "mha_causal")
    assert piped(sketch, "tl", "check", "-", "--task", "mha_causal", "--level", "sketch").returncode == 0
    assert piped(sketch, "tl", "check", "-", "--task", "mha_causal").returncode == 1


def piped(text: str, *arguments: str) -> Done:
    return attnbench(*arguments, stdin=text)


def test_run_compares_with_the_oracle_and_counts() -> None:
    found = attnbench(
        "tl",
        "run",
        "--task",
        "sliding_window",
        *SMALL,
        "--heads",
        "2",
        "--param",
        "window=9",
        "--target",
        "h100",
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "b1-h2-n40-d64-window9-fp32 with BM = 16, BN = 16" in found.stdout
    assert "right: largest error" in found.stdout
    assert "worst at b 0, h 0, row" in found.stdout
    for word in ("GEMM FLOPs", "exponentials", "bytes read from global", "NVIDIA H100"):
        assert word in found.stdout


def test_run_says_where_a_wrong_program_is_furthest_off(broken: Path) -> None:
    found = attnbench("tl", "run", str(broken), *SMALL, "--json")
    record = json.loads(found.stdout)
    assert found.returncode == 1
    assert not record["passed"]
    assert record["error_max"] > record["error_allowed"]
    assert {"batch", "head", "row", "col", "got", "expected"} == set(record["worst"])
    assert record["counts"]["gemm_flops"] == 2 * 2 * 48 * 48 * 64
    assert record["choice"] == {"BM": 16, "BN": 16}


def test_run_shows_what_has_no_meaning_as_findings(tmp_path: Path) -> None:
    path = tmp_path / "mha.tl"
    path.write_text(MHA.replace("Allocate S in", "Allocate S"))
    found = attnbench("tl", "run", str(path))
    assert found.returncode == 1
    assert "error TL001" in found.stdout


def test_lower_prints_the_source_and_writes_a_candidate(tmp_path: Path) -> None:
    printed = attnbench("tl", "lower", "--task", "mha", "--tile", "BM=128,warps=8")
    compile(printed.stdout, "attention.py", "exec")
    assert "# Compute GEMM Q, K^T and get S" in printed.stdout
    out = tmp_path / "kernels" / "mine"
    written = attnbench("tl", "lower", "--task", "mha", "--backend", "numba", "--out", str(out))
    assert written.returncode == 0, written.stderr
    assert "attnbench eval" in written.stdout
    carried = {"program.tl", "schedule.toml"}
    assert {p.name for p in out.iterdir()} == {"attention.py", "candidate.toml"} | carried
    again = attnbench("tl", "lower", "--task", "mha", "--backend", "numba", "--out", str(out), "--json")
    assert json.loads(again.stdout)["folder"] == str(out)
    (out / "notes.txt").write_text("mine")
    refused = attnbench("tl", "lower", "--task", "mha", "--out", str(out))
    assert refused.returncode == 2 and "holds notes.txt" in refused.stderr


def test_lower_shows_what_it_cannot_do_as_a_finding() -> None:
    found = attnbench("tl", "lower", "--task", "mha", "--tile", "BM=48")
    assert found.returncode == 1
    assert found.stdout.startswith("reference/mha.tl: error for triton: tile BM = 48")
    record = json.loads(attnbench("tl", "lower", "--task", "mha", "--tile", "BM=48", "--json").stdout)
    assert "powers of two" in record["error"]


def test_lower_compiles_ahead_of_time() -> None:
    pytest.importorskip("triton")
    found = attnbench_process("tl", "lower", "--task", "mha", "--compile", "--json", timeout=200)
    assert found.returncode == 0, found.stderr
    rows = {row["arch"]: row for row in json.loads(found.stdout)}
    assert {"sm_80", "sm_89", "sm_90"} <= set(rows)
    assert all(row["shared_bytes"] > 0 and row["tensor_core"] for row in rows.values())


def test_lower_to_cuda_prints_the_kernel_and_compiles_it_for_a_target() -> None:
    printed = attnbench("tl", "lower", "--task", "mha", "--backend", "cuda", "--tile", "BM=64,warps=4")
    assert printed.returncode == 0 and "__global__" in printed.stdout
    found = attnbench(
        "tl", "lower", "--task", "mha", "--backend", "cuda", "--target", "t4", "--compile", "--json"
    )
    (row,) = json.loads(found.stdout)
    assert (row["arch"], row["spill_bytes"]) == ("sm_75", 0) and "m16n8k8" in row["tensor_core"][0]
    refused = attnbench("tl", "lower", "--task", "mha", "--backend", "cuda", "--tile", "BM=24")
    assert refused.returncode == 1 and "multiples of 16" in refused.stdout


def test_format_prints_checks_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.tl"
    path.write_text("# mine\n" + MHA.replace("Compute", "COMPUTE  "))
    assert attnbench("tl", "format", str(path), "--check").returncode == 1
    printed = attnbench("tl", "format", str(path)).stdout
    assert attnbench("tl", "format", str(path), "--write").returncode == 0
    assert path.read_text() == printed
    assert "# mine" in printed and "COMPUTE" not in printed
    assert attnbench("tl", "format", str(path), "--check").returncode == 0
    assert attnbench("tl", "format", "--task", "mha").stdout == MHA
    path.write_text("Compute GEMM Q K\n")
    found = attnbench("tl", "format", str(path), "--write")
    assert found.returncode == 1 and "TL001" in found.stdout
    assert path.read_text() == "Compute GEMM Q K\n"


def test_space_says_how_many_choices_fit_and_why_others_do_not() -> None:
    found = attnbench("tl", "space", "--task", "mla_prefill", "--target", "a100").stdout
    assert "BM in {64, 128}, BN in {32, 64, 128}, warps in {4, 8}, stages in {2, 3}" in found
    assert "head dimensions 192 and 128: 24 choices" in found
    assert "by TL701, shared memory" in found
    (record,) = json.loads(
        attnbench("tl", "space", "--task", "mla_prefill", "--target", "a100", "--json").stdout
    )
    assert len(record["kept"]) + len(record["dropped"]) == 24


@pytest.mark.slow
def test_mutants_prints_the_table() -> None:
    found = attnbench("tl", "mutants", "--quick")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("| defect | mutants |")
    assert "False alarms on" in found.stdout


def test_explain_prints_the_pages_entry() -> None:
    found = attnbench("tl", "explain", "tl401").stdout
    assert found.startswith("TL401 GEMM feeds GEMM without Reshape\n")
    assert "+    Reshape S from" in found and "TL402" not in found


def test_codes_lists_all_of_them() -> None:
    assert {row["code"] for row in json.loads(attnbench("tl", "codes", "--json").stdout)} == set(CODES)
    assert all(code in attnbench("tl", "codes").stdout for code in CODES)


def files(folder: Path) -> None:
    """Files that hold no program."""
    (folder / "empty.tl").write_text("\n  \n")
    (folder / "binary.tl").write_bytes(b"\x7fELF\0\0\1")
    (folder / "latin.tl").write_bytes("Kernel \xe9".encode("latin-1"))
    (folder / "nameless.tl").write_text(MHA.replace("Kernel mha", "Kernel x"))
    (folder / "long.tl").write_text("# \n" * 200_000)
    (folder / "folder").mkdir()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("check missing.tl", "missing.tl: No such file"),
        ("check folder", "folder is a folder"),
        ("check empty.tl", "empty.tl is empty"),
        ("check binary.tl --task mha", "binary.tl is a binary file"),
        ("check latin.tl --task mha", "latin.tl is no text in UTF-8"),
        ("check long.tl --task mha", "longer than 256 KiB"),
        ("check nameless.tl", "add --task NAME"),
        ("check", "give a file with a program, or --task NAME"),
        ("check --task mah", "unknown task 'mah'; did you mean mha"),
        ("check --task mha --target h1000", "unknown target 'h1000'"),
        ("check --task mha --dtype fp61", "unknown dtype 'fp61'"),
        ("check --task mha --level code --tasks nowhere", "nowhere does not exist"),
        ("run --task mha --tile BX=64", "no tile parameter BX; it has: BM, BN"),
        ("run --task mha --tile BM", "write NAME=NUMBER"),
        ("run --task mha --tile BM=0", "write NAME=NUMBER"),
        ("run --task mha --tile BM=99999,BN=99999", "tile S would hold"),
        ("run --task mha --seq-q 900000", "scores are too many to interpret"),
        ("run --task mha --workload smoke:99", "smoke:0 to smoke:"),
        ("run --task mha --workload nosuch", "has no workload 'nosuch'"),
        ("run --task mha --param window=3", "has the parameters: none"),
        ("run --task gqa_causal --heads 3", "cannot share 2 kv heads"),
        ("run --task mha --recipe nosuch", "unknown input recipe 'nosuch'"),
        ("lower --task mha --backend tritno", "unknown backend 'tritno'"),
        ("lower --task mha --backend numba --compile", "take the triton or the cuda backend"),
        ("lower --task mha --backend cuda --dtype fp32 --compile", "no tensor core of this code"),
        ("space --task mha --target cpu", "give a GPU"),
        ("format", "give a file"),
        ("format - --write", "--write needs a file"),
        ("explain TL999", "no code 'TL999'"),
    ],
)
def test_a_wrong_input_is_answered_with_the_way_out(arguments: str, says: str, tmp_path: Path) -> None:
    files(tmp_path)
    found = attnbench("tl", *arguments.split(), cwd=tmp_path)
    assert found.returncode == 2, found.stdout + found.stderr
    assert says in found.stderr
    assert "Traceback" not in found.stderr


def test_an_out_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = attnbench("tl", "lower", "--task", "mha", "--out", str(tmp_path / "file" / "x"))
    assert found.returncode == 4
    assert "cannot write" in found.stderr and "Traceback" not in found.stderr


def test_an_interrupt_leaves_cleanly() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "harness.cli", "tl", "format", "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stdin is not None
    process.stdin.write("# a remark\n" * 20_000)  # more than a pipe holds: written means that it is read
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
