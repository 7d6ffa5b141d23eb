"""Causal sliding-window attention, compiled for Hopper from the LLM-TL program `sliding_window`.

Each block works on tiles of the grid, one after the other. One warp, the producer, copies what the program
loads to shared memory, through channels: rings of places with a barrier for full and one for empty. Every
other statement runs in the consumers, warpgroups with 64 rows of the tile each, and stands above its code.
Rounds of a loop that need no mask have a loop of their own. Devices other than Hopper, other types than fp16
and bf16, and tensors that descriptors cannot serve go to the Triton compiler's kernel in `fallback.py`.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from fallback import attention as plain
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Names that Triton 3.7 changed.
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
tma_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

LOG2_E = gl.constexpr(1.4426950408889634)


def _moving() -> str:
    """Assembly: two maxima, and factors for what was summed up; of two that were found, and the two before.

    A maximum stays until one is found that is more than 5.5 above it: powers of e stay below 245, well inside
    fp16. Where no thread of a warp has found one, that is all. Else the four threads of a row, which are
    neighbours, take the greatest of what they have.
    """
    lines = ["{ .reg .pred some, mine; .reg .f32 most, other, factor, limit0, limit1;"]
    lines += [f"add.rn.f32 limit{n}, ${6 + n}, 0f40B00000;" for n in (0, 1)]
    lines += ["setp.gt.f32 some, $4, limit0;", "setp.gt.or.f32 some, $5, limit1, some;"]
    lines += ["vote.sync.any.pred some, some, 0xffffffff;"]
    lines += [f"mov.b32 ${n}, ${6 + n}; mov.b32 ${2 + n}, 0f3F800000;" for n in (0, 1)]
    lines += ["@!some bra.uni KEPT;"]
    for n in (0, 1):
        lines += [
            f"shfl.sync.bfly.b32 other, ${4 + n}, 1, 31, 0xffffffff;", f"max.f32 most, ${4 + n}, other;",
            "shfl.sync.bfly.b32 other, most, 2, 31, 0xffffffff;", "max.f32 most, most, other;",
            f"setp.gt.f32 mine, most, limit{n};", f"sub.rn.f32 factor, ${6 + n}, most;",
            "mul.rn.f32 factor, factor, 0f3FB8AA3B;", "ex2.approx.ftz.f32 factor, factor;",
            f"@mine mov.b32 ${n}, most;", f"@mine mov.b32 ${2 + n}, factor;",
        ]  # fmt: skip
    return " ".join([*lines, "KEPT: }"])


def _rescaling(count: int) -> str:
    """Assembly: so many values by as many factors, of two rows in turn. Warps with nothing but 1 skip it."""
    kept = [f"mov.b32 ${n}, ${count + n};" for n in range(count)]
    times = [f"mul.f32 ${n}, ${n}, ${2 * count + n};" for n in range(count)]
    return " ".join([
        "{ .reg .pred p;", f"setp.neu.f32 p, ${2 * count}, 0f3F800000;",
        f"setp.neu.or.f32 p, ${2 * count + 2}, 0f3F800000, p;", "vote.sync.any.pred p, p, 0xffffffff;",
        *kept, "@!p bra.uni KEPT;", *times, "KEPT: }",
    ])  # fmt: skip


def _registers(count: int) -> str:
    return ",".join(["=f"] * count + ["f"] * (2 * count))


MOVING = gl.constexpr(_moving())
RESCALING_16, REGISTERS_16 = gl.constexpr(_rescaling(16)), gl.constexpr(_registers(16))
RESCALING_32, REGISTERS_32 = gl.constexpr(_rescaling(32)), gl.constexpr(_registers(32))
RESCALING_64, REGISTERS_64 = gl.constexpr(_rescaling(64)), gl.constexpr(_registers(64))


class Choice(NamedTuple):
    """Tile parameters and schedule."""

    BM: int
    BN: int
    consumers: int
    stages: int
    overlap: int
    pingpong: int
    persistent: int
    longest_first: int
    heads: int
    registers: int
    q_stages: int
    ahead: int
    rescale: int
    reuse: int


# Bytes of an element, head dimension up to, sequence length from: the choice.
CHOICES = (
    (2, 64, 0, Choice(
        BM=128, BN=64, consumers=2, stages=4, overlap=1, pingpong=0, persistent=2, longest_first=0, heads=0, registers=0, q_stages=2, ahead=1, rescale=0, reuse=0,
    )),  # fmt: skip
    (2, 64, 512, Choice(
        BM=192, BN=128, consumers=3, stages=2, overlap=1, pingpong=1, persistent=2, longest_first=1, heads=0, registers=0, q_stages=2, ahead=0, rescale=2, reuse=0,
    )),  # fmt: skip
    (2, 128, 0, Choice(
        BM=128, BN=128, consumers=2, stages=2, overlap=1, pingpong=0, persistent=2, longest_first=1, heads=0, registers=0, q_stages=2, ahead=0, rescale=2, reuse=0,
    )),  # fmt: skip
    (2, 128, 2048, Choice(
        BM=192, BN=64, consumers=3, stages=4, overlap=1, pingpong=0, persistent=2, longest_first=1, heads=0, registers=0, q_stages=1, ahead=0, rescale=2, reuse=0,
    )),  # fmt: skip
    (2, 192, 0, Choice(
        BM=128, BN=128, consumers=2, stages=2, overlap=1, pingpong=0, persistent=2, longest_first=1, heads=0, registers=0, q_stages=1, ahead=0, rescale=2, reuse=1,
    )),  # fmt: skip
    (2, 256, 0, Choice(
        BM=128, BN=64, consumers=2, stages=2, overlap=1, pingpong=0, persistent=2, longest_first=1, heads=0, registers=0, q_stages=1, ahead=0, rescale=2, reuse=1,
    )),  # fmt: skip
)

# Consumers: registers of a thread of theirs, and of the producer's.
REGISTERS = {1: (240, 24), 2: (240, 24), 3: (160, 32)}


@gluon.jit
def floor_div(a, b):
    """Rounds down for negative a too; b > 0. Triton's own division rounds toward zero."""
    return a // b - (a % b < 0)


@gluon.jit
def ceil_div(a, b):
    """Rounds up for negative a too; b > 0."""
    return floor_div(a + b - 1, b)


@gluon.jit
def finite(x):
    """What may be taken away: a row that has seen no key has maximum -inf, and -inf - -inf stays -inf."""
    return gl.where(x == float("-inf"), 0.0, x)


@gluon.jit
def inverse(x):
    """1 / x, and 0 for 0: a row that has seen no key gives zeros."""
    return gl.where(x == 0.0, 0.0, 1.0 / gl.where(x == 0.0, 1.0, x))


@gluon.jit
def barriers(PLACES: gl.constexpr, ARRIVALS: gl.constexpr):
    """A barrier for each place of a channel."""
    made = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(PLACES):
        mbarrier.init(made.index(place), count=ARRIVALS)
    return made


