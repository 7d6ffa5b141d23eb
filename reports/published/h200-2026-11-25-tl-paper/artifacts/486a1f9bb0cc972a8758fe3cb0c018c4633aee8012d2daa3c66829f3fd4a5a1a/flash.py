"""Flash attention forward in Triton, for any length, head grouping and bottom-right causal offset.

One program owns BLOCK_M queries of one head and walks the keys in tiles of BLOCK_N with the
online softmax. Tiles that every query of the block sees in full take a loop without any mask;
the ones cut by the diagonal or by the end of the keys come last, in a loop of their own. On
Hopper and later tiles move by TMA, whose bounds checks take care of the tails.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = 1.4426950408889634


class Tile(NamedTuple):
    """How a program is cut: queries and keys per tile, warps, and tiles in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By architecture, then by padded head dimension (the larger of K's and V's). None spills.
HOPPER = {
    32: Tile(128, 64, 4, 3),
    64: Tile(128, 64, 8, 3),
    128: Tile(128, 64, 8, 3),
    256: Tile(128, 64, 8, 2),
}
AMPERE = {32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 8, 2), 256: Tile(64, 32, 8, 2)}
TURING = {32: Tile(64, 32, 8, 1), 64: Tile(64, 32, 8, 1), 128: Tile(32, 32, 8, 1), 256: Tile(16, 16, 8, 1)}
FP32 = {32: Tile(64, 32, 8, 2), 64: Tile(64, 32, 8, 2), 128: Tile(32, 32, 8, 1), 256: Tile(16, 16, 8, 1)}
INTERPRETER = Tile(64, 64, 1, 1)


