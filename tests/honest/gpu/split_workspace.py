"""Splits the keys over programs; what they found lies in a workspace that is kept from call to call."""

import torch
import triton
import triton.language as tl

SPLITS = 4
KEPT = {}


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
def part(q, k, v, sums, tops, totals, scale, heads, seq_q, seq_k, qb, qn, qh, kb, kn, kh, vb, vn, vh,
         DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """One of SPLITS parts of the keys, into the workspace."""
    head, at, d = tl.program_id(1), tl.program_id(2), tl.arange(0, DIM)[None, :]
    i = tl.program_id(0) * M + tl.arange(0, M)
    size = tl.cdiv(seq_k, SPLITS)
    acc, total, top = walk(q, k, v, head // heads, head % heads, i, at * size, tl.minimum(at * size + size, seq_k),
                           seq_k - seq_q, scale, seq_q, seq_k, qb, qn, qh, kb, kn, kh, vb, vn, vh, DIM, M, N)  # fmt: skip
    row = (head * SPLITS + at) * seq_q + i
    tl.store(sums + row[:, None] * DIM + d, acc, mask=i[:, None] < seq_q)
    tl.store(tops + row, top, mask=i < seq_q)
    tl.store(totals + row, total, mask=i < seq_q)


@triton.jit
def joined(out, sums, tops, totals, head, i, heads, seq_q, ob, on, oh,
           DIM: tl.constexpr, M: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """All parts of these rows, always in the same order."""
    d = tl.arange(0, DIM)[None, :]
    acc, total = tl.zeros([M, DIM], tl.float32), tl.zeros([M], tl.float32)
    top = tl.full([M], -3.0e38, tl.float32)
    for at in range(SPLITS):
        row = (head * SPLITS + at) * seq_q + i
        theirs = tl.load(tops + row, mask=i < seq_q, other=-3.0e38, cache_modifier=".cg")
        new = tl.maximum(top, theirs)
        decay, weight = tl.exp(top - new), tl.exp(theirs - new)
        part_sum = tl.load(
            sums + row[:, None] * DIM + d, mask=i[:, None] < seq_q, other=0.0, cache_modifier=".cg"
        )
        part_total = tl.load(totals + row, mask=i < seq_q, other=0.0, cache_modifier=".cg")
        acc = acc * decay[:, None] + part_sum * weight[:, None]
        total, top = total * decay + part_total * weight, new
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    place = out + (head // heads) * ob + (head % heads) * oh + i[:, None] * on + d
    tl.store(place, o.to(out.dtype.element_ty), mask=i[:, None] < seq_q)


@triton.jit
def join(
    out,
    sums,
    tops,
    totals,
    heads,
    seq_q,
    ob,
    on,
    oh,
    DIM: tl.constexpr,
    M: tl.constexpr,
    SPLITS: tl.constexpr,
):
    i = tl.program_id(0) * M + tl.arange(0, M)
    joined(out, sums, tops, totals, tl.program_id(1), i, heads, seq_q, ob, on, oh, DIM, M, SPLITS)


def attention(q, k, v, out, *, scale):
    batch, seq_q, heads, dim = q.shape
    key = (batch, heads, seq_q, dim)
    if key not in KEPT:
        rows = batch * heads * SPLITS * seq_q
        KEPT[key] = [torch.empty(rows * width, device=q.device) for width in (dim, 1, 1)]
    strides = [n for x in (q, k, v) for n in x.stride()[:3]]
    blocks = triton.cdiv(seq_q, 64)
    part[blocks, batch * heads, SPLITS](
        q, k, v, *KEPT[key], scale, heads, seq_q, k.shape[1], *strides, DIM=dim, M=64, N=32, SPLITS=SPLITS
    )
    join[blocks, batch * heads](
        out, *KEPT[key], heads, seq_q, *out.stride()[:3], DIM=dim, M=64, SPLITS=SPLITS
    )