@gluon.jit
def onward(place, turn, PLACES: gl.constexpr):
    """The next place of a channel; each time around its barriers change their phase."""
    if PLACES == 1:
        turn = turn ^ 1
    elif PLACES == 2:
        place = place ^ 1
        turn = turn ^ (place ^ 1)
    else:
        place = place + 1
        turn = gl.where(place == PLACES, turn ^ 1, turn)
        place = gl.where(place == PLACES, 0, place)
    return place, turn


@gluon.jit
def draw(counter):
    """A ticket in the first lane. Nothing waits for it yet."""
    lane = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
    return gl.atomic_add(counter + lane * 0, lane * 0 + 1, mask=lane == 0, sem="relaxed")


@gluon.jit
def ticket_of(drawn):
    """The ticket that was drawn."""
    lane = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
    return gl.max(gl.where(lane == 0, drawn, 0), 0)


@gluon.jit
def tile_in(places, place, ROWS: gl.constexpr, COLS: gl.constexpr):
    """The tile in a place of a channel."""
    return places.index(place).reshape([ROWS, COLS])


@gluon.jit
def named_barrier(KIND: gl.constexpr, NUMBER: gl.constexpr):
    """Of two warpgroups. Gluon has none; it takes the numbers up to 7 itself."""
    if KIND == 0:
        if NUMBER == 0:
            gl.inline_asm_elementwise("bar.sync 8, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(0)],
                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip
        elif NUMBER == 1:
            gl.inline_asm_elementwise("bar.sync 9, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(0)],
                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip
        else:
            gl.inline_asm_elementwise("bar.sync 10, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(0)],
                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip
    else:
        if NUMBER == 0:
            gl.inline_asm_elementwise("bar.arrive 8, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(0)],
                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip
        elif NUMBER == 1:
            gl.inline_asm_elementwise("bar.arrive 9, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(0)],
                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip
        else:
            gl.inline_asm_elementwise("bar.arrive 10, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(0)],
                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip


@gluon.jit
def take_turn(WHICH: gl.constexpr, CONSUMERS: gl.constexpr):
    """Wait until the consumer before this one has issued its products."""
    if CONSUMERS > 1:
        named_barrier(0, WHICH)


@gluon.jit
def pass_turn(WHICH: gl.constexpr, CONSUMERS: gl.constexpr):
    if CONSUMERS > 1:
        named_barrier(1, (WHICH + 1) % CONSUMERS)


@gluon.jit
def column_limits(at, SLOPE: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    """For each row at + SLOPE * row, less what of a column's number depends on the thread."""
    layout3: gl.constexpr = gl.SliceLayout(3, LAYOUT)
    quad = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, layout3))) * 2
    pair = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT))))
    taken = quad[None, None, :, None] + pair[None, None, None, :]
    if SLOPE == 0:
        limit = at - taken
    else:
        row = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, layout3)))
        limit = (row * SLOPE + at)[:, None, None, None] - taken
    return limit


