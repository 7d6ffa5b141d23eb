"""Multi-head latent attention, prefill, compiled from the LLM-TL program `mla_prefill`.

One block of the grid does what the program does; each statement stands above its code. Rounds of a loop
that need no mask have a loop of their own. Where the device moves tiles by descriptor (TMA, Hopper and
later) tiles of 16-bit elements do, and its bounds checks take care of the tails.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = tl.constexpr(1.4426950408889634)


class Choice(NamedTuple):
    """Tile parameters and launch."""

    BM: int
    BN: int
    warps: int
    stages: int
    overlap: int


# Bytes of an element, head dimension up to, sequence length from: the choice.
CHOICES = (
    (2, 64, 0, Choice(BM=128, BN=64, warps=8, stages=2, overlap=0)),
    (2, 128, 0, Choice(BM=128, BN=64, warps=8, stages=2, overlap=0)),
    (2, 256, 0, Choice(BM=128, BN=32, warps=8, stages=2, overlap=0)),
    (4, 64, 0, Choice(BM=128, BN=64, warps=8, stages=2, overlap=0)),
    (4, 128, 0, Choice(BM=128, BN=32, warps=8, stages=2, overlap=0)),
    (4, 256, 0, Choice(BM=64, BN=32, warps=8, stages=2, overlap=0)),
)


@triton.jit
def floor_div(a, b):
    """Rounds down for negative a too; b > 0. Triton's own division rounds toward zero."""
    return a // b - (a % b < 0)


@triton.jit
def ceil_div(a, b):
    """Rounds up for negative a too; b > 0."""
    return floor_div(a + b - 1, b)


@triton.jit
def wide(x):
    """As 64 bits: an offset in a large tensor does not fit in 32."""
    return x + tl.full([], 0, tl.int64)


