import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: pointers only
    TensorDescriptor = None


# One step of the online softmax, in base 2. c = scale * log2(e).
@triton.jit
def _online(qk, m, c, lim, cols, MASKED: tl.constexpr, POS: tl.constexpr):
    if POS:
        # c > 0: the maximum commutes with the scaling, which becomes an FMA
        if MASKED:
            qk = tl.where(cols[None, :] <= lim[:, None], qk, float("-inf"))
        m_new = tl.maximum(m, tl.max(qk, 1) * c)
    else:
        qk = qk * c
        if MASKED:
            qk = tl.where(cols[None, :] <= lim[:, None], qk, float("-inf"))
        m_new = tl.maximum(m, tl.max(qk, 1))
    if MASKED:
        # rows that have seen no key yet: avoid -inf - -inf
        m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_use = m_new
    if POS:
        p = tl.exp2(qk * c - m_use[:, None])
    else:
        p = tl.exp2(qk - m_use[:, None])
    alpha = tl.exp2(m - m_use)
    return p, alpha, m_new


# ----------------------------------------------------------------------------
# Tensor descriptors: q, k, v seen as (batch * seq, heads * dim)
# ----------------------------------------------------------------------------
@triton.jit
def _mla_tma(dq0, dq1, dk0, dk1, dv, out, c,
             seq_q, seq_k, group,
             q_h, k_h, v_h,
             so_b, so_s, so_h,
             BM: tl.constexpr, BN: tl.constexpr, POS: tl.constexpr):
    i = tl.num_programs(0) - 1 - tl.program_id(0)   # heavy tiles first
    h = tl.program_id(1)
    b = tl.program_id(2)
    hk = h // group
    D = seq_k - seq_q

    row_q = b * seq_q + i * BM
    row_k = b * seq_k
    col_q = h * q_h
    col_k = hk * k_h
    col_v = hk * v_h

    rows = i * BM + tl.arange(0, BM)
    lim = rows + D
    offs_n = tl.arange(0, BN)

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, 128], tl.float32)

    q0 = dq0.load([row_q, col_q])
    q1 = dq1.load([row_q, col_q + 128])

    # whole tiles that every row of this query tile sees
    lo = (tl.minimum(tl.maximum(i * BM + D + 1, 0), seq_k) // BN) * BN
    # up to the last key that some row sees
    hi = tl.minimum(tl.maximum((i + 1) * BM + D, 0), seq_k)

    for start in range(0, lo, BN):
        k0 = dk0.load([row_k + start, col_k])
        k1 = dk1.load([row_k + start, col_k + 128])
        qk = tl.dot(q0, tl.trans(k0))
        qk = tl.dot(q1, tl.trans(k1), qk)
        vt = dv.load([row_k + start, col_v])
        p, alpha, m = _online(qk, m, c, lim, offs_n, False, POS)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(vt.dtype), vt, acc)

    for start in range(lo, hi, BN):
        k0 = dk0.load([row_k + start, col_k])
        k1 = dk1.load([row_k + start, col_k + 128])
        qk = tl.dot(q0, tl.trans(k0))
        qk = tl.dot(q1, tl.trans(k1), qk)
        vt = dv.load([row_k + start, col_v])
        p, alpha, m = _online(qk, m, c, lim, start + offs_n, True, POS)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(vt.dtype), vt, acc)

    inv = tl.where(l > 0.0, 1.0 / tl.where(l > 0.0, l, 1.0), 0.0)
    o = acc * inv[:, None]
    ob = out + b.to(tl.int64) * so_b + h.to(tl.int64) * so_h
    op = ob + rows.to(tl.int64)[:, None] * so_s + tl.arange(0, 128)[None, :]
    tl.store(op, o.to(out.dtype.element_ty), mask=rows[:, None] < seq_q)


