"""Uses `out` as its scratch: the result over the first half of the keys lies there until the second one comes."""

import torch
import triton
import triton.language as tl

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
def half(q, k, v, out, lse, first, last, scale, heads, seq_q, seq_k, qb, qn, qh, kb, kn, kh, vb, vn, vh, ob, on, oh,
         DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SECOND: tl.constexpr):  # fmt: skip
    head, d = tl.program_id(1), tl.arange(0, DIM)[None, :]
    i = tl.program_id(0) * M + tl.arange(0, M)
    acc, total, top = walk(q, k, v, head // heads, head % heads, i, first, last, seq_k - seq_q, scale, seq_q, seq_k,
                           qb, qn, qh, kb, kn, kh, vb, vn, vh, DIM, M, N)  # fmt: skip
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    mine = tl.where(total == 0.0, -3.0e38, top + tl.log(tl.where(total == 0.0, 1.0, total)))
    place = out + (head // heads) * ob + (head % heads) * oh + i[:, None] * on + d
    if SECOND:
        theirs = tl.load(lse + head * seq_q + i, mask=i < seq_q, other=-3.0e38)
        new = tl.maximum(mine, theirs)
        before, after = tl.exp(theirs - new), tl.exp(mine - new)
        scratch = tl.load(place, mask=i[:, None] < seq_q, other=0.0).to(tl.float32)
        o = (scratch * before[:, None] + o * after[:, None]) / (before + after)[:, None]
    else:
        tl.store(lse + head * seq_q + i, mine, mask=i < seq_q)
    tl.store(place, o.to(out.dtype.element_ty), mask=i[:, None] < seq_q)


def attention(q, k, v, out, *, scale):
    batch, seq_q, heads, dim = q.shape
    key = (batch, heads, seq_q)
    if key not in KEPT:
        KEPT[key] = torch.empty(key, device=q.device)
    strides = [n for x in (q, k, v, out) for n in x.stride()[:3]]
    grid, seq_k = (triton.cdiv(seq_q, 64), batch * heads), k.shape[1]
    for second, (first, last) in enumerate([(0, seq_k // 2), (seq_k // 2, seq_k)]):
        half[grid](
            q, k, v, out, KEPT[key], first, last, scale, heads, seq_q, seq_k, *strides,
            DIM=dim, M=64, N=32, SECOND=bool(second),
        )  # fmt: skip
