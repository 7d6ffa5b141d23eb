"""CUDA is compiled ahead of what needs it, and what the compiler says of it is the harness's own knowledge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import presses as presses_module
from harness.build.launches import Planned
from harness.build.manifest import Manifest, read_candidate
from harness.experiment import Cell
from harness.presses import Press, Presses, machine_arch, ptx_arch
from harness.static_report import compile_all, markdown, write
from harness.targets import find_target
from harness.worker.process import Worker
from harness.worker.protocol import WorkerLost
from tasks import find
from tests.conftest import SANDBOX

EXAMPLES = Path(__file__).parents[1] / "examples" / "candidates"
CELLS = [Cell(find("mha"), w.with_(dtype="fp16")) for w in find("mha").workload_set("smoke")[:2]]
A100, T4 = find_target("a100"), find_target("t4")

ATTENTION = """
from harness.build.cuda import Source
SOURCE = Source(__file__)
def attention(q, k, v, out, *, scale):
    SOURCE.kernel("k")[1, 32, {shared}](q)
"""


def candidate(folder: Path, kernel: str, entry: str = ATTENTION, shared: int = 0) -> Manifest:
    folder.mkdir()
    (folder / "candidate.toml").write_text('task = "mha"\nbackend = "cuda"\n')
    (folder / "kernel.cu").write_text(kernel)
    (folder / "attention.py").write_text(entry.replace("{shared}", str(shared)))
    return read_candidate(folder)


def pressed(manifest: Manifest, tmp_path: Path, target: str = "a100", arch: str = "") -> list[Press]:
    goal = find_target(target)
    presses = Presses(goal, tmp_path / "cache", arch or machine_arch(goal), SANDBOX)
    try:
        presses.foresee(manifest, CELLS)
        return [p for cell in CELLS if (p := presses.of(manifest, cell, 120.0)) is not None]
    finally:
        presses.close()


@pytest.mark.parametrize(
    ("target", "machine", "ptx"),
    [("t4", "sm_75", "compute_75"), ("a100", "sm_80", "compute_80"), ("h100", "sm_90a", "compute_90")],
)
def test_architectures(target: str, machine: str, ptx: str) -> None:
    assert (machine_arch(find_target(target)), ptx_arch(find_target(target))) == (machine, ptx)


def test_what_a_candidate_launches_is_compiled_and_described(tmp_path: Path) -> None:
    found = pressed(read_candidate(EXAMPLES / "cuda_plain"), tmp_path)
    assert len(found) == len(CELLS) and not any(p.problem for p in found)
    kernel = found[0].kernels[0]
    assert kernel.arch == "sm_80" and kernel.name.startswith("attention<half, ")
    assert (kernel.threads, kernel.tensor_core, kernel.spill_bytes) == (128, (), 0)
    assert 10 < kernel.registers < 200 and kernel.shared_bytes > 0
    assert kernel.blocks is not None and kernel.occupancy is not None and 0 < kernel.occupancy <= 1


def test_a_worker_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    pressed(read_candidate(EXAMPLES / "cuda_plain"), tmp_path, arch="compute_80")
    kept = list((tmp_path / "cache").glob("*/*/product.json"))
    assert {json.loads(p.read_text())["arch"] for p in kept} == {"sm_80", "compute_80"}


def test_a_candidate_is_asked_once_a_cell_and_others_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(worker: Worker, manifest: Manifest, cell: Cell, *rest: object) -> list[Planned]:
        asked.append(f"{manifest.name} {cell.workload.key}")
        return []

    monkeypatch.setattr(presses_module, "launches", counted)
    presses = Presses(A100, tmp_path / "cache", "sm_80", SANDBOX)
    mine, other = read_candidate(EXAMPLES / "cuda_plain"), read_candidate(EXAMPLES / "triton_flash")
    for _ in range(3):
        presses.foresee(mine, CELLS)
        presses.foresee(other, CELLS)
    assert presses.of(other, CELLS[0]) is None
    assert all(presses.of(mine, cell, 60.0) is not None for cell in CELLS)
    assert asked == [f"cuda_plain {cell.workload.key}" for cell in CELLS]
    presses.close()


def test_a_call_that_asks_for_endless_compilations_gets_none(tmp_path: Path) -> None:
    many = ATTENTION.replace(
        'SOURCE.kernel("k")[1, 32, {shared}](q)',
        """for n in range(1000):
        SOURCE.kernel(f"k<{n}>")[1, 32](q)""",
    )
    (first, *_) = pressed(candidate(tmp_path / "c", "", many), tmp_path)
    assert first.kernels == () and "more than 32 compilations" in first.problem
    assert not (tmp_path / "cache").exists()


def test_a_kernel_that_does_not_compile_says_why(tmp_path: Path) -> None:
    (first, _) = pressed(candidate(tmp_path / "c", "__global__ void k(float* x) { y = 1; }\n"), tmp_path)
    assert 'identifier "y" is undefined' in first.problem and first.kernels == ()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("def attention(q, k, v, out, *, scale): pass\n", "launched no kernel of its own"),
        ("def attention(q, k, v, out, *, scale): q.cpu().numpy()\n", "meta"),
        ("import os\nos._exit(3)\n", "worker"),
        ("x = 1\n", "defines no function attention"),
    ],
)
def test_a_candidate_that_cannot_say_what_it_launches_is_left_to_its_worker(
    tmp_path: Path, entry: str, why: str
) -> None:
    found = pressed(candidate(tmp_path / "c", "", entry), tmp_path)
    assert found and all(p.kernels == () for p in found)
    assert why in found[0].problem


def test_the_static_report_counts_spills_and_launches_that_do_not_fit(tmp_path: Path) -> None:
    good = read_candidate(EXAMPLES / "cuda_plain")
    large = candidate(tmp_path / "large", "__global__ void k(float* x) { x[0] = 1; }\n", shared=70 << 10)
    bad = candidate(tmp_path / "bad", "nonsense\n")
    static = compile_all(T4, [good, large, bad, read_candidate(EXAMPLES / "triton_flash")], CELLS, SANDBOX)
    assert {row.candidate for row in static.rows} == {"cuda_plain", "large"}
    assert [row.candidate for row in static.oversized] == ["large"]  # a T4 has 64 KiB
    assert static.spilling == []
    assert {name for name, _, _ in static.problems} == {"bad"} and len(static.problems) == len(CELLS)
    text = markdown(static)
    assert "nothing was run and nothing timed" in text and "bad, mha" in text and "and 1 more" in text
    as_json, _ = write(static, tmp_path)
    record = json.loads(as_json.read_text())
    assert record["arch"] == "sm_75" and "time_ms" not in as_json.read_text()
    assert sum(len(k["cells"]) for k in record["kernels"]) == 2 * len(CELLS)


def test_where_no_worker_can_be_had_nobody_waits_for_its_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **more: object) -> Worker:
        raise WorkerLost("no folder for a worker: No space left on device")

    monkeypatch.setattr(presses_module, "Worker", full)
    found = pressed(read_candidate(EXAMPLES / "cuda_plain"), tmp_path)
    assert [p.problem for p in found] == ["no worker: no folder for a worker: No space left on device"] * len(
        CELLS
    )