# ----------------------------------------------------------------------------
# Pointers: any strides
# ----------------------------------------------------------------------------
@triton.jit(do_not_specialize=["seq_q", "seq_k", "group"])
def _mla_ptr(q, k, v, out, c,
             seq_q, seq_k, group,
             sq_b, sq_s, sq_h,
             sk_b, sk_s, sk_h,
             sv_b, sv_s, sv_h,
             so_b, so_s, so_h,
             BM: tl.constexpr, BN: tl.constexpr, POS: tl.constexpr):
    i = tl.num_programs(0) - 1 - tl.program_id(0)   # heavy tiles first
    h = tl.program_id(1)
    b = tl.program_id(2)
    hk = h // group
    D = seq_k - seq_q

    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    hk64 = hk.to(tl.int64)

    rows = i * BM + tl.arange(0, BM)
    rows64 = rows.to(tl.int64)
    lim = rows + D
    offs_n = tl.arange(0, BN)
    n64 = offs_n.to(tl.int64)
    d0 = tl.arange(0, 128)
    d1 = tl.arange(0, 64)

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, 128], tl.float32)

    qb = q + b64 * sq_b + h64 * sq_h
    qmask = rows[:, None] < seq_q
    q0 = tl.load(qb + rows64[:, None] * sq_s + d0[None, :], mask=qmask, other=0.0)
    q1 = tl.load(qb + rows64[:, None] * sq_s + (d1[None, :] + 128), mask=qmask, other=0.0)

    kb = k + b64 * sk_b + hk64 * sk_h
    vb = v + b64 * sv_b + hk64 * sv_h
    kp0 = kb + n64[:, None] * sk_s + d0[None, :]
    kp1 = kb + n64[:, None] * sk_s + (d1[None, :] + 128)
    vp = vb + n64[:, None] * sv_s + d0[None, :]

    lo = (tl.minimum(tl.maximum(i * BM + D + 1, 0), seq_k) // BN) * BN
    hi = tl.minimum(tl.maximum((i + 1) * BM + D, 0), seq_k)

    for start in range(0, lo, BN):
        k0 = tl.load(kp0)
        k1 = tl.load(kp1)
        qk = tl.dot(q0, tl.trans(k0))
        qk = tl.dot(q1, tl.trans(k1), qk)
        vt = tl.load(vp)
        p, alpha, m = _online(qk, m, c, lim, offs_n, False, POS)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(vt.dtype), vt, acc)
        kp0 += BN * sk_s
        kp1 += BN * sk_s
        vp += BN * sv_s

    for start in range(lo, hi, BN):
        cols = start + offs_n
        nmask = cols[:, None] < seq_k
        k0 = tl.load(kp0, mask=nmask, other=0.0)
        k1 = tl.load(kp1, mask=nmask, other=0.0)
        qk = tl.dot(q0, tl.trans(k0))
        qk = tl.dot(q1, tl.trans(k1), qk)
        vt = tl.load(vp, mask=nmask, other=0.0)
        p, alpha, m = _online(qk, m, c, lim, cols, True, POS)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(vt.dtype), vt, acc)
        kp0 += BN * sk_s
        kp1 += BN * sk_s
        vp += BN * sv_s

    inv = tl.where(l > 0.0, 1.0 / tl.where(l > 0.0, l, 1.0), 0.0)
    o = acc * inv[:, None]
    ob = out + b64 * so_b + h64 * so_h
    op = ob + rows64[:, None] * so_s + d0[None, :]
    tl.store(op, o.to(out.dtype.element_ty), mask=rows[:, None] < seq_q)


# ----------------------------------------------------------------------------
# Host
# ----------------------------------------------------------------------------
def _set_blocks(nargs):
    bm = nargs["BM"]
    bn = nargs["BN"]
    nargs["dq0"].block_shape = [bm, 128]
    nargs["dq1"].block_shape = [bm, 64]
    nargs["dk0"].block_shape = [bn, 128]
    nargs["dk1"].block_shape = [bn, 64]
    nargs["dv"].block_shape = [bn, 128]


# (BM, BN, warps, stages)
_CONFIGS = [(128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2)]

