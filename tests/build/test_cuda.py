"""A CUDA file becomes kernels: what is compiled, what is passed, and on a GPU what comes out."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from harness.build.cuda import Source, device_arch
from harness.build.launches import LaunchError, passed, three
from harness.build.nvrtc import CompileError
from harness.build.products import ARCH_VARIABLE, CACHE_VARIABLE
from harness.build.tensor_maps import TensorMap, tensor_map

SCALE = """
#include "constants.cuh"
template <int N> __global__ void scale(const float* x, float* y, int n, float by, bool negate, long long offset) {
    extern __shared__ float kept[];
    int at = blockIdx.x * N + threadIdx.x;
    if (at >= n) return;
    kept[threadIdx.x] = x[at + offset] * by * TIMES;
    y[at] = negate ? -kept[threadIdx.x] : kept[threadIdx.x];
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    (tmp_path / "kernel.cu").write_text(SCALE)
    (tmp_path / "constants.cuh").write_text("#define TIMES 3.0f\n")
    (tmp_path / "notes.txt").write_text("nobody includes this\n")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(ARCH_VARIABLE, raising=False)
    return Source(str(tmp_path / "attention.py"))


def test_a_recipe_holds_the_file_its_headers_and_macros(source: Source) -> None:
    recipe = source.recipe("scale<64>", "sm_80", {"B": 2, "A": "half"})
    assert (recipe.source, recipe.names, recipe.arch) == (SCALE, ("scale<64>",), "sm_80")
    assert recipe.headers == (("constants.cuh", "#define TIMES 3.0f\n"),)
    assert recipe.defines == (("A", "half"), ("B", "2"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"kernels\.cu cannot be read"):
        Source(str(tmp_path / "attention.py"), "kernels.cu").recipe("k", "sm_80")


def test_who_runs_a_candidate_may_choose_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARCH_VARIABLE, "compute_75")
    assert device_arch() == "compute_75"


def test_arguments_are_passed_as_c_has_them() -> None:
    x = torch.zeros(3)
    assert passed(x).value == x.data_ptr()
    kinds = [(True, ctypes.c_bool), (7, ctypes.c_int32), (-(2**31), ctypes.c_int32), (0.5, ctypes.c_float)]
    for value, kind in kinds:
        assert isinstance(passed(value), kind) and passed(value).value == value
    for own in (ctypes.c_int64(2**40), TensorMap()):
        assert passed(own) is own


@pytest.mark.parametrize(("argument", "says"), [(2**31, "c_int64"), ("x", "str"), (None, "NoneType")])
def test_what_c_cannot_have_is_refused(argument: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        passed(argument)


@pytest.mark.parametrize(("dim", "sizes"), [(4, (4, 1, 1)), ((4, 5), (4, 5, 1)), ((4, 5, 6), (4, 5, 6))])
def test_grids_and_blocks_have_three_sizes(dim: int | tuple[int, ...], sizes: tuple[int, int, int]) -> None:
    assert three(dim) == sizes


@pytest.mark.parametrize("dim", [0, (), (1, 0), (1, 2, 3, 4)])
def test_a_size_that_cannot_be_is_refused(dim: int | tuple[int, ...]) -> None:
    with pytest.raises(LaunchError):
        three(dim)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("arch", ["", "compute_75", "compute_80"])
def test_a_kernel_runs_from_machine_code_and_through_the_drivers_compiler(
    source: Source, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    if arch:
        monkeypatch.setenv(ARCH_VARIABLE, arch)
    x, y = torch.randn(1000, device="cuda"), torch.zeros(900, device="cuda")
    kernel = source.kernel("scale<64>")
    launch = kernel[15, 64, 60 << 10]  # more shared memory than a kernel has without asking
    launch(x, y, 900, 0.5, True, ctypes.c_int64(100))
    assert torch.equal(y, -(x[100:] * 0.5 * 3))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(x, y, 900, 2.0, False, ctypes.c_int64(100))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, x[100:] * 2 * 3)
    assert source.kernel("scale<64>") is kernel
    with pytest.raises(LaunchError, match="shared memory"):
        kernel[1, 64, 1 << 20](x, y, 1, 1.0, False, ctypes.c_int64(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_tensor_map_is_made_of_a_strided_tensor() -> None:
    x = torch.zeros(2, 64, 4, 128, dtype=torch.float16, device="cuda")
    assert any(tensor_map(x, (1, 64, 1, 64)).opaque)
    with pytest.raises(LaunchError):
        tensor_map(x, (64, 64))
    with pytest.raises(LaunchError):
        tensor_map(x, (1, 512, 1, 64))