@triton.jit
def _load(src, b, h, start, stride_b, stride_n, stride_h, length, DIM: tl.constexpr, ROWS: tl.constexpr,
          COLS: tl.constexpr, CHECK_ROWS: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """(ROWS, COLS) tile of one head from row `start`; zeros outside the tensor."""
    if TMA:
        tile = src.load([b, h, start, 0]).reshape([ROWS, COLS])
    else:
        rows, cols = tl.arange(0, ROWS), tl.arange(0, COLS)
        base = src + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h + start.to(tl.int64) * stride_n
        pointers = base + rows[:, None] * stride_n + cols[None, :]
        if CHECK_ROWS:
            inside = (rows[:, None] < length - start) & (cols[None, :] < DIM)
            tile = tl.load(pointers, mask=inside, other=0.0)
        elif DIM < COLS:
            tile = tl.load(pointers, mask=cols[None, :] < DIM, other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit
def _walk(acc, row_sum, row_max, q, k_src, v_src, b, h, first, last, i, diagonal, seq_k, scale_log2,
          kb, kn, kh, vb, vn, vh, DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_N: tl.constexpr,
          COLS: tl.constexpr, COLS_V: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
          PRECISION: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """The online softmax over key tiles [first, last)."""
    for tile in range(first, last):
        start = tile * BLOCK_N
        k = _load(k_src, b, h, start, kb, kn, kh, seq_k, DIM, BLOCK_N, COLS, MASKED, TMA)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if MASKED:
            j = start + tl.arange(0, BLOCK_N)
            keep = j[None, :] < seq_k
            if CAUSAL:
                keep = keep & (j[None, :] <= i[:, None] + diagonal)
            s = tl.where(keep, s * scale_log2, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(s, 1))
            # A row that has seen no key yet has maximum -inf; subtracting that would give NaN.
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)
            p = tl.math.exp2(s - shift[:, None])
        else:
            new_max = tl.maximum(row_max, tl.max(s, 1) * scale_log2)
            shift = new_max
            p = tl.math.exp2(s * scale_log2 - shift[:, None])
        decay = tl.math.exp2(row_max - shift)
        row_sum = row_sum * decay + tl.sum(p, 1)
        acc = acc * decay[:, None]
        v = _load(v_src, b, h, start, vb, vn, vh, seq_k, DIM_V, BLOCK_N, COLS_V, MASKED, TMA)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        row_max = new_max
    return acc, row_sum, row_max


@triton.jit
def _forward(q_src, k_src, v_src, o_dst, scale_log2, heads, seq_q, seq_k,
             qb, qn, qh, kb, kn, kh, vb, vn, vh, ob, on, oh,
             GROUP: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_M: tl.constexpr,
             BLOCK_N: tl.constexpr, COLS: tl.constexpr, COLS_V: tl.constexpr, CAUSAL: tl.constexpr,
             PRECISION: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    blocks = tl.cdiv(seq_q, BLOCK_M)
    block = tl.program_id(0) % blocks
    if CAUSAL:
        block = blocks - 1 - block  # the last queries see most keys: start them first
    b = tl.program_id(0) // blocks // heads
    h = tl.program_id(0) // blocks % heads
    start_m = block * BLOCK_M
    i = start_m + tl.arange(0, BLOCK_M)
    diagonal = seq_k - seq_q

    whole = seq_k // BLOCK_N  # tiles [0, whole) need no mask, tiles [whole, end) do
    end = tl.cdiv(seq_k, BLOCK_N)
    if CAUSAL:
        whole = tl.minimum(whole, tl.maximum(start_m + diagonal + 1, 0) // BLOCK_N)
        seen = tl.minimum(start_m + BLOCK_M + diagonal, seq_k)
        end = tl.cdiv(tl.maximum(seen, 0), BLOCK_N)

    q = _load(q_src, b, h, start_m, qb, qn, qh, seq_q, DIM, BLOCK_M, COLS, True, TMA)
    acc = tl.zeros([BLOCK_M, COLS_V], dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    acc, row_sum, row_max = _walk(
        acc, row_sum, row_max, q, k_src, v_src, b, h // GROUP, 0, whole, i, diagonal, seq_k, scale_log2,
        kb, kn, kh, vb, vn, vh, DIM, DIM_V, BLOCK_N, COLS, COLS_V, CAUSAL, False, PRECISION, TMA,
    )  # fmt: skip
    acc, row_sum, row_max = _walk(
        acc, row_sum, row_max, q, k_src, v_src, b, h // GROUP, whole, end, i, diagonal, seq_k, scale_log2,
        kb, kn, kh, vb, vn, vh, DIM, DIM_V, BLOCK_N, COLS, COLS_V, CAUSAL, True, PRECISION, TMA,
    )  # fmt: skip

    o = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]  # a row without a key stays 0
    if TMA:
        o_dst.store([b, h, start_m, 0], o.to(o_dst.dtype).reshape([1, 1, BLOCK_M, COLS_V]))
    else:
        cols = tl.arange(0, COLS_V)
        base = o_dst + b.to(tl.int64) * ob + h.to(tl.int64) * oh
        pointers = base + i.to(tl.int64)[:, None] * on + cols[None, :]
        tl.store(pointers, o.to(o_dst.dtype.element_ty), mask=(i[:, None] < seq_q) & (cols[None, :] < DIM_V))


def flash_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float, causal: bool) -> None:
    """Write attention of (batch, seqlen, heads, head_dim) tensors to `out` on the current stream."""
    batch, seq_q, heads, dim = q.shape
    _, seq_k, kv_heads, dim_v = v.shape
    cols, cols_v = max(16, triton.next_power_of_2(dim)), max(16, triton.next_power_of_2(dim_v))
    capability = _capability(q.device)
    tile = _tile(q.dtype, max(32, cols, cols_v), capability)
    tma = capability >= (9, 0) and q.element_size() == 2 and all(map(_aligned, (q, k, v, out)))
    operands: list[Any] = [q, k, v, out]
    if tma:
        rows = (tile.block_m, tile.block_n, tile.block_n, tile.block_m)
        columns = (cols, cols, cols_v, cols_v)
        operands = [_descriptor(*each) for each in zip(operands, rows, columns, strict=True)]
    _forward[(triton.cdiv(seq_q, tile.block_m) * batch * heads,)](
        *operands, scale * LOG2_E, heads, seq_q, seq_k,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        GROUP=heads // kv_heads, DIM=dim, DIM_V=dim_v, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        COLS=cols, COLS_V=cols_v, CAUSAL=causal, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        TMA=tma, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) on a CPU, where Triton interprets."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _tile(dtype: torch.dtype, cols: int, capability: tuple[int, int]) -> Tile:
    if capability == (0, 0):
        return INTERPRETER
    if dtype == torch.float32:
        return FP32[cols]
    if capability >= (9, 0):
        return HOPPER[cols]
    return AMPERE[cols] if capability >= (8, 0) else TURING[cols]


def _aligned(t: Tensor) -> bool:
    """TMA wants 16-byte addresses and strides, and a contiguous last axis."""
    bytes_apart = [n * t.element_size() for n in t.stride()[:3]]
    return t.stride(3) == 1 and t.data_ptr() % 16 == 0 and all(n % 16 == 0 for n in bytes_apart)


def _descriptor(t: Tensor, rows: int, cols: int) -> TensorDescriptor:
    view = t.transpose(1, 2)  # (batch, heads, seqlen, head_dim): a tile is the last two axes
    return TensorDescriptor(view, list(view.shape), list(view.stride()), [1, 1, rows, cols])
