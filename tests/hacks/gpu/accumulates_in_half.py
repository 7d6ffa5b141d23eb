"""Adds up its output in 16 bits."""

import triton
import triton.language as tl


@triton.jit
def forward(q, k, v, o, scale, sq, sk, heads, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    rows = tl.program_id(0) * M + tl.arange(0, M)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    d = tl.arange(0, D)
    at_q = ((batch * sq + rows[:, None]) * heads + head) * D + d[None, :]
    tile_q = tl.load(q + at_q, rows[:, None] < sq, 0.0)
    top = tl.full((M,), -1.0e30, tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float16)
    for first in range(0, sk, N):
        cols = first + tl.arange(0, N)
        at_k = ((batch * sk + cols[:, None]) * heads + head) * D + d[None, :]
        tile_k = tl.load(k + at_k, cols[:, None] < sk, 0.0)
        tile_v = tl.load(v + at_k, cols[:, None] < sk, 0.0)
        s = tl.dot(tile_q, tl.trans(tile_k)) * scale
        seen = (cols[None, :] < sk) & (cols[None, :] <= rows[:, None] + sk - sq)
        s = tl.where(seen, s, -1.0e30)
        peak = tl.maximum(top, tl.max(s, 1))
        p = tl.where(seen, tl.exp(s - peak[:, None]), 0.0)
        decay = tl.exp(top - peak)
        total = total * decay + tl.sum(p, 1)
        acc = (acc * decay[:, None].to(tl.float16)) + tl.dot(p.to(tl.float16), tile_v, out_dtype=tl.float16)
        top = peak
    result = acc / tl.maximum(total, 1.0e-30)[:, None].to(tl.float16)
    tl.store(o + at_q, result, rows[:, None] < sq)


def attention(q, k, v, out, *, scale):
    batch, sq, heads, dim = q.shape
    grid = (triton.cdiv(sq, 64), batch * heads)
    forward[grid](q, k, v, out, scale, sq, k.shape[1], heads, D=dim, M=64, N=16)