@triton.jit
def finite(x):
    """What may be taken away: a row that has seen no key has maximum -inf, and -inf - -inf stays -inf."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def inverse(x):
    """1 / x, and 0 for 0: a row that has seen no key gives zeros."""
    return tl.where(x == 0.0, 0.0, 1.0 / tl.where(x == 0.0, 1.0, x))


@triton.jit
def load_tile(
    base, stride_row, stride_col,
    row, col, rows, cols, pad, ROWS: tl.constexpr, COLS: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) elements from (row, col) on; `pad` outside the matrix."""
    r, c = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    pointers = base + r.to(tl.int64)[:, None] * stride_row + c[None, :] * stride_col
    if CHECK:
        inside = (r[:, None] >= 0) & (r[:, None] < rows) & (c[None, :] < cols)
        tile = tl.load(pointers, mask=inside, other=pad)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    base, stride_row, stride_col,
    row, col, rows, cols, tile, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) elements to (row, col) and on; nothing outside the matrix."""
    r, c = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    inside = (r[:, None] >= 0) & (r[:, None] < rows) & (c[None, :] < cols)
    pointers = base + r.to(tl.int64)[:, None] * stride_row + c[None, :] * stride_col
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def mla_prefill_kernel(
    q_src, q_src_s0, q_src_s1, q_src_s2, q_src_s3,
    k_src, k_src_s0, k_src_s1, k_src_s2, k_src_s3,
    v_src, v_src_s0, v_src_s1, v_src_s2, v_src_s3,
    out_dst, out_dst_s0, out_dst_s1, out_dst_s2, out_dst_s3,
    heads, seq_q, seq_k, scale, factor_scale,
    dim: tl.constexpr, dim_v: tl.constexpr, dim_v_p: tl.constexpr, dim_p: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    i = pid % tl.cdiv(seq_q, BM)
    i = tl.cdiv(seq_q, BM) - 1 - i  # the last rows have most to do: they start first
    pid = pid // tl.cdiv(seq_q, BM)
    h = pid % heads
    b = pid // heads
    # Allocate m in register (BM) init -inf
    m = tl.full([BM], float("-inf"), tl.float32)
    # Allocate l in register (BM) init 0
    l = tl.full([BM], 0, tl.float32)
    # Allocate O in register (BM, dim_v) init 0
    O = tl.full([BM, dim_v_p], 0, tl.float32)
    # Copy Q (BM, dim) in coordinate [L = i] from global to shared
    if TMA:
        Q_shared = q_src.load([b, h, i * BM, 0]).reshape([BM, dim_p])
    else:
        Q_shared = load_tile(
            q_src + wide(b) * q_src_s0 + wide(h) * q_src_s2, q_src_s1, q_src_s3,
            i * BM, 0, seq_q, dim, 0, BM, dim_p, True,
        )  # fmt: skip
    # for j = 0 : min(ceil(seq_k / BN), ceil(((i + 1) * BM + seq_k - seq_q) / BN))
    #     (rounds that need no mask apart)
    j_start = 0
    j_stop = tl.minimum(tl.cdiv(seq_k, BN), ceil_div((i + 1) * BM + seq_k - seq_q, BN))
    j_tail = tl.minimum(j_stop, floor_div(seq_k + BM * i + 1 - seq_q - BN, BN) + 1)
    j_tail = tl.minimum(j_tail, floor_div(seq_k - BN, BN) + 1)
    j_tail = tl.maximum(j_tail, j_start)
    for j in range(j_start, j_tail):
        # Copy K (BN, dim) in coordinate [L = j] from global to shared
        if TMA:
            K_shared = k_src.load([b, h, j * BN, 0]).reshape([BN, dim_p])
        else:
            K_shared = load_tile(
                k_src + wide(b) * k_src_s0 + wide(h) * k_src_s2, k_src_s1, k_src_s3,
                j * BN, 0, seq_k, dim, 0, BN, dim_p, dim != dim_p,
            )  # fmt: skip
        # Compute GEMM Q, K^T and get S
        S = tl.dot(Q_shared, K_shared.T, input_precision=PRECISION)
        # Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
        if not FOLD:
            S = S * scale
        # Compute Mask S where k <= q + seq_k - seq_q  (holds for every element here)
        # Compute Softmax S, m, l and rescale O
        m_next = tl.maximum(m, tl.max(S, 1) * factor_scale)
        m_used = m_next
        decay = tl.math.exp2((m - m_used) * LOG2_E)
        S = tl.math.exp2(S * (factor_scale * LOG2_E) - (m_used * LOG2_E)[:, None])
        l = l * decay + tl.sum(S, 1)
        O = O * decay[:, None]
        m = m_next
        # Copy V (BN, dim_v) in coordinate [L = j] from global to shared
        if TMA:
            V_shared = v_src.load([b, h, j * BN, 0]).reshape([BN, dim_v_p])
        else:
            V_shared = load_tile(
                v_src + wide(b) * v_src_s0 + wide(h) * v_src_s2, v_src_s1, v_src_s3,
                j * BN, 0, seq_k, dim_v, 0, BN, dim_v_p, dim_v != dim_v_p,
            )  # fmt: skip
        # Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
        #     (the compiler converts the layout)
        # Compute GEMM S, V and accumulate O
        O = tl.dot(S.to(OPERAND), V_shared, O, input_precision=PRECISION)
    for j in range(j_tail, j_stop):
        # Copy K (BN, dim) in coordinate [L = j] from global to shared
        if TMA:
            K_shared = k_src.load([b, h, j * BN, 0]).reshape([BN, dim_p])
        else:
            K_shared = load_tile(
                k_src + wide(b) * k_src_s0 + wide(h) * k_src_s2, k_src_s1, k_src_s3,
                j * BN, 0, seq_k, dim, 0, BN, dim_p, True,
            )  # fmt: skip
        # Compute GEMM Q, K^T and get S
        S = tl.dot(Q_shared, K_shared.T, input_precision=PRECISION)
        # Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
        if not FOLD:
            S = S * scale
        # Compute Mask S where k <= q + seq_k - seq_q
        S = tl.where(
            (j * BN + tl.arange(0, BN))[None, :] <= (i * BM + tl.arange(0, BM))[:, None] + seq_k - seq_q,
            S,
            float("-inf"),
        )
        # Compute Softmax S, m, l and rescale O
        S = tl.where((j * BN + tl.arange(0, BN) < seq_k)[None, :], S, float("-inf"))
        m_next = tl.maximum(m, tl.max(S, 1) * factor_scale)
        m_used = finite(m_next)
        decay = tl.math.exp2((m - m_used) * LOG2_E)
        S = tl.math.exp2(S * (factor_scale * LOG2_E) - (m_used * LOG2_E)[:, None])
        l = l * decay + tl.sum(S, 1)
        O = O * decay[:, None]
        m = m_next
        # Copy V (BN, dim_v) in coordinate [L = j] from global to shared
        if TMA:
            V_shared = v_src.load([b, h, j * BN, 0]).reshape([BN, dim_v_p])
        else:
            V_shared = load_tile(
                v_src + wide(b) * v_src_s0 + wide(h) * v_src_s2, v_src_s1, v_src_s3,
                j * BN, 0, seq_k, dim_v, 0, BN, dim_v_p, True,
            )  # fmt: skip
        # Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
        #     (the compiler converts the layout)
        # Compute GEMM S, V and accumulate O
        O = tl.dot(S.to(OPERAND), V_shared, O, input_precision=PRECISION)
    # Compute Divide O, l and get new O
    O = O * inverse(l)[:, None]
    # Copy O (BM, dim_v) in coordinate [L = i] from register to global
    if TMA:
        out_dst.store([b, h, i * BM, 0], O.to(out_dst.dtype).reshape([1, 1, BM, dim_v_p]))
    else:
        store_tile(
            out_dst + wide(b) * out_dst_s0 + wide(h) * out_dst_s2, out_dst_s1, out_dst_s3,
            i * BM, 0, seq_q, dim_v, O, BM, dim_v_p,
        )  # fmt: skip


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) on a CPU, where Triton interprets."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _choose(element_size: int, dim: int, seq: int) -> Choice:
    """That of the smallest head dimension large enough, and there of the longest sequences not longer."""
    rows = [row for row in CHOICES if row[0] == element_size] or list(CHOICES)
    dims = [row[1] for row in rows if row[1] >= dim] or [max(row[1] for row in rows)]
    rows = [row for row in rows if row[1] == min(dims)]
    started = [row for row in rows if row[2] <= seq] or rows
    return max(started, key=lambda row: row[2])[3]


def _padded(n: int) -> int:
    """The extent of a tile that holds n elements: a power of two."""
    return max(16, triton.next_power_of_2(n))


def _aligned(*tensors: Tensor) -> bool:
    """Descriptors want 16-byte addresses and strides, and a contiguous last axis."""
    return all(
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(n * t.element_size() % 16 == 0 for n in t.stride()[:-1])
        for t in tensors
    )


def _descriptor(t: Tensor, order: tuple[int, ...], block: list[int]) -> TensorDescriptor:
    """Tiles of the tensor, its axes in that order."""
    view = t.permute(order)
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block)


OPERANDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    """Write the attention of `mla_prefill` to `out` on the current stream."""
    batch, seq_q, heads, dim = q.shape
    _, seq_k, kv_heads, _ = k.shape
    _, _, _, dim_v = v.shape
    choice = _choose(q.element_size(), max(dim, dim_v), max(seq_q, seq_k))
    tma = _capability(q.device) >= (9, 0) and q.element_size() == 2 and _aligned(q, k, v, out)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    BM, BN = choice.BM, choice.BN
    dim_v_p, dim_p = _padded(dim_v), _padded(dim)
    fold = scale > 0
    factor_scale = scale if fold else 1.0
    q_src = _descriptor(q, (0, 2, 1, 3), [1, 1, BM, dim_p]) if tma else q
    k_src = _descriptor(k, (0, 2, 1, 3), [1, 1, BN, dim_p]) if tma else k
    v_src = _descriptor(v, (0, 2, 1, 3), [1, 1, BN, dim_v_p]) if tma else v
    out_dst = _descriptor(out, (0, 2, 1, 3), [1, 1, BM, dim_v_p]) if tma else out
    mla_prefill_kernel[(batch * heads * triton.cdiv(seq_q, BM),)](
        q_src, q.stride(0), q.stride(1), q.stride(2), q.stride(3),
        k_src, k.stride(0), k.stride(1), k.stride(2), k.stride(3),
        v_src, v.stride(0), v.stride(1), v.stride(2), v.stride(3),
        out_dst, out.stride(0), out.stride(1), out.stride(2), out.stride(3),
        heads, seq_q, seq_k, scale, factor_scale,
        dim=dim, dim_v=dim_v, dim_v_p=dim_v_p, dim_p=dim_p, BM=BM, BN=BN, OPERAND=OPERANDS[q.dtype],
        PRECISION=precision, TMA=tma, FOLD=fold,
        num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip
