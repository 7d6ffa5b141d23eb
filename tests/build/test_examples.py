"""Claims about the example candidates: the good ones are right on every tail, the broken ones are broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tasks
from harness.build.loader import load
from harness.build.manifest import read_candidate
from tasks.oracle import expected
from tasks.spec import Workload

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "candidates"
TASKS = ("mha", "mha_causal", "gqa_causal")


def run(*words: str) -> None:
    command = [sys.executable, "-m", "tests.build.example_worker", *words]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr


def test_numba_cpu_agrees_with_the_oracle() -> None:
    run("numba_cpu", ",".join(TASKS), "cpu", "fp32")  # in one process: compiled once, by the same name


@pytest.mark.parametrize(("task", "dtype"), [("mha", "fp16"), ("mha_causal", "fp32"), ("gqa_causal", "fp16")])
def test_triton_flash_agrees_with_the_oracle_in_the_interpreter(task: str, dtype: str) -> None:
    run("triton_flash", task, "cpu", dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_triton_flash_agrees_with_the_oracle_on_this_gpu(task: str, dtype: str) -> None:
    run("triton_flash", task, "cuda", dtype)


def test_broken_mask_edge_is_wrong_by_more_than_rounding() -> None:
    manifest, task = read_candidate(EXAMPLES / "broken_mask_edge"), tasks.find("mha_causal")
    attention = load(manifest.folder, manifest.entry(task.name), "torch", torch.device("cpu")).function
    w = Workload("mha_causal", 1, 2, 2, 64, 64, 32, 32, "fp32")
    inputs = {s.name: torch.randn(s.shape(w)) for s in task.inputs}
    out = torch.empty(1, 64, 2, 32)
    attention(*inputs.values(), out, scale=w.softmax_scale)
    assert (out - expected(task, w, inputs)["out"]).abs().max() > 0.1


CALL = (
    "import sys, torch; from pathlib import Path; from harness.build.loader import load\n"
    "attention = load(Path(sys.argv[1]), 'attention.py', 'torch', torch.device('cpu')).function\n"
    "print('loaded', flush=True); x = torch.zeros(1, 2, 1, 8); attention(x, x, x, x.clone(), scale=1.0)"
)


def test_broken_crash_takes_its_process_down_in_the_call() -> None:
    command = [sys.executable, "-c", CALL, str(EXAMPLES / "broken_crash")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "loaded"
    assert ran.returncode < 0


def test_broken_hang_never_returns() -> None:
    command = [sys.executable, "-c", CALL, str(EXAMPLES / "broken_hang")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "loaded"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        process.kill()