@gluon.jit
def keep_until(x, at, SLOPE: gl.constexpr, fill):
    """x in each row's columns up to at + SLOPE * row, else `fill`."""
    ROWS: gl.constexpr = x.shape[0]
    COLS: gl.constexpr = x.shape[1]
    apart = x.reshape([ROWS, COLS // 8, 4, 2])
    LAYOUT: gl.constexpr = apart.type.layout
    limit = column_limits(at, SLOPE, ROWS, LAYOUT)
    eights: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, LAYOUT)))
    column = (gl.arange(0, COLS // 8, eights) * 8)[None, :, None, None]
    kept = gl.where(column <= limit, apart, fill)
    return gl.convert_layout(kept.reshape([ROWS, COLS]), x.type.layout)


@gluon.jit
def keep_since(x, at, SLOPE: gl.constexpr, fill):
    """x in each row's columns from at + SLOPE * row on, else `fill`."""
    ROWS: gl.constexpr = x.shape[0]
    COLS: gl.constexpr = x.shape[1]
    apart = x.reshape([ROWS, COLS // 8, 4, 2])
    LAYOUT: gl.constexpr = apart.type.layout
    limit = column_limits(at, SLOPE, ROWS, LAYOUT)
    eights: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, LAYOUT)))
    column = (gl.arange(0, COLS // 8, eights) * 8)[None, :, None, None]
    kept = gl.where(column >= limit, apart, fill)
    return gl.convert_layout(kept.reshape([ROWS, COLS]), x.type.layout)


@gluon.jit
def down_rows(x, LAYOUT: gl.constexpr):
    """A value for each row, beside a tile of that layout."""
    return gl.convert_layout(x, gl.SliceLayout(1, LAYOUT))[:, None]


@gluon.jit
def as_operand(x, LAYOUT: gl.constexpr, OPERAND: gl.constexpr):
    """Rounded, two elements to a register: the compiler's own conversion packs them again every round."""
    placed = gl.convert_layout(x, LAYOUT)
    if OPERAND == gl.float16:
        rounded = gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [placed],
                                            dtype=gl.float16, is_pure=True, pack=2)  # fmt: skip
    else:
        rounded = gl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [placed],
                                            dtype=gl.bfloat16, is_pure=True, pack=2)  # fmt: skip
    return rounded


@gluon.jit
def in_quads(x):
    """A tile as (row, eight columns, thread of the four that hold a row, pair), each thread's where it is."""
    return x.reshape([x.shape[0], x.shape[1] // 8, 4, 2])


@gluon.jit
def maxima(x):
    """For each row the maxima of what each of its four threads holds."""
    return gl.max(gl.max(in_quads(x), 3), 1)


@gluon.jit
def sums(x):
    """For each row the sums of what each of its four threads holds."""
    return gl.sum(gl.sum(in_quads(x), 3), 1)


@gluon.jit
def of_threads(value, COLS: gl.constexpr, LAYOUT: gl.constexpr):
    """A value for each of the threads of a row."""
    return maxima(gl.full([64, COLS], value, gl.float32, LAYOUT))


@gluon.jit
def beside(parts, quads):
    """A value of each thread beside a tile in quads."""
    return gl.convert_layout(parts, gl.SliceLayout(1, gl.SliceLayout(3, quads.type.layout)))[:, None, :, None]


@gluon.jit
def powers(x, times, less):
    """2 to the power of x * times - less, the latter a value of each thread."""
    quads = in_quads(x)
    made = gl.exp2(quads * times - beside(less, quads)).reshape([x.shape[0], x.shape[1]])
    return gl.convert_layout(made, x.type.layout)


@gluon.jit
def moved(found, old):
    """Maxima that follow what was found where it counts, and factors for what was summed up before."""
    return gl.inline_asm_elementwise(MOVING, "=&f,=&f,=&f,=&f,f,f,f,f", [found, old],
                                     dtype=(gl.float32, gl.float32), is_pure=True, pack=2)  # fmt: skip


@gluon.jit
def rescaled(x, parts):
    """x times a factor of each thread, which is 1 in most rounds."""
    HELD: gl.constexpr = x.shape[0] * x.shape[1] // 128  # elements of a thread
    quads = in_quads(x)
    factor = beside(parts, quads)
    if HELD < 16:
        out = quads * factor
    elif HELD == 16:
        out = gl.inline_asm_elementwise(RESCALING_16, REGISTERS_16, [quads, factor],
                                        dtype=gl.float32, is_pure=True, pack=16)  # fmt: skip
    elif HELD == 32:
        out = gl.inline_asm_elementwise(RESCALING_32, REGISTERS_32, [quads, factor],
                                        dtype=gl.float32, is_pure=True, pack=32)  # fmt: skip
    else:
        out = gl.inline_asm_elementwise(RESCALING_64, REGISTERS_64, [quads, factor],
                                        dtype=gl.float32, is_pure=True, pack=64)  # fmt: skip
    return gl.convert_layout(out.reshape([x.shape[0], x.shape[1]]), x.type.layout)


@gluon.jit
def tile_of(t, row_tiles, head_group, LONGEST_FIRST: gl.constexpr):
    """The tile of rows, and the index of the rest of the grid.

    Heads of a group come together, so that their keys and values stay in the L2; within the group the tiles
    of the last rows, whose loops are longest, come first.
    """
    if LONGEST_FIRST:
        group = t // (row_tiles * head_group)
        rest = t - group * (row_tiles * head_group)
        row_tile = row_tiles - 1 - rest // head_group
        other = group * head_group + rest % head_group
    else:
        other = t // row_tiles
        row_tile = t - other * row_tiles
    return row_tile, other


@gluon.jit
def sliding_window_consumer(
    out_dst,
    Q_places, K_places, V_places, O_buffer, Q_full, Q_empty, K_full, K_empty, V_full, V_empty,
    next_tile, next_full, next_empty,
    heads, seq_q, seq_k, scale, window, row_tiles, tiles, head_group, factor_scale,
    WHICH: gl.constexpr, dim_v_p: gl.constexpr, dim_p: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    EVEN_seq_k_BN: gl.constexpr, SOME_j: gl.constexpr, SKIPS_j: gl.constexpr, LATER_j: gl.constexpr,
    LAST_j: gl.constexpr, OPERAND: gl.constexpr, FOLD: gl.constexpr, CONSUMERS: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr, PINGPONG: gl.constexpr, GRID: gl.constexpr,
    Q_STAGES: gl.constexpr, AHEAD: gl.constexpr, RESCALE: gl.constexpr, REUSE: gl.constexpr,
):  # fmt: skip
    group_row: gl.constexpr = 64 * WHICH
    TILE_BN: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    TILE_dim_v_p: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, dim_v_p, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, TILE_BN)
    if PINGPONG:
        if WHICH == CONSUMERS - 1:
            pass_turn(WHICH, CONSUMERS)  # to the first consumer
    t = gl.program_id(0)
    tile_turn = 0
    Q_place = 0
    Q_turn = 0
    K_place = 0
    K_turn = 0
    V_place = 0
    V_turn = 0
    if AHEAD:
        i, other = tile_of(t, row_tiles, head_group, False)
        h = other % heads
        b = other // heads
    while t < tiles:
        if not AHEAD:
            i, other = tile_of(t, row_tiles, head_group, False)
            h = other % heads
            b = other // heads
        # Allocate m in register (BM) init -inf
        m = gl.full([64], float("-inf"), gl.float32, ROW)
        # Allocate l in register (BM) init 0
        l = gl.full([64], 0, gl.float32, ROW)
        # Allocate O in register (BM, dim_v) init 0
        O = gl.full([64, dim_v_p], 0, gl.float32, TILE_dim_v_p)
        # Copy Q (BM, dim) in coordinate [L = i] from global to shared  (waits for the producer)
        mbarrier.wait(Q_full.index(WHICH * Q_STAGES + Q_place), Q_turn)
        # for j = max(0, i * BM + seq_k - seq_q - window + 1) // BN : min(ceil(seq_k / BN), ceil(((i + 1) * BM
        #     + seq_k - seq_q) / BN))
        #     (the last round first)
        j_start = gl.maximum(0, i * BM + seq_k - seq_q - window + 1) // BN
        j_stop = gl.minimum(gl.cdiv(seq_k, BN), ceil_div((i + 1) * BM + seq_k - seq_q, BN))
        j_first = gl.minimum(
            gl.maximum(j_start, ceil_div(seq_k + 2 + BM * i + group_row - window - seq_q - BN, BN)), j_stop
        )
        j_last = gl.minimum(
            gl.maximum(
                gl.minimum(j_stop, floor_div(seq_k + BM * i + group_row + 63 - seq_q, BN) + 1),
                gl.minimum(
                    gl.maximum(j_start, ceil_div(seq_k + 2 + BM * i + group_row - window - seq_q - BN, BN)),
                    j_stop,
                ),
            ),
            j_first
            + gl.minimum(1, gl.maximum(0, seq_q - (i * BM + group_row))) * gl.maximum(0, j_stop - j_first),
        )
        j_low = gl.minimum(
            gl.maximum(j_first, ceil_div(seq_k + 64 + BM * i + group_row - window - seq_q, BN)), j_last
        )
        j_high = gl.maximum(
            gl.minimum(
                gl.minimum(j_last, floor_div(seq_k + BM * i + group_row + 1 - seq_q - BN, BN) + 1),
                floor_div(seq_k - BN, BN) + 1,
            ),
            j_low,
        )
        j_count = j_last - j_first
        if SKIPS_j:
            for _ in range(0, j_stop - j_last):
                mbarrier.wait(K_full.index(K_place), K_turn)
                if PINGPONG:
                    take_turn(WHICH, CONSUMERS)
                if PINGPONG:
                    pass_turn(WHICH, CONSUMERS)
                mbarrier.arrive(K_empty.index(K_place), count=1)
                K_place, K_turn = onward(K_place, K_turn, STAGES)
                mbarrier.wait(V_full.index(V_place), V_turn)
                mbarrier.arrive(V_empty.index(V_place), count=1)
                V_place, V_turn = onward(V_place, V_turn, STAGES)
        if RESCALE:
            m_parts = of_threads(float("-inf"), BN, TILE_BN)
            l_parts = of_threads(0.0, BN, TILE_BN)
        if OVERLAP:
            if (j_count > 0) | SOME_j:
                j_round = 0
                j = j_last - 1 - j_round
                # Copy K (BN, dim) in coordinate [L = j] from global to shared  (waits for the producer)
                mbarrier.wait(K_full.index(K_place), K_turn)
                if PINGPONG:
                    take_turn(WHICH, CONSUMERS)
                # Compute GEMM Q, K^T and get S
                S = warpgroup_mma(
                    tile_in(Q_places, WHICH * Q_STAGES + Q_place, 64, dim_p),
                    tile_in(K_places, K_place, BN, dim_p).permute((1, 0)),
                    gl.full([64, BN], 0.0, gl.float32, TILE_BN),
                    use_acc=False,
                    is_async=True,
                )
                if PINGPONG:
                    pass_turn(WHICH, CONSUMERS)
                S = warpgroup_mma_wait(0, deps=[S])
                mbarrier.arrive(K_empty.index(K_place), count=1)
                K_place, K_turn = onward(K_place, K_turn, STAGES)
                # Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
                if not FOLD:
                    S = S * scale
                # Compute Mask S where 0 <= q + seq_k - seq_q - k < window
                S = keep_since(
                    keep_until(S, seq_k + BM * i + group_row - seq_q - BN * j, 1, float("-inf")),
                    seq_k + 1 + BM * i + group_row - window - seq_q - BN * j,
                    1,
                    float("-inf"),
                )
                # Compute Softmax S, m, l and rescale O
                if not EVEN_seq_k_BN:
                    S = keep_until(S, seq_k - 1 - j * BN, 0, float("-inf"))
                if RESCALE:
                    m_parts, decay = moved(maxima(S) * factor_scale, m_parts)
                    S = powers(S, factor_scale * LOG2_E, finite(m_parts) * LOG2_E)
                    l_parts = sums(S)
                else:
                    m_next = gl.max(S, 1) * factor_scale
                    m_used = finite(m_next)
                    S = gl.exp2(S * (factor_scale * LOG2_E) - down_rows(m_used * LOG2_E, TILE_BN))
                    l = gl.sum(S, 1)
                    m = m_next
                # Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
                #     (the compiler converts the layout)
                S_operand = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                if LATER_j:
                    for j_round in range(1, j_last - j_high):
                        j = j_last - 1 - j_round
                        # Copy K (BN, dim) in coordinate [L = j] from global to shared
                        #     (waits for the producer)
                        mbarrier.wait(K_full.index(K_place), K_turn)
                        if PINGPONG:
                            take_turn(WHICH, CONSUMERS)
                        # Compute GEMM Q, K^T and get S
                        S = warpgroup_mma(
                            tile_in(Q_places, WHICH * Q_STAGES + Q_place, 64, dim_p),
                            tile_in(K_places, K_place, BN, dim_p).permute((1, 0)),
                            gl.full([64, BN], 0.0, gl.float32, TILE_BN),
                            use_acc=False,
                            is_async=True,
                        )
                        # Copy V (BN, dim_v) in coordinate [L = j] from global to shared
                        #     (waits for the producer)
                        mbarrier.wait(V_full.index(V_place), V_turn)
                        # Compute GEMM S, V and accumulate O  (of the round before)
                        O_sum = warpgroup_mma(
                            S_operand, tile_in(V_places, V_place, BN, dim_v_p), O, is_async=True
                        )
                        if PINGPONG:
                            pass_turn(WHICH, CONSUMERS)
                        S = warpgroup_mma_wait(1, deps=[S])
                        mbarrier.arrive(K_empty.index(K_place), count=1)
                        K_place, K_turn = onward(K_place, K_turn, STAGES)
                        # Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
                        if not FOLD:
                            S = S * scale
                        # Compute Mask S where 0 <= q + seq_k - seq_q - k < window
                        S = keep_since(
                            keep_until(S, seq_k + BM * i + group_row - seq_q - BN * j, 1, float("-inf")),
                            seq_k + 1 + BM * i + group_row - window - seq_q - BN * j,
                            1,
                            float("-inf"),
                        )
                        # Compute Softmax S, m, l and rescale O
                        if not EVEN_seq_k_BN:
                            S = keep_until(S, seq_k - 1 - j * BN, 0, float("-inf"))
                        if RESCALE:
                            m_parts, decay = moved(maxima(S) * factor_scale, m_parts)
                            S = powers(S, factor_scale * LOG2_E, finite(m_parts) * LOG2_E)
                            l_parts = l_parts * decay + sums(S)
                        else:
                            m_next = gl.maximum(m, gl.max(S, 1) * factor_scale)
                            m_used = finite(m_next)
                            decay = gl.exp2((m - m_used) * LOG2_E)
                            S = gl.exp2(S * (factor_scale * LOG2_E) - down_rows(m_used * LOG2_E, TILE_BN))
                            l = l * decay + gl.sum(S, 1)
                            m = m_next
                        if RESCALE >= 2:
                            S_rounded = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                            O, S_operand, S_rounded = warpgroup_mma_wait(
                                0, deps=[O_sum, S_operand, S_rounded]
                            )
                        else:
                            O, S_operand = warpgroup_mma_wait(0, deps=[O_sum, S_operand])
                        mbarrier.arrive(V_empty.index(V_place), count=1)
                        V_place, V_turn = onward(V_place, V_turn, STAGES)
                        if RESCALE:
                            O = rescaled(O, decay)
                        else:
                            O = O * down_rows(decay, TILE_dim_v_p)
                        # Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
                        #     (the compiler converts the layout)
                        if RESCALE >= 2:
                            S_operand = S_rounded
                        else:
                            S_operand = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                for j_round in range(gl.maximum(j_last - j_high, 1), j_last - j_low):
                    j = j_last - 1 - j_round
                    # Copy K (BN, dim) in coordinate [L = j] from global to shared  (waits for the producer)
                    mbarrier.wait(K_full.index(K_place), K_turn)
                    if PINGPONG:
                        take_turn(WHICH, CONSUMERS)
                    # Compute GEMM Q, K^T and get S
                    S = warpgroup_mma(
                        tile_in(Q_places, WHICH * Q_STAGES + Q_place, 64, dim_p),
                        tile_in(K_places, K_place, BN, dim_p).permute((1, 0)),
                        gl.full([64, BN], 0.0, gl.float32, TILE_BN),
                        use_acc=False,
                        is_async=True,
                    )
                    # Copy V (BN, dim_v) in coordinate [L = j] from global to shared  (waits for the producer)
                    mbarrier.wait(V_full.index(V_place), V_turn)
                    # Compute GEMM S, V and accumulate O  (of the round before)
                    O_sum = warpgroup_mma(
                        S_operand, tile_in(V_places, V_place, BN, dim_v_p), O, is_async=True
                    )
                    if PINGPONG:
                        pass_turn(WHICH, CONSUMERS)
                    S = warpgroup_mma_wait(1, deps=[S])
                    mbarrier.arrive(K_empty.index(K_place), count=1)
                    K_place, K_turn = onward(K_place, K_turn, STAGES)
                    # Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
                    if not FOLD:
                        S = S * scale
                    # Compute Mask S where 0 <= q + seq_k - seq_q - k < window  (holds for every element here)
                    # Compute Softmax S, m, l and rescale O
                    if RESCALE:
                        m_parts, decay = moved(maxima(S) * factor_scale, m_parts)
                        S = powers(S, factor_scale * LOG2_E, m_parts * LOG2_E)
                        l_parts = l_parts * decay + sums(S)
                    else:
                        m_next = gl.maximum(m, gl.max(S, 1) * factor_scale)
                        m_used = m_next
                        decay = gl.exp2((m - m_used) * LOG2_E)
                        S = gl.exp2(S * (factor_scale * LOG2_E) - down_rows(m_used * LOG2_E, TILE_BN))
                        l = l * decay + gl.sum(S, 1)
                        m = m_next
                    if RESCALE >= 2:
                        S_rounded = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                        O, S_operand, S_rounded = warpgroup_mma_wait(0, deps=[O_sum, S_operand, S_rounded])
                    else:
                        O, S_operand = warpgroup_mma_wait(0, deps=[O_sum, S_operand])
                    mbarrier.arrive(V_empty.index(V_place), count=1)
                    V_place, V_turn = onward(V_place, V_turn, STAGES)
                    if RESCALE:
                        O = rescaled(O, decay)
                    else:
                        O = O * down_rows(decay, TILE_dim_v_p)
                    # Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
                    #     (the compiler converts the layout)
                    if RESCALE >= 2:
                        S_operand = S_rounded
                    else:
                        S_operand = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                if LAST_j:
                    for j_round in range(gl.maximum(j_last - j_low, 1), j_count):
                        j = j_last - 1 - j_round
                        # Copy K (BN, dim) in coordinate [L = j] from global to shared
                        #     (waits for the producer)
                        mbarrier.wait(K_full.index(K_place), K_turn)
                        if PINGPONG:
                            take_turn(WHICH, CONSUMERS)
                        # Compute GEMM Q, K^T and get S
                        S = warpgroup_mma(
                            tile_in(Q_places, WHICH * Q_STAGES + Q_place, 64, dim_p),
                            tile_in(K_places, K_place, BN, dim_p).permute((1, 0)),
                            gl.full([64, BN], 0.0, gl.float32, TILE_BN),
                            use_acc=False,
                            is_async=True,
                        )
                        # Copy V (BN, dim_v) in coordinate [L = j] from global to shared
                        #     (waits for the producer)
                        mbarrier.wait(V_full.index(V_place), V_turn)
                        # Compute GEMM S, V and accumulate O  (of the round before)
                        O_sum = warpgroup_mma(
                            S_operand, tile_in(V_places, V_place, BN, dim_v_p), O, is_async=True
                        )
                        if PINGPONG:
                            pass_turn(WHICH, CONSUMERS)
                        S = warpgroup_mma_wait(1, deps=[S])
                        mbarrier.arrive(K_empty.index(K_place), count=1)
                        K_place, K_turn = onward(K_place, K_turn, STAGES)
                        # Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
                        if not FOLD:
                            S = S * scale
                        # Compute Mask S where 0 <= q + seq_k - seq_q - k < window
                        S = keep_since(
                            keep_until(S, seq_k + BM * i + group_row - seq_q - BN * j, 1, float("-inf")),
                            seq_k + 1 + BM * i + group_row - window - seq_q - BN * j,
                            1,
                            float("-inf"),
                        )
                        # Compute Softmax S, m, l and rescale O
                        if not EVEN_seq_k_BN:
                            S = keep_until(S, seq_k - 1 - j * BN, 0, float("-inf"))
                        if RESCALE:
                            m_parts, decay = moved(maxima(S) * factor_scale, m_parts)
                            S = powers(S, factor_scale * LOG2_E, finite(m_parts) * LOG2_E)
                            l_parts = l_parts * decay + sums(S)
                        else:
                            m_next = gl.maximum(m, gl.max(S, 1) * factor_scale)
                            m_used = finite(m_next)
                            decay = gl.exp2((m - m_used) * LOG2_E)
                            S = gl.exp2(S * (factor_scale * LOG2_E) - down_rows(m_used * LOG2_E, TILE_BN))
                            l = l * decay + gl.sum(S, 1)
                            m = m_next
                        if RESCALE >= 2:
                            S_rounded = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                            O, S_operand, S_rounded = warpgroup_mma_wait(
                                0, deps=[O_sum, S_operand, S_rounded]
                            )
                        else:
                            O, S_operand = warpgroup_mma_wait(0, deps=[O_sum, S_operand])
                        mbarrier.arrive(V_empty.index(V_place), count=1)
                        V_place, V_turn = onward(V_place, V_turn, STAGES)
                        if RESCALE:
                            O = rescaled(O, decay)
                        else:
                            O = O * down_rows(decay, TILE_dim_v_p)
                        # Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
                        #     (the compiler converts the layout)
                        if RESCALE >= 2:
                            S_operand = S_rounded
                        else:
                            S_operand = as_operand(S, gl.DotOperandLayout(0, TILE_dim_v_p, 2), OPERAND)
                # Copy V (BN, dim_v) in coordinate [L = j] from global to shared  (waits for the producer)
                mbarrier.wait(V_full.index(V_place), V_turn)
                # Compute GEMM S, V and accumulate O  (of the last round)
                O_sum = warpgroup_mma(S_operand, tile_in(V_places, V_place, BN, dim_v_p), O, is_async=True)
                O, S_operand = warpgroup_mma_wait(0, deps=[O_sum, S_operand])
                mbarrier.arrive(V_empty.index(V_place), count=1)
                V_place, V_turn = onward(V_place, V_turn, STAGES)
        if RESCALE:
            m = gl.convert_layout(gl.max(m_parts, 1), ROW)
            l = gl.convert_layout(gl.sum(l_parts, 1), ROW)
        if SKIPS_j:
            for _ in range(0, j_first - j_start):
                mbarrier.wait(K_full.index(K_place), K_turn)
                if PINGPONG:
                    take_turn(WHICH, CONSUMERS)
                if PINGPONG:
                    pass_turn(WHICH, CONSUMERS)
                mbarrier.arrive(K_empty.index(K_place), count=1)
                K_place, K_turn = onward(K_place, K_turn, STAGES)
                mbarrier.wait(V_full.index(V_place), V_turn)
                mbarrier.arrive(V_empty.index(V_place), count=1)
                V_place, V_turn = onward(V_place, V_turn, STAGES)
        if not REUSE:
            mbarrier.arrive(Q_empty.index(WHICH * Q_STAGES + Q_place), count=1)
            Q_place, Q_turn = onward(Q_place, Q_turn, Q_STAGES)
        # Compute Divide O, l and get new O
        O = O * down_rows(inverse(l), TILE_dim_v_p)
        # Copy O (BM, dim_v) in coordinate [L = i] from register to global
        if REUSE:
            O_buffer_place = WHICH * Q_STAGES + Q_place  # that nobody reads any more
        else:
            tma.store_wait(0)  # the buffer's last tile has left
            O_buffer_place = WHICH
        thread_barrier()
        tile_in(O_buffer, O_buffer_place, 64, dim_v_p).store(O.to(out_dst.dtype))
        fence_async_shared()
        thread_barrier()
        tma_store(out_dst, [b, h, i * BM + group_row, 0], O_buffer.index(O_buffer_place))
        if REUSE:
            tma.store_wait(0)  # the place can be filled when the tile has left
            mbarrier.arrive(Q_empty.index(WHICH * Q_STAGES + Q_place), count=1)
            Q_place, Q_turn = onward(Q_place, Q_turn, Q_STAGES)
        if GRID == 2:
            mbarrier.wait(next_full.index(0), tile_turn)
            t = gl.max(next_tile.index(0).load(gl.BlockedLayout([1], [32], [4], [0])), 0)
            if AHEAD:
                i = gl.max(next_tile.index(1).load(gl.BlockedLayout([1], [32], [4], [0])), 0)
                b = gl.max(next_tile.index(2).load(gl.BlockedLayout([1], [32], [4], [0])), 0)
                h = gl.max(next_tile.index(3).load(gl.BlockedLayout([1], [32], [4], [0])), 0)
            mbarrier.arrive(next_empty.index(0), count=1)
            tile_turn = tile_turn ^ 1
        else:
            t += gl.num_programs(0)
    tma.store_wait(0)


@gluon.jit
def sliding_window_producer(
    k_src, q_src, v_src,
    Q_places, K_places, V_places, Q_full, Q_empty, K_full, K_empty, V_full, V_empty,
    next_tile, next_full, next_empty, counter,
    heads, seq_q, seq_k, window, row_tiles, tiles, head_group,
    group: gl.constexpr, dim_v_p: gl.constexpr, dim_p: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    CONSUMERS: gl.constexpr, STAGES: gl.constexpr, GRID: gl.constexpr, Q_STAGES: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    t = gl.program_id(0)
    tile_turn = 0
    Q_place = 0
    Q_turn = 0
    K_place = 0
    K_turn = 0
    V_place = 0
    V_turn = 0
    if AHEAD:
        i, other = tile_of(t, row_tiles, head_group, False)
        h = other % heads
        b = other // heads
    while t < tiles:
        if not AHEAD:
            i, other = tile_of(t, row_tiles, head_group, False)
            h = other % heads
            b = other // heads
        if AHEAD:
            drawn = draw(counter)
        j_start = gl.maximum(0, i * BM + seq_k - seq_q - window + 1) // BN
        j_stop = gl.minimum(gl.cdiv(seq_k, BN), ceil_div((i + 1) * BM + seq_k - seq_q, BN))
        for j_round in range(0, j_stop - j_start):
            j = j_stop - 1 - j_round
            # Copy K (BN, dim) in coordinate [L = j] from global to shared
            mbarrier.wait(K_empty.index(K_place), K_turn ^ 1)
            mbarrier.expect(K_full.index(K_place), 2 * BN * dim_p)
            tma_load(k_src, [b, h // group, j * BN, 0], K_full.index(K_place), K_places.index(K_place))
            K_place, K_turn = onward(K_place, K_turn, STAGES)
            if j_round == 0:
                # Copy Q (BM, dim) in coordinate [L = i] from global to shared
                for consumer in gl.static_range(CONSUMERS):
                    mbarrier.wait(Q_empty.index(consumer * Q_STAGES + Q_place), Q_turn ^ 1)
                    mbarrier.expect(Q_full.index(consumer * Q_STAGES + Q_place), 2 * 64 * dim_p)
                    tma_load(
                        q_src,
                        [b, h, i * BM + consumer * 64, 0],
                        Q_full.index(consumer * Q_STAGES + Q_place),
                        Q_places.index(consumer * Q_STAGES + Q_place),
                    )
                Q_place, Q_turn = onward(Q_place, Q_turn, Q_STAGES)
            # Copy V (BN, dim_v) in coordinate [L = j] from global to shared
            mbarrier.wait(V_empty.index(V_place), V_turn ^ 1)
            mbarrier.expect(V_full.index(V_place), 2 * BN * dim_v_p)
            tma_load(v_src, [b, h // group, j * BN, 0], V_full.index(V_place), V_places.index(V_place))
            V_place, V_turn = onward(V_place, V_turn, STAGES)
        if j_stop <= j_start:
            # Copy Q (BM, dim) in coordinate [L = i] from global to shared
            for consumer in gl.static_range(CONSUMERS):
                mbarrier.wait(Q_empty.index(consumer * Q_STAGES + Q_place), Q_turn ^ 1)
                mbarrier.expect(Q_full.index(consumer * Q_STAGES + Q_place), 2 * 64 * dim_p)
                tma_load(
                    q_src,
                    [b, h, i * BM + consumer * 64, 0],
                    Q_full.index(consumer * Q_STAGES + Q_place),
                    Q_places.index(consumer * Q_STAGES + Q_place),
                )
            Q_place, Q_turn = onward(Q_place, Q_turn, Q_STAGES)
        if GRID == 2:
            # a ticket says which tile is next; the consumers get it through shared memory
            if AHEAD:
                t = gl.num_programs(0) + ticket_of(drawn)
                i, other = tile_of(t, row_tiles, head_group, False)
                h = other % heads
                b = other // heads
            else:
                ticket = gl.atomic_add(counter, 1, sem="relaxed")
                t = gl.num_programs(0) + ticket
            mbarrier.wait(next_empty.index(0), tile_turn ^ 1)
            next_tile.index(0).store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + t)
            if AHEAD:
                next_tile.index(1).store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + i)
                next_tile.index(2).store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + b)
                next_tile.index(3).store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + h)
            mbarrier.arrive(next_full.index(0), count=1)
            tile_turn = tile_turn ^ 1
        else:
            t += gl.num_programs(0)
    if GRID == 2:
        if t == tiles + gl.num_programs(0) - 1:
            gl.store(counter, 0)  # by the last ticket of all, for the next launch


@gluon.jit(do_not_specialize=(
    "heads", "seq_q", "seq_k", "scale", "window", "row_tiles", "tiles", "head_group", "factor_scale",
))  # fmt: skip
def sliding_window_kernel(
    k_src, q_src, v_src, out_dst,
    counter, heads, seq_q, seq_k, scale, window, row_tiles, tiles, head_group, factor_scale,
    group: gl.constexpr, dim_v_p: gl.constexpr, dim_p: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    EVEN_seq_k_BN: gl.constexpr, SOME_j: gl.constexpr, SKIPS_j: gl.constexpr, LATER_j: gl.constexpr,
    LAST_j: gl.constexpr, OPERAND: gl.constexpr, FOLD: gl.constexpr, CONSUMERS: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr, PINGPONG: gl.constexpr, GRID: gl.constexpr,
    REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr, Q_STAGES: gl.constexpr, AHEAD: gl.constexpr,
    RESCALE: gl.constexpr, REUSE: gl.constexpr,
):  # fmt: skip
    Q_places = gl.allocate_shared_memory(OPERAND, [CONSUMERS * Q_STAGES, 1, 1, 64, dim_p], q_src.layout)
    K_places = gl.allocate_shared_memory(OPERAND, [STAGES, 1, 1, BN, dim_p], k_src.layout)
    V_places = gl.allocate_shared_memory(OPERAND, [STAGES, 1, 1, BN, dim_v_p], v_src.layout)
    O_buffer = (
        Q_places if REUSE else gl.allocate_shared_memory(OPERAND, [CONSUMERS, 1, 1, 64, dim_v_p], out_dst.layout)
    )
    Q_full = barriers(CONSUMERS * Q_STAGES, 1)
    Q_empty = barriers(CONSUMERS * Q_STAGES, 1)
    K_full = barriers(STAGES, 1)
    K_empty = barriers(STAGES, CONSUMERS)
    V_full = barriers(STAGES, 1)
    V_empty = barriers(STAGES, CONSUMERS)
    next_tile = gl.allocate_shared_memory(gl.int32, [4, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    next_full = barriers(1, 1)
    next_empty = barriers(1, CONSUMERS)
    fence_async_shared()
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (sliding_window_consumer, (
                    out_dst, Q_places, K_places, V_places, O_buffer, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, heads, seq_q, seq_k, scale, window, row_tiles,
                    tiles, head_group, factor_scale, 0, dim_v_p, dim_p, BM, BN, EVEN_seq_k_BN, SOME_j, SKIPS_j,
                    LATER_j, LAST_j, OPERAND, FOLD, CONSUMERS, STAGES, OVERLAP, PINGPONG, GRID, Q_STAGES, AHEAD,
                    RESCALE, REUSE,
                )),
                (sliding_window_consumer, (
                    out_dst, Q_places, K_places, V_places, O_buffer, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, heads, seq_q, seq_k, scale, window, row_tiles,
                    tiles, head_group, factor_scale, 1, dim_v_p, dim_p, BM, BN, EVEN_seq_k_BN, SOME_j, SKIPS_j,
                    LATER_j, LAST_j, OPERAND, FOLD, CONSUMERS, STAGES, OVERLAP, PINGPONG, GRID, Q_STAGES, AHEAD,
                    RESCALE, REUSE,
                )),
                (sliding_window_producer, (
                    k_src, q_src, v_src, Q_places, K_places, V_places, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, counter, heads, seq_q, seq_k, window, row_tiles,
                    tiles, head_group, group, dim_v_p, dim_p, BM, BN, CONSUMERS, STAGES, GRID, Q_STAGES, AHEAD,
                )),
            ],
            [4, 1], [REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    if CONSUMERS == 3:
        gl.warp_specialize(
            [
                (sliding_window_consumer, (
                    out_dst, Q_places, K_places, V_places, O_buffer, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, heads, seq_q, seq_k, scale, window, row_tiles,
                    tiles, head_group, factor_scale, 0, dim_v_p, dim_p, BM, BN, EVEN_seq_k_BN, SOME_j, SKIPS_j,
                    LATER_j, LAST_j, OPERAND, FOLD, CONSUMERS, STAGES, OVERLAP, PINGPONG, GRID, Q_STAGES, AHEAD,
                    RESCALE, REUSE,
                )),
                (sliding_window_consumer, (
                    out_dst, Q_places, K_places, V_places, O_buffer, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, heads, seq_q, seq_k, scale, window, row_tiles,
                    tiles, head_group, factor_scale, 1, dim_v_p, dim_p, BM, BN, EVEN_seq_k_BN, SOME_j, SKIPS_j,
                    LATER_j, LAST_j, OPERAND, FOLD, CONSUMERS, STAGES, OVERLAP, PINGPONG, GRID, Q_STAGES, AHEAD,
                    RESCALE, REUSE,
                )),
                (sliding_window_consumer, (
                    out_dst, Q_places, K_places, V_places, O_buffer, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, heads, seq_q, seq_k, scale, window, row_tiles,
                    tiles, head_group, factor_scale, 2, dim_v_p, dim_p, BM, BN, EVEN_seq_k_BN, SOME_j, SKIPS_j,
                    LATER_j, LAST_j, OPERAND, FOLD, CONSUMERS, STAGES, OVERLAP, PINGPONG, GRID, Q_STAGES, AHEAD,
                    RESCALE, REUSE,
                )),
                (sliding_window_producer, (
                    k_src, q_src, v_src, Q_places, K_places, V_places, Q_full, Q_empty, K_full, K_empty, V_full,
                    V_empty, next_tile, next_full, next_empty, counter, heads, seq_q, seq_k, window, row_tiles,
                    tiles, head_group, group, dim_v_p, dim_p, BM, BN, CONSUMERS, STAGES, GRID, Q_STAGES, AHEAD,
                )),
            ],
            [4, 4, 1], [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip


OPERANDS = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
L2_BYTES = 4 << 20  # of keys and values of heads that are worked on together; 32 MiB cost 15 % at 512 keys
LEAST_HEADS = 8  # though they are more: four cost 0 to 3 % from 2k keys on, one or two 1 to 4 % more
SLOTS = 1 << 14


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) on a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Counters:
    """Counters of tickets, zero before each launch: the last ticket of a launch sets its counter back.

    Launches on one stream run one after the other, so they share a counter; streams, and so devices, have
    their own. A launch that is captured gets one that no other launch ever has: its graph may be replayed on
    any stream, and replays of one graph run one after the other. A shape changes the number of tickets only,
    and a launch always draws as many as it has tiles. Where no counter is left, a launch fills a new one with
    zero, a captured one as part of its graph.
    """

    def __init__(self, device: torch.device) -> None:
        # 16 bytes each: Triton compiles again for a pointer that is aligned less, which no capture survives.
        self.slots = torch.zeros(SLOTS, 4, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)  # other streams use it too
        self.streams: dict[int, Tensor] = {}
        self.taken = 0

    def of_stream(self, stream: int) -> Tensor | None:
        """The stream's own."""
        if stream not in self.streams and (slot := self.fresh()) is not None:
            self.streams[stream] = slot
        return self.streams.get(stream)

    def fresh(self) -> Tensor | None:
        """One that nobody has had."""
        if self.taken == SLOTS:
            return None
        self.taken += 1
        return self.slots[self.taken - 1]


COUNTERS: dict[torch.device, _Counters] = {}


def _counter(device: torch.device) -> Tensor:
    """For a launch on the current stream."""
    capturing = torch.cuda.is_current_stream_capturing()
    if device not in COUNTERS and not capturing:
        COUNTERS[device] = _Counters(device)
    known = COUNTERS.get(device)
    if known is not None:
        stream = torch.cuda.current_stream(device).cuda_stream
        slot = known.fresh() if capturing else known.of_stream(stream)
        if slot is not None:
            return slot
    return torch.zeros(1, dtype=torch.int32, device=device)


@lru_cache(maxsize=4096)
def _choose(dim: int, seq: int, rows: int, heads: int, processors: int) -> Choice:
    """That of the smallest head dimension large enough, and there of the longest loops not longer; for loops
    shorter than all, of the shortest.

    But one with tiles of fewer rows where the last processor is done with those a tenth sooner: few tiles
    leave processors idle, the more so the larger they are.
    """
    dims = [row[1] for row in CHOICES if row[1] >= dim] or [max(row[1] for row in CHOICES)]
    table = sorted((row[2], row[3]) for row in CHOICES if row[1] == min(dims))
    found = ([choice for start, choice in table if start <= seq] or [table[0][1]])[-1]

    def busy(choice: Choice) -> int:
        """Query rows that the busiest processor works on."""
        size = 64 * choice.consumers
        return -(-heads * -(-rows // size) // processors) * size

    smaller = [choice for _, choice in reversed(table) if choice.consumers < found.consumers]
    quickest = min(smaller, key=busy, default=found)
    return quickest if 10 * busy(quickest) < 9 * busy(found) else found


def _padded(n: int) -> int:
    """The extent of a tile that holds n elements: a power of two."""
    return max(16, triton.next_power_of_2(n))


def _halves(n: int) -> tuple[int, int]:
    """Two powers of two that hold n elements together."""
    first = max(16, triton.next_power_of_2(n) // 2)
    return first, _padded(n - first)


def _described(*tensors: Tensor) -> bool:
    """Whether descriptors can serve: 16-byte addresses and strides, a contiguous last axis, nothing empty or
    expanded."""
    return all(
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(n * t.element_size() % 16 == 0 for n in t.stride()[:-1])
        and all(t.shape)
        and all(t.stride())
        for t in tensors
    )


def _descriptor(t: Tensor, order: tuple[int, ...], block: list[int]) -> TensorDescriptor:
    """Tiles of the tensor, its axes in that order."""
    view = t.permute(order)
    layout = gl.NVMMASharedLayout.get_default_for(block, OPERANDS[t.dtype])
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block, layout)


def _head_group(heads: int, bytes_per_head: int, wanted: int) -> int:
    """How many of the heads are worked on together; a divisor of their number."""
    if wanted:
        return math.gcd(heads, wanted)
    group, most = 1, max(L2_BYTES, LEAST_HEADS * bytes_per_head)
    while heads % (2 * group) == 0 and 2 * group * bytes_per_head <= most:
        group *= 2
    return group


@lru_cache(maxsize=4096)
def _keys(seq_k: int, seq_q: int, window: int) -> int:
    """That the longest loop goes over, in the smallest tiles."""
    longest = 0
    for i in range(triton.cdiv(seq_q, 64)):
        start = (max(0, (((((i * 64) + seq_k) - seq_q) - window) + 1)) // 32)
        stop = min(triton.cdiv(seq_k, 32), triton.cdiv(((((i + 1) * 64) + seq_k) - seq_q), 32))
        longest = max(longest, (stop - start) * 32)
    return longest


@lru_cache(maxsize=4096)
def _sliding_window_rounds_j(BM: int, BN: int, seq_k: int, seq_q: int, window: int) -> tuple[bool, bool, bool, bool]:
    """Of the loop over `j`, for all groups of rows: whether none is without rounds; whether some skip
    rounds of their tile; whether rounds with a mask follow the first before those without; or after."""
    some, skips, later, last_masked = True, False, False, False
    for i in range(triton.cdiv(seq_q, BM)):
        j_start, j_stop = max(0, i * BM + seq_k - seq_q - window + 1) // BN, min(triton.cdiv(seq_k, BN), triton.cdiv((i + 1) * BM + seq_k - seq_q, BN))
        for group_row in range(0, BM, 64):
            j_first = min(max(j_start, triton.cdiv(seq_k + 2 + BM * i + group_row - window - seq_q - BN, BN)), j_stop)
            j_last = min(max(min(j_stop, (seq_k + BM * i + group_row + 63 - seq_q) // BN + 1), min(max(j_start, triton.cdiv(seq_k + 2 + BM * i + group_row - window - seq_q - BN, BN)), j_stop)), j_first + min(1, max(0, seq_q - (i * BM + group_row))) * max(0, j_stop - j_first))
            j_low = min(max(j_first, triton.cdiv(seq_k + 64 + BM * i + group_row - window - seq_q, BN)), j_last)
            j_high = max(min(j_last, (seq_k + BM * i + group_row + 1 - seq_q - BN) // BN + 1, (seq_k - BN) // BN + 1), j_low)
            some &= j_first < j_last
            skips |= j_first > j_start or j_last < j_stop
            later |= j_last - j_high > 1
            last_masked |= j_low - j_first > 0
    return some, skips, later, last_masked


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float, window: int) -> None:
    """Write the attention of `sliding_window` to `out` on the current stream."""
    if q.is_cuda and q.get_device() != torch.cuda.current_device():
        with torch.cuda.device(q.device):
            return attention(q, k, v, out, scale=scale, window=window)
    batch, seq_q, heads, dim = q.shape
    _, seq_k, kv_heads, _ = k.shape
    _, _, _, dim_v = v.shape
    served = _capability(q.device) == (9, 0) and q.dtype in OPERANDS and (dim <= 256) and (dim_v <= 256)
    if not (served and _described(q, k, v, out)):
        plain(q, k, v, out, scale=scale, window=window)  # any device, type and stride
        return
    group = heads // kv_heads
    choice = _choose(
        max(_padded(dim), _padded(dim_v)),
        min(max(seq_q, seq_k), _keys(seq_k, seq_q, window)),
        seq_q,
        batch * heads,
        _processors(q.device),
    )
    BM, BN = choice.BM, choice.BN
    dim_v_p, dim_p = _padded(dim_v), _padded(dim)
    fold = scale > 0
    factor_scale = scale if fold else 1.0
    SOME_j, SKIPS_j, LATER_j, LAST_j = _sliding_window_rounds_j(BM, BN, seq_k, seq_q, window)
    row_tiles = triton.cdiv(seq_q, BM)
    heads_in_all = batch * heads
    tiles = row_tiles * heads_in_all
    blocks = min(tiles, _processors(q.device)) if choice.persistent else tiles
    reuse = bool(choice.reuse) and dim_p == dim_v_p
    stages = choice.stages if reuse else max(1, choice.stages - choice.reuse)
    head_group = _head_group(heads_in_all, 2 * (seq_k * dim + seq_k * dim_v) // group, choice.heads)
    counter = _counter(q.device)
    k_src = _descriptor(k, (0, 2, 1, 3), [1, 1, BN, dim_p])
    q_src = _descriptor(q, (0, 2, 1, 3), [1, 1, 64, dim_p])
    v_src = _descriptor(v, (0, 2, 1, 3), [1, 1, BN, dim_v_p])
    out_dst = _descriptor(out, (0, 2, 1, 3), [1, 1, 64, dim_v_p])
    sliding_window_kernel[(blocks,)](
        k_src, q_src, v_src, out_dst,
        counter, heads, seq_q, seq_k, scale, window, row_tiles, tiles, head_group, factor_scale,
        group=group, dim_v_p=dim_v_p, dim_p=dim_p, BM=BM, BN=BN, EVEN_seq_k_BN=seq_k % BN == 0, SOME_j=SOME_j,
        SKIPS_j=SKIPS_j, LATER_j=LATER_j, LAST_j=LAST_j, OPERAND=OPERANDS[q.dtype], FOLD=fold,
        CONSUMERS=choice.consumers, STAGES=stages, OVERLAP=bool(choice.overlap),
        PINGPONG=bool(choice.pingpong and choice.overlap), GRID=choice.persistent,
        REGISTERS=choice.registers or REGISTERS[choice.consumers][0],
        PRODUCER_REGISTERS=REGISTERS[choice.consumers][1], Q_STAGES=choice.q_stages,
        AHEAD=bool(choice.ahead and choice.persistent == 2), RESCALE=choice.rescale, REUSE=reuse,
        num_warps=4,
    )  # fmt: skip
