"""The CUDA examples compile for every architecture, on the tensor cores that they say they use.

CuTe's layout algebra compiles for most of a minute, so by default one architecture stands for it;
ATTNBENCH_EVERY_ARCHITECTURE=1 takes all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.build.nvrtc import CompileError, Recipe, compiled
from harness.build.resources import facts

EXAMPLES = Path(__file__).parents[2] / "examples" / "candidates"
ARCHS = ("sm_75", "sm_80", "sm_89", "sm_90a")
EVERY = os.environ.get("ATTNBENCH_EVERY_ARCHITECTURE") == "1"


def recipe(example: str, arch: str, name: str) -> Recipe:
    return Recipe((EXAMPLES / example / "kernel.cu").read_text(), arch, (name,))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["half", "__nv_bfloat16", "float"])
def test_plain_cuda_compiles_everywhere(arch: str, dtype: str, tmp_path: Path) -> None:
    for causal in ("true", "false"):
        product = compiled(recipe("cuda_plain", arch, f"attention<{dtype}, 128, {causal}>"), tmp_path)
        (kernel,) = facts(product)
        assert (kernel.spill_bytes, kernel.tensor_core) == (0, ())


def test_bf16_is_refused_where_no_tensor_core_multiplies_it(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="incomplete"):
        compiled(recipe("cute_flash", "compute_75", "attention<bfloat16_t, 64, 64, 16, 4, true>"), tmp_path)


@pytest.mark.parametrize("arch", ARCHS if EVERY else ["compute_80"])
def test_cute_compiles_for_tensor_cores(arch: str, tmp_path: Path) -> None:
    for dim in (64, 128) if EVERY else (64,):
        name = f"attention<half_t, {dim}, 64, 64, 4, true>"
        (kernel,) = facts(compiled(recipe("cute_flash", arch, name), tmp_path))
        assert kernel.spill_bytes == 0 and "ldmatrix" in kernel.copies
        assert ("m16n8k8" if arch == "sm_75" else "m16n8k16") in kernel.tensor_core[0]
