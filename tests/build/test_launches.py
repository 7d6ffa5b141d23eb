"""Launches are planned without a GPU: what would be compiled, and how large they would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.build.cuda import Source, device_arch, tensor_map
from harness.build.launches import LaunchError, planning
from harness.build.nvrtc import CompileError, Recipe
from harness.build.resources import facts, first_without_spills

KERNEL = "template <int N> __global__ void k(float* x, int n) { if (n) x[threadIdx.x] = N; }\n"
# Sixty values a thread, all needed at once, in blocks of 1024: more than 64 registers hold.
HUNGRY = """
__global__ void __launch_bounds__(1024) hungry(float* x) {
    float v[60];
    #pragma unroll
    for (int i = 0; i < 60; ++i) v[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 60; ++i)
        #pragma unroll
        for (int j = 0; j < 60; ++j) v[i] = v[i] * v[j] + 1.f;
    #pragma unroll
    for (int i = 0; i < 60; ++i) x[i * 1024 + threadIdx.x] = v[i];
}
"""


def test_what_would_be_launched_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text(KERNEL)
    source = Source(str(tmp_path / "attention.py"))
    with planning("sm_80") as found:
        assert device_arch() == "sm_80"
        kernel = source.kernel("k<4>", {"A": 1}, optimize=range(3, 1, -1))
        kernel[(7, 2), 64, 100](torch.empty(4, device="meta"), 3)
    (plan,) = found
    assert (plan.grid, plan.block, plan.threads, plan.shared_bytes) == ((7, 2, 1), (64, 1, 1), 64, 100)
    assert [(r.names, r.arch, r.optimize) for r in plan.recipes] == [(("k<4>",), "sm_80", n) for n in (3, 2)]
    assert plan.recipes[0].defines == (("A", "1"),)


def test_a_planned_launch_is_as_strict_as_a_real_one(tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text(KERNEL)
    source = Source(str(tmp_path / "attention.py"))
    with planning("sm_80") as found:
        with pytest.raises(TypeError, match="no 32-bit int"):
            source.kernel("k<4>")[1, 32](torch.empty(1, device="meta"), 1 << 40)
        with pytest.raises(LaunchError, match="one to three sizes"):
            source.kernel("k<4>")[(1, 1, 1, 1), 32]
    assert found == []


def test_a_tensor_map_is_planned_without_an_address(tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text(KERNEL)
    source = Source(str(tmp_path / "attention.py"))
    with planning("sm_90a") as found:
        mapped = tensor_map(torch.empty(8, 64, dtype=torch.float16, device="meta"), (4, 64))
        source.kernel("k<4>")[1, 32](mapped, 3)
        with pytest.raises(LaunchError, match="no tensor map"):
            tensor_map(torch.empty(8, 64, device="meta"), (4,))
    assert len(found) == 1


def test_levels_of_ptxas_that_there_are_not_are_refused(tmp_path: Path) -> None:
    for level in (4, -1, "3 --verbose", True):
        with pytest.raises(CompileError, match="the levels 0 to 3"):
            Recipe(KERNEL, "sm_80", ("k<1>",), optimize=level)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="at least one level"):
        first_without_spills([], tmp_path)


def test_the_first_level_without_spills_is_taken(tmp_path: Path) -> None:
    hungry = [Recipe(HUNGRY, "sm_80", ("hungry",), optimize=level) for level in (3, 2)]
    modest = Recipe(KERNEL, "sm_80", ("k<1>",))
    assert facts(first_without_spills([hungry[0]], tmp_path)[1])[0].spill_bytes > 0
    assert first_without_spills([hungry[0], modest], tmp_path)[0] == modest
    assert first_without_spills([modest, hungry[0]], tmp_path)[0] == modest
    ptx = Recipe(HUNGRY, "compute_80", ("hungry",))  # nobody knows yet what the driver will make of it
    assert first_without_spills([ptx, modest], tmp_path)[0] == ptx