_tma_tuned = triton.autotune(
    configs=[triton.Config({"BM": bm, "BN": bn}, num_warps=w, num_stages=s, pre_hook=_set_blocks)
             for bm, bn, w, s in _CONFIGS],
    key=["seq_q", "seq_k"],
)(_mla_tma)

_ptr_tuned = triton.autotune(
    configs=[triton.Config({"BM": bm, "BN": bn}, num_warps=w, num_stages=s)
             for bm, bn, w, s in _CONFIGS],
    key=["seq_q", "seq_k"],
)(_mla_ptr)

_state = {"tma": TensorDescriptor is not None, "ptr_tune": True}
_seen = set()


def _flat(t):
    """(rows, cols, row stride, head stride) of t as a matrix, or None."""
    B, S, H, d = t.shape
    sb, ss, sh, sd = t.stride()
    if sd != 1 or S < 2 or t.data_ptr() % 16 != 0:
        return None
    if B > 1 and sb != S * ss:
        return None
    if H == 1:
        sh = d
    cols = (H - 1) * sh + d
    if sh < d or sh % 8 != 0 or ss % 8 != 0 or cols > ss:
        return None
    if B * S >= 2 ** 31 or cols >= 2 ** 31:
        return None
    return B * S, cols, ss, sh


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, _ = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    c = float(scale) * 1.4426950408889634
    pos = c > 0.0

    strides = (q.stride(0), q.stride(1), q.stride(2),
               k.stride(0), k.stride(1), k.stride(2),
               v.stride(0), v.stride(1), v.stride(2),
               out.stride(0), out.stride(1), out.stride(2))

    def grid(meta):
        return (triton.cdiv(seq_q, meta["BM"]), heads, batch)

    large = (seq_q >= 1024 and seq_k >= 1024 and q.element_size() == 2
             and batch * heads * seq_q * seq_k >= (1 << 28))
    if large:
        capturing = torch.cuda.is_current_stream_capturing()

        if _state["tma"] and (not capturing or ("tma", seq_q, seq_k) in _seen):
            fq, fk, fv = _flat(q), _flat(k), _flat(v)
            if fq is not None and fk is not None and fv is not None:
                try:
                    dq0 = TensorDescriptor(q, [fq[0], fq[1]], [fq[2], 1], [64, 128])
                    dq1 = TensorDescriptor(q, [fq[0], fq[1]], [fq[2], 1], [64, 64])
                    dk0 = TensorDescriptor(k, [fk[0], fk[1]], [fk[2], 1], [64, 128])
                    dk1 = TensorDescriptor(k, [fk[0], fk[1]], [fk[2], 1], [64, 64])
                    dv = TensorDescriptor(v, [fv[0], fv[1]], [fv[2], 1], [64, 128])
                    _tma_tuned[grid](
                        dq0, dq1, dk0, dk1, dv, out, c,
                        seq_q, seq_k, group,
                        fq[3], fk[3], fv[3],
                        out.stride(0), out.stride(1), out.stride(2),
                        POS=pos,
                    )
                    _seen.add(("tma", seq_q, seq_k))
                    return
                except Exception:
                    _state["tma"] = False

        if _state["ptr_tune"] and (not capturing or ("ptr", seq_q, seq_k) in _seen):
            try:
                _ptr_tuned[grid](q, k, v, out, c, seq_q, seq_k, group, *strides, POS=pos)
                _seen.add(("ptr", seq_q, seq_k))
                return
            except Exception:
                _state["ptr_tune"] = False

    if q.element_size() == 2:
        bm, bn, warps, stages = 128, 64, 8, 2
    else:
        bm, bn, warps, stages = 64, 32, 4, 1
    _mla_ptr[(triton.cdiv(seq_q, bm), heads, batch)](
        q, k, v, out, c, seq_q, seq_k, group, *strides,
        BM=bm, BN=bn, POS=pos, num_warps=warps, num_stages=stages,
    )
