"""Works on a stream of its own, which the current one waits for before the call returns."""

import torch
import triton
import triton.language as tl

STREAMS = {}


@triton.jit
def walk(q, k, v, b, h, i, first, last, diagonal, scale, seq_q, seq_k, qb, qn, qh, kb, kn, kh, vb, vn, vh,
         DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """The online softmax of rows i over keys [first, last): sums that are not normalised, their total, the maximum."""
    d = tl.arange(0, DIM)[None, :]
    queries = tl.load(q + b * qb + h * qh + i[:, None] * qn + d, mask=i[:, None] < seq_q, other=0.0)
    acc, total = tl.zeros([M, DIM], tl.float32), tl.zeros([M], tl.float32)
    top = tl.full([M], -3.0e38, tl.float32)
    for start in range(first, last, N):
        j = start + tl.arange(0, N)
        inside = (j < last) & (j < seq_k)
        keys = tl.load(k + b * kb + h * kh + j[:, None] * kn + d, mask=inside[:, None], other=0.0)
        values = tl.load(v + b * vb + h * vh + j[:, None] * vn + d, mask=inside[:, None], other=0.0)
        s = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        s = tl.where(inside[None, :] & (j[None, :] <= i[:, None] + diagonal), s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p, decay = tl.exp(s - new[:, None]), tl.exp(top - new)
        acc = acc * decay[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        total, top = total * decay + tl.sum(p, 1), new
    return acc, total, top


@triton.jit
def forward(q, k, v, out, scale, heads, seq_q, seq_k, qb, qn, qh, kb, kn, kh, vb, vn, vh, ob, on, oh,
            DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    b, h, d = tl.program_id(1) // heads, tl.program_id(1) % heads, tl.arange(0, DIM)[None, :]
    i = tl.program_id(0) * M + tl.arange(0, M)
    acc, total, _ = walk(q, k, v, b, h, i, 0, seq_k, seq_k - seq_q, scale, seq_q, seq_k,
                         qb, qn, qh, kb, kn, kh, vb, vn, vh, DIM, M, N)  # fmt: skip
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + b * ob + h * oh + i[:, None] * on + d, o.to(out.dtype.element_ty), mask=i[:, None] < seq_q)


def launch(q, k, v, out, scale):
    batch, seq_q, heads, dim = q.shape
    strides = [n for x in (q, k, v, out) for n in x.stride()[:3]]
    grid = (triton.cdiv(seq_q, 64), batch * heads)
    forward[grid](q, k, v, out, scale, heads, seq_q, k.shape[1], *strides, DIM=dim, M=64, N=32)


def attention(q, k, v, out, *, scale):
    current = torch.cuda.current_stream()
    side = STREAMS.setdefault(q.device, torch.cuda.Stream(q.device))
    side.wait_stream(current)
    with torch.cuda.stream(side):
        launch(q, k, v, out, scale)
    current.wait_stream(side)
