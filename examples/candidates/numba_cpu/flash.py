"""Flash attention forward for CPUs in Numba: fp32, any length, grouped heads, bottom-right causal.

One parallel iteration owns BLOCK_M queries of one head and walks the keys in tiles of BLOCK_N
that stay in the caches near a core. Both products run through `_multiply_add`, two rows and four
steps of depth at a time, so that arithmetic and not loads or stores sets the pace. exp2 is a polynomial
written so that the compiler can vectorise it: without SVML, np.exp would be a scalar call per score.
No infinities appear anywhere: hidden keys are skipped by count, not by adding -inf.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

BLOCK_M = 64
BLOCK_N = 128
LOG2_E = 1.4426950408889634
LOWEST = np.float32(-3.0e38)
ROWS, DEPTH = 2, 4  # what `_multiply_add` takes at a time: 14 vectors, which 16 registers hold


@njit(fastmath=True)
def _multiply_add(a, b, c, rows, depth):  # type: ignore[no-untyped-def]
    """c[:rows] += a[:rows, :depth] @ b[:depth]; the caller rounds rows up to ROWS, depth to DEPTH."""
    width = c.shape[1]
    for i in range(0, rows, ROWS):
        # Views and scalars by name: indexing inside the loop would keep it from being vectorised.
        c0, c1 = c[i], c[i + 1]
        for t in range(0, depth, DEPTH):
            b0, b1, b2, b3 = b[t], b[t + 1], b[t + 2], b[t + 3]
            a00, a01, a02, a03 = a[i, t], a[i, t + 1], a[i, t + 2], a[i, t + 3]
            a10, a11, a12, a13 = a[i + 1, t], a[i + 1, t + 1], a[i + 1, t + 2], a[i + 1, t + 3]
            for j in range(width):
                x0, x1, x2, x3 = b0[j], b1[j], b2[j], b3[j]
                c0[j] += a00 * x0 + a01 * x1 + a02 * x2 + a03 * x3
                c1[j] += a10 * x0 + a11 * x1 + a12 * x2 + a13 * x3


@njit(fastmath=True)
def _exp2_row(row, count, shift, exponent_bits, exponent):  # type: ignore[no-untyped-def]
    """row[:count] = 2 ** (row[:count] - shift), the shifts <= 0; returns the sum.

    Integer and fractional part apart: 2^n through the exponent's bits (`exponent` is a float view
    of `exponent_bits`), 2^f by a Taylor polynomial on [-0.5, 0.5], relative error under 2e-7.
    """
    total = np.float32(0.0)
    for j in range(count):
        x = max(row[j] - shift, np.float32(-126.0))
        n = np.floor(x + np.float32(0.5))
        exponent_bits[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
        f = x - n
        y = np.float32(1.5403530e-4)
        y = y * f + np.float32(1.3333558e-3)
        y = y * f + np.float32(9.6181291e-3)
        y = y * f + np.float32(5.5504109e-2)
        y = y * f + np.float32(2.4022651e-1)
        y = y * f + np.float32(6.9314718e-1)
        row[j] = y * f + np.float32(1.0)
    for j in range(count):
        row[j] *= exponent[j]
        total += row[j]
    return total


@njit(parallel=True, fastmath=True)
def _forward(q, k, v, out, scale, causal):  # type: ignore[no-untyped-def]
    batch, seq_q, heads, dim = q.shape
    _, seq_k, kv_heads, dim_v = v.shape
    diagonal = seq_k - seq_q
    blocks = (seq_q + BLOCK_M - 1) // BLOCK_M
    depth = (dim + DEPTH - 1) // DEPTH * DEPTH
    for work in prange(batch * heads * blocks):
        block = blocks - 1 - work // (batch * heads)  # the last queries see most keys: start them first
        b = work % (batch * heads) // heads
        h = work % heads
        g = h * kv_heads // heads
        start_m = block * BLOCK_M
        rows = min(BLOCK_M, seq_q - start_m)

        queries = np.zeros((BLOCK_M, depth), np.float32)
        keys = np.zeros((depth, BLOCK_N), np.float32)
        values = np.zeros((BLOCK_N, dim_v), np.float32)
        scores = np.zeros((BLOCK_M, BLOCK_N), np.float32)
        acc = np.zeros((BLOCK_M, dim_v), np.float32)
        row_max = np.full(BLOCK_M, LOWEST, np.float32)
        row_sum = np.zeros(BLOCK_M, np.float32)
        exponent_bits = np.zeros(BLOCK_N, np.int32)
        exponent = exponent_bits.view(np.float32)

        for i in range(rows):
            for d in range(dim):
                queries[i, d] = q[b, start_m + i, h, d] * scale
        padded_rows = (rows + ROWS - 1) // ROWS * ROWS
        last = min(seq_k, start_m + rows + diagonal) if causal else seq_k
        for start in range(0, last, BLOCK_N):
            columns = min(BLOCK_N, seq_k - start)
            padded = (columns + DEPTH - 1) // DEPTH * DEPTH
            for j in range(columns):
                for d in range(dim):
                    keys[d, j] = k[b, start + j, g, d]
                values[j] = v[b, start + j, g]
            values[columns:padded] = np.float32(0.0)
            scores[:padded_rows] = np.float32(0.0)
            _multiply_add(queries, keys, scores, padded_rows, depth)
            for i in range(rows):
                seen = columns
                if causal:
                    seen = min(columns, max(0, start_m + i + diagonal - start + 1))
                row = scores[i]
                if seen > 0:
                    highest = row_max[i]
                    for j in range(seen):
                        highest = max(highest, row[j])
                    decay = np.float32(2.0 ** max(row_max[i] - highest, np.float32(-126.0)))
                    row_sum[i] = row_sum[i] * decay + _exp2_row(row, seen, highest, exponent_bits, exponent)
                    row_max[i] = highest
                    for d in range(dim_v):
                        acc[i, d] *= decay
                row[seen:] = np.float32(0.0)
            _multiply_add(scores, values, acc, padded_rows, padded)
        for i in range(rows):
            inverse = np.float32(1.0) / row_sum[i] if row_sum[i] > 0 else np.float32(0.0)
            for d in range(dim_v):
                out[b, start_m + i, h, d] = acc[i, d] * inverse


def flash_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float, causal: bool) -> None:
    """Write attention of (batch, seqlen, heads, head_dim) tensors to `out`."""
    if q.dtype != torch.float32:
        raise TypeError(f"this kernel is written for fp32, not {q.dtype}")
    arrays = [t.numpy() for t in (q, k, v, out)]
    _forward(*arrays, np.float32(scale * LOG2_E), causal)
