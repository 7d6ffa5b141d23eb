"""One cell on a GPU from end to end: human baselines and the example kernel."""

import dataclasses
from pathlib import Path

import pytest
import torch

from harness.bench import Bench
from harness.build.manifest import read_candidate
from harness.experiment import experiment_of, make_plan
from harness.pipeline import evaluate
from harness.store import Store
from harness.targets import find_target, target_of_device
from harness.verdicts import Verdict
from tasks import discover
from tests.conftest import SANDBOX, TINY_TASK
from tests.ground import Silent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

EXAMPLE = Path(__file__).parents[1] / "examples" / "candidates" / "triton_flash"
SAVED = """
import torch.nn.functional as F

def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out.copy_(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2))
"""


def test_a_cell_is_measured_by_kernel_records_and_a_library_is_recognised(tmp_path):
    target = target_of_device(torch.cuda.get_device_name(0))
    if target is None or target.capability < (8, 0):
        pytest.skip("needs a GPU of the Ampere generation or later that the target table knows")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    text = TINY_TASK.replace('"fp32"', '"fp16"').replace("n, n, 32, 32", "n, n, 64, 64")
    text = text.replace("shape(64), shape(96), shape(128)", "shape(1024),").replace(
        "1, 2, 2, n", "4, 8, 8, n"
    )
    (tasks / "tiny.py").write_text(text)
    mine = tmp_path / "mine"
    mine.mkdir()
    for source in EXAMPLE.glob("*.py"):
        (mine / source.name).write_bytes(source.read_bytes())
    (mine / "candidate.toml").write_text('task = "tiny"\nbackend = "triton"\nentry = "causal.py"\n')
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    (borrowed / "attention.py").write_text(SAVED)
    (borrowed / "candidate.toml").write_text('task = "tiny"\nbackend = "torch"\n')
    data = {
        "target": target.name,
        "tasks": ["tiny"],
        "workloads": "smoke",
        "baselines": ["cudnn", "sdpa-flash", "naive"],
    }
    experiment = experiment_of(data, "test")
    plan = make_plan(experiment, discover(tasks), [read_candidate(mine), read_candidate(borrowed)])
    with (
        Store(tmp_path / "run", resume=False) as store,
        Bench(experiment, find_target(target.name), task_folders=[tasks], sandbox=SANDBOX) as bench,
    ):
        evaluate(plan, bench, store, Silent())
        found = {r.candidate.name: r for r in store.results.values()}
    assert {n: r.verdict for n, r in found.items() if n != "borrowed"} == dict.fromkeys(
        ("cudnn", "sdpa-flash", "naive", "mine"), Verdict.OK
    )
    measured = found["mine"].measurement
    assert measured is not None
    assert measured.clock == "kernel_records"
    assert measured.captured
    assert any("_forward" in k.name for k in measured.kernels)
    assert measured.noise is not None
    assert abs(measured.noise.median - 1) < 0.02
    assert measured.graph_time is not None
    assert measured.graph_time.median_ms > measured.device_time.median_ms
    assert {r.measurement.clock for r in found.values() if r.measurement} == {"kernel_records"}
    assert {r.measurement.ratio.anchor for r in found.values() if r.measurement} <= {"cudnn", "sdpa-flash"}
    verification = found["mine"].verification
    assert verification is not None
    assert sum(c.timed for c in verification.checks) == 4
    assert found["borrowed"].verdict is Verdict.LIBRARY_DISPATCH, found["borrowed"].reason
    assert found["borrowed"].measurement is not None


PLAIN = EXAMPLE.parent / "cuda_plain"


def cuda_candidate(folder: Path, kernel: str, name: str) -> Path:
    """The plain CUDA example for the tiny causal task, with its kernel changed."""
    place = folder / name
    place.mkdir()
    (place / "launch.py").write_bytes((PLAIN / "launch.py").read_bytes())
    (place / "attention.py").write_bytes((PLAIN / "causal.py").read_bytes())
    (place / "kernel.cu").write_text(kernel)
    (place / "candidate.toml").write_text('task = "tiny"\nbackend = "cuda"\n')
    return place


def outcomes(tmp_path: Path, target: str, stand_in: str | None, candidates: list[Path], baselines: list[str]):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    text = TINY_TASK.replace('"fp32"', '"fp16"').replace("n, n, 32, 32", "n, n, 64, 64")
    text = text.replace("shape(64), shape(96), shape(128)", "shape(256),").replace("1, 2, 2, n", "2, 4, 4, n")
    (tasks / "tiny.py").write_text(text)
    data = {"target": target, "tasks": ["tiny"], "workloads": "smoke", "baselines": baselines or ["naive"]}
    experiment = experiment_of(data, "test")
    plan = make_plan(experiment, discover(tasks), [read_candidate(c) for c in candidates])
    if stand_in:
        plan = dataclasses.replace(plan, baselines=())
    with (
        Store(tmp_path / "run", resume=False) as store,
        Bench(
            experiment,
            find_target(target),
            task_folders=[tasks],
            sandbox=SANDBOX,
            stand_in=find_target(stand_in) if stand_in else None,
        ) as bench,
    ):
        evaluate(plan, bench, store, Silent())
        return {r.candidate.name: r for r in store.results.values()}


def test_cuda_is_compiled_ahead_measured_and_described_and_bad_cuda_gets_its_verdict(tmp_path):
    target = target_of_device(torch.cuda.get_device_name(0))
    if target is None:
        pytest.skip("needs a GPU that the target table knows")
    source = (PLAIN / "kernel.cu").read_text()
    kernels = {
        "good": source,
        "unbuilt": source.replace("float top =", "float top = undeclared +"),
        "wrong": source.replace("row + seq_k - seq_q + 1", "row + seq_k - seq_q"),
        "astray": source.replace("const T* mine = q +", "const T* mine = q + (1ll << 44) +"),
    }
    places = [cuda_candidate(tmp_path, kernel, name) for name, kernel in kernels.items()]
    found = outcomes(tmp_path, target.name, None, places, ["sdpa-flash"])
    assert {n: found[n].verdict for n in kernels} == {
        "good": Verdict.OK,
        "unbuilt": Verdict.BUILD_ERROR,
        "wrong": Verdict.WRONG_NUMERICS,
        "astray": Verdict.CRASH,
    }
    assert 'identifier "undeclared" is undefined' in found["unbuilt"].reason
    (kernel,) = found["good"].kernels
    assert kernel.arch.startswith(target.arch) and kernel.registers > 0 and kernel.tensor_core == ()


def test_an_older_targets_kernels_are_proven_and_never_timed(tmp_path):
    here = target_of_device(torch.cuda.get_device_name(0))
    if here is None or here.capability < (8, 0):
        pytest.skip("needs a GPU newer than a T4 that the target table knows")
    place = cuda_candidate(tmp_path, (PLAIN / "kernel.cu").read_text(), "plain")
    (result,) = outcomes(tmp_path, "t4", here.name, [place], []).values()
    assert result.verdict is Verdict.PROVEN and result.measurement is None
    assert "from PTX of compute_75" in result.reason and result.target == "t4"
    assert {kernel.arch for kernel in result.kernels} == {"sm_75"}
    assert result.verification is not None and result.verification.passed
