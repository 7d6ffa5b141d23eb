"""What ptxas says is read as it is, and occupancy is what NVIDIA's calculator gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.build.products import Product
from harness.build.resources import MULTIPROCESSORS, facts, occupancy

LOG = """ptxas info    : 2810 bytes gmem, 9624 bytes cmem[4]
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     48 bytes stack frame, 44 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, 16384 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 42.154 ms
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 368 bytes cmem[0]
"""
PTX = """
.version 9.0
.target sm_80
.visible .entry first(
	.param .u64 first_param_0
)
{
	cp.async.cg.shared.global [%r1], [%rd1], 16;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];
	mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};
}
.entry second()
{
	ret;
}
"""


def product(log: str = LOG, arch: str = "sm_80") -> Product:
    return Product(arch, b"", PTX, {}, log)


def test_each_kernel_has_its_own_facts() -> None:
    first, second = facts(product())
    assert (first.symbol, first.registers, first.spill_bytes, first.stack_bytes) == ("first", 255, 96, 48)
    assert first.shared_bytes == 16384
    assert first.tensor_core == (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32",
    )
    assert first.copies == ("cp.async.cg.shared.global", "ldmatrix")
    assert (second.symbol, second.registers, second.spill_bytes, second.tensor_core) == ("second", 10, 0, ())


def test_a_kernel_that_ptxas_did_not_see_has_no_figures() -> None:
    assert [f.registers for f in facts(product("", "compute_80"))] == [0, 0]


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "blocks", "limit"),
    [
        # By hand from the tables of the programming guide.
        ("sm_80", 128, 128, 48 << 10, 3, "shared memory"),  # 164 KB over 49 KB
        ("sm_80", 255, 128, 16 << 10, 2, "registers"),  # 8 warps of 8192 registers
        ("sm_80", 32, 1024, 0, 2, "threads"),
        ("sm_80", 40, 96, 0, 16, "registers"),  # 51 warps fit, given out by four
        ("sm_80", 16, 32, 0, 32, "blocks"),
        ("sm_75", 64, 128, 32 << 10, 2, "shared memory"),
        ("sm_75", 64, 256, 0, 4, "threads"),
        ("sm_89", 168, 128, 40 << 10, 2, "shared memory"),
        ("sm_90a", 168, 384, 200 << 10, 1, "registers"),
        ("sm_90", 64, 128, 227 << 10, 1, "shared memory"),
        ("sm_80", 64, 128, 164 << 10, 0, "shared memory"),  # the driver's own kilobyte is missing
    ],
)
def test_occupancy_by_hand(
    arch: str, registers: int, threads: int, shared: int, blocks: int, limit: str
) -> None:
    found = occupancy(arch, registers, threads, shared)
    assert (found.blocks, found.limited_by) == (blocks, limit)
    assert found.warps == blocks * -(-threads // 32)


@given(
    st.sampled_from(sorted(MULTIPROCESSORS)),
    st.integers(1, 255),
    st.integers(1, 1024),
    st.integers(0, 200 << 10),
)
def test_more_of_anything_never_gives_more_blocks(
    arch: str, registers: int, threads: int, shared: int
) -> None:
    here = occupancy(arch, registers, threads, shared)
    assert 0 <= here.share <= 1
    assert occupancy(arch, min(255, registers + 8), threads, shared).blocks <= here.blocks
    assert occupancy(arch, registers, min(1024, threads + 32), shared).blocks <= here.blocks
    assert occupancy(arch, registers, threads, shared + 1024).blocks <= here.blocks


def test_limits_of_an_unknown_architecture_are_not_made_up() -> None:
    with pytest.raises(KeyError):
        occupancy("sm_30", 32, 32, 0)
