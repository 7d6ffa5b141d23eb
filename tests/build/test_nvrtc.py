"""CUDA C++ is compiled for every architecture without a GPU, once for each content, within its time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from harness.build import nvrtc
from harness.build.nvrtc import SHIMS, CompileError, CompilerMissing, Recipe, compile_all, compiled
from harness.build.products import Product, keep, read
from harness.build.resources import facts

try:
    nvrtc.include_folders()
except CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

ARCHS = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_90a")
SCALE = """
#include <cuda_fp16.h>
#include "constants.cuh"
template <int N> __global__ void scale(const half* x, half* y) {
    int at = blockIdx.x * N + threadIdx.x;
    y[at] = __float2half(__half2float(x[at]) * FACTOR * TIMES);
}
"""
RECIPE = Recipe(
    SCALE, "sm_80", ("scale<64>",), (("FACTOR", "2.0f"),), (("constants.cuh", "#define TIMES 3.0f\n"),)
)
# What CuTe makes of two MMA atoms: enough to see its headers work, and the right instruction come out.
CUTE = """
#include <cute/tensor.hpp>
using namespace cute;
__global__ void one_product(const half_t* a, const half_t* b, float* c) {
    TiledMMA mma = make_tiled_mma(ATOM{});
    auto slice = mma.get_thread_slice(threadIdx.x);
    Tensor A = make_tensor(make_gmem_ptr(a), make_shape(Int<16>{}, Int<16>{}), make_stride(Int<16>{}, Int<1>{}));
    Tensor B = make_tensor(make_gmem_ptr(b), make_shape(Int<8>{}, Int<16>{}), make_stride(Int<16>{}, Int<1>{}));
    Tensor C = make_tensor(make_gmem_ptr(c), make_shape(Int<16>{}, Int<8>{}), make_stride(Int<8>{}, Int<1>{}));
    Tensor rA = slice.partition_fragment_A(A);
    Tensor rB = slice.partition_fragment_B(B);
    Tensor rC = slice.partition_fragment_C(C);
    copy(slice.partition_A(A), rA);
    copy(slice.partition_B(B), rB);
    clear(rC);
    gemm(mma, rA, rB, rC);
    copy(rC, slice.partition_C(C));
}
"""
ATOMS = {
    "sm_75": ("SM75_16x8x8_F32F16F16F32_TN", "m16n8k8"),
    "sm_80": ("SM80_16x8x16_F32F16F16F32_TN", "m16n8k16"),
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_is_compiled_for_without_a_gpu(cache: Path, arch: str) -> None:
    product = compiled(replace(RECIPE, arch=arch), cache)
    assert product.cubin.startswith(b"\x7fELF")
    assert product.code == product.cubin
    assert f".target {arch}" in product.ptx
    (kernel,) = facts(product)
    assert product.lowered == {"scale<64>": kernel.symbol}
    assert 0 < kernel.registers <= 32 and kernel.spill_bytes == 0
    assert product.versions["nvidia-cuda-nvrtc"]


def test_a_virtual_architecture_gives_what_the_driver_compiles(cache: Path) -> None:
    product = compiled(replace(RECIPE, arch="compute_75"), cache)
    assert product.cubin == b"" and ".target sm_75" in product.ptx
    assert product.code == product.ptx.encode()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ATOMS)
def test_cute_gives_the_tensor_core_instruction_of_the_architecture(cache: Path, arch: str) -> None:
    atom, instruction = ATOMS[arch]
    (kernel,) = facts(compiled(Recipe(CUTE, arch, ("one_product",), (("ATOM", atom),)), cache))
    assert kernel.tensor_core and all(instruction in name for name in kernel.tensor_core)
    assert kernel.spill_bytes == 0


def test_what_was_compiled_is_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled(RECIPE, cache)

    def never(*_: object) -> Product:
        raise AssertionError("compiled twice")

    monkeypatch.setattr(nvrtc, "_in_a_process", never)
    assert compiled(RECIPE, cache) == first


@pytest.mark.parametrize(
    "change",
    [
        {"source": SCALE + "\n"},
        {"arch": "sm_89"},
        {"names": ("scale<32>",)},
        {"defines": (("FACTOR", "4.0f"),)},
        {"headers": (("constants.cuh", "#define TIMES 5.0f\n"),)},
        {"file": "other.cu"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_result_is_in_its_key(change: dict[str, object]) -> None:
    assert replace(RECIPE, **change).key != RECIPE.key  # type: ignore[arg-type]


def test_another_compiler_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RECIPE.key
    monkeypatch.setattr(nvrtc, "versions", lambda: {"nvidia-cuda-nvrtc": "99"})
    assert RECIPE.key != before


@pytest.mark.parametrize("file", ["product.json", "code.cubin", "code.ptx"])
def test_an_entry_that_was_cut_off_is_made_again(cache: Path, file: str) -> None:
    product = compiled(RECIPE, cache)
    folder = next(p.parent for p in cache.rglob("product.json"))
    (folder / file).write_bytes((folder / file).read_bytes()[:-9])
    assert read(folder) is None
    assert compiled(RECIPE, cache).cubin == product.cubin
    assert read(folder) is not None


def test_many_may_keep_the_same_at_once(cache: Path) -> None:
    product = Product("sm_80", b"code", "ptx", {"k": "k"})
    threads = [threading.Thread(target=keep, args=(product, cache / "entry")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(cache / "entry") == product
    assert [p.name for p in cache.iterdir()] == ["entry"]


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (replace(RECIPE, source=SCALE.replace("blockIdx.x", "blockIdx.w")), r"kernel\.cu\(5\): error"),
        (replace(RECIPE, headers=()), "constants.cuh"),
        (replace(RECIPE, names=("scal<64>",)), "scal"),
        (replace(RECIPE, source='#include "/etc/no/such/file"\n' + SCALE), "no/such/file"),
    ],
)
def test_what_the_compiler_refuses_comes_back_as_its_log(cache: Path, recipe: Recipe, says: str) -> None:
    with pytest.raises(CompileError, match=says) as caught:
        compiled(recipe, cache)
    assert not any(str(folder) in str(caught.value) for folder in nvrtc.include_folders())
    assert not list(cache.rglob("product.json"))


def test_a_compilation_ends_at_its_time_limit(cache: Path) -> None:
    source = "#include <cute/tensor.hpp>\n__global__ void k(long* x) { *x = 1; }\n"
    with pytest.raises(CompileError, match=r"within 0\.3 s"):
        compiled(Recipe(source, "sm_80", ("k",)), cache, limit_s=0.3)


def test_a_source_does_not_see_the_keys_of_whoever_compiles_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-planted")
    spying = replace(RECIPE, source='#include "/proc/self/environ"\n' + SCALE)
    with pytest.raises(CompileError) as caught:
        compiled(spying, cache)
    assert "PYTHONPATH" in str(caught.value)  # it was read, and it is in the log
    assert "planted" not in str(caught.value)


def test_one_that_fails_takes_nobody_along(cache: Path) -> None:
    bad = replace(RECIPE, source="oops")
    first, second, third = compile_all([RECIPE, bad, replace(RECIPE, arch="sm_90")], cache)
    assert isinstance(first, Product) and isinstance(third, Product) and isinstance(second, CompileError)
    assert (first.arch, third.arch) == ("sm_80", "sm_90")


@pytest.mark.parametrize(("arch", "names"), [("sm80", ("k",)), ("gfx90a", ("k",)), ("sm_80", ())])
def test_a_recipe_that_cannot_be_is_refused(arch: str, names: tuple[str, ...]) -> None:
    with pytest.raises(CompileError):
        Recipe("", arch, names)


def test_what_is_missing_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(()))
    with pytest.raises(CompilerMissing, match=r"nvidia-cuda-runtime is not installed \(pip install"):
        nvrtc.include_folders.__wrapped__()
    monkeypatch.setattr(nvrtc, "_found", lambda _: None)
    with pytest.raises(CompilerMissing, match="bindings"):
        nvrtc.include_folders.__wrapped__()


def test_headers_that_device_code_includes_by_habit_are_there(tmp_path: Path) -> None:
    shims = sorted(f.name for f in SHIMS.iterdir())
    assert {"stdint.h", "cstdint", "math.h", "float.h"} <= set(shims)
    includes = "".join(f"#include <{name}>\n" for name in (*shims, "mma.h", "cuda.h", "cuda_fp16.h"))
    source = (
        includes
        + """
__global__ void k(float* x, const __grid_constant__ CUtensorMap map) {
    uint32_t a = 1; int64_t b = 2; uintptr_t c = 3; size_t d = sizeof(map);
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> f;
    nvcuda::wmma::fill_fragment(f, 0.f);
    x[0] = INFINITY + FLT_MAX + a + b + c + d + INT_MAX + fmaxf(x[1], f.x[0]);
}
"""
    )
    assert compiled(Recipe(source, "sm_90a", ("k",)), tmp_path).cubin
