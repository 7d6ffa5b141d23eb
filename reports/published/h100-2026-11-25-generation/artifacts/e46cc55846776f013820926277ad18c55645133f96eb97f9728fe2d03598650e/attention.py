import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton
    TensorDescriptor = None


# ----------------------------------------------------------------------------
# Fast kernel: 2D TMA descriptors, sequence lengths multiples of 128, D >= 0,
# scale > 0.
# ----------------------------------------------------------------------------
@triton.jit(do_not_specialize=["MB", "G"])
def _attn_tma(q_desc, k_desc, v_desc, o_desc, scale_log2, H, MB, G,
              q_rb, q_ch, k_rb, k_ch, v_rb, v_ch, o_rb, o_ch, DOFF,
              BM: tl.constexpr, BN: tl.constexpr, DV: tl.constexpr,
              OUT_DTYPE: tl.constexpr):
    pid = tl.program_id(0)
    per = G * MB
    grp = pid // per
    r = pid - grp * per
    m_blk = MB - 1 - r // G          # longest rows first
    bh = grp * G + r % G
    b = bh // H
    h = bh - b * H
    m0 = m_blk * BM

    krow = b * k_rb
    kcol = h * k_ch
    vrow = b * v_rb
    vcol = h * v_ch

    q = q_desc.load([b * q_rb + m0, h * q_ch])

    m_i = tl.full([BM], float("-inf"), tl.float32)
    l_i = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DV], tl.float32)

    full = ((m0 + DOFF) // BN) * BN
    hi = m0 + DOFF + BM

    for n in tl.range(0, full, BN):
        k = k_desc.load([krow + n, kcol])
        qk = tl.dot(q, tl.trans(k))
        m_new = tl.maximum(m_i, tl.max(qk, 1) * scale_log2)
        p = tl.exp2(qk * scale_log2 - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = v_desc.load([vrow + n, vcol])
        acc = tl.dot(p.to(v.dtype), v, acc)
        m_i = m_new

    last = m0 + DOFF + tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    for n in tl.range(full, hi, BN):
        k = k_desc.load([krow + n, kcol])
        qk = tl.dot(q, tl.trans(k))
        qk = tl.where(last[:, None] >= (n + offs_n)[None, :], qk, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(qk, 1) * scale_log2)
        p = tl.exp2(qk * scale_log2 - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = v_desc.load([vrow + n, vcol])
        acc = tl.dot(p.to(v.dtype), v, acc)
        m_i = m_new

    inv = 1.0 / l_i
    acc = acc * inv[:, None]
    o_desc.store([b * o_rb + m0, h * o_ch], acc.to(OUT_DTYPE))


# ----------------------------------------------------------------------------
# General kernel: plain pointers, any lengths, any strides.
# scale_log2 is positive; a negative scale is folded into q (NEG).
# ----------------------------------------------------------------------------
@triton.jit(do_not_specialize=["H", "N_q", "N_k", "MB", "G"])
def _attn_ptr(Q, K, V, O, scale_log2, H, N_q, N_k, MB, G,
              sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, sob, son, soh,
              BM: tl.constexpr, BN: tl.constexpr,
              D: tl.constexpr, DV: tl.constexpr,
              NEG: tl.constexpr, GUARD: tl.constexpr):
    pid = tl.program_id(0)
    per = G * MB
    grp = pid // per
    r = pid - grp * per
    m_blk = MB - 1 - r // G
    bh = grp * G + r % G
    b = bh // H
    h = bh - b * H
    m0 = m_blk * BM
    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    m64 = m0.to(tl.int64)
    DOFF = N_k - N_q

    rm = tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, D)
    offs_v = tl.arange(0, DV)
    row_ok = (m0 + rm) < N_q

    q_base = Q + b64 * sqb + h64 * sqh + m64 * sqn
    q = tl.load(q_base + rm[:, None] * sqn + offs_d[None, :],
                mask=row_ok[:, None], other=0.0)
    if NEG:
        q = -q

    k_ptrs = K + b64 * skb + h64 * skh + (offs_d[:, None] + offs_n[None, :] * skn)
    v_ptrs = V + b64 * svb + h64 * svh + (offs_n[:, None] * svn + offs_v[None, :])

    m_i = tl.full([BM], float("-inf"), tl.float32)
    l_i = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DV], tl.float32)

    # Tiles that every row of this block sees completely.
    full = (tl.maximum(m0 + DOFF + 1, 0) // BN) * BN
    hi = tl.minimum(N_k, m0 + BM + DOFF)

    for n in tl.range(0, full, BN):
        k = tl.load(k_ptrs)
        qk = tl.dot(q, k)
        m_new = tl.maximum(m_i, tl.max(qk, 1) * scale_log2)
        p = tl.exp2(qk * scale_log2 - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = tl.load(v_ptrs)
        acc = tl.dot(p.to(v.dtype), v, acc)
        m_i = m_new
        k_ptrs += BN * skn
        v_ptrs += BN * svn

    last = m0 + DOFF + rm
    for n in tl.range(full, hi, BN):
        cols = n + offs_n
        k = tl.load(k_ptrs, mask=(cols < N_k)[None, :], other=0.0)
        qk = tl.dot(q, k)
        qk = tl.where(last[:, None] >= cols[None, :], qk, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(qk, 1) * scale_log2)
        if GUARD:
            m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
        else:
            m_use = m_new
        p = tl.exp2(qk * scale_log2 - m_use[:, None])
        alpha = tl.exp2(m_i - m_use)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = tl.load(v_ptrs, mask=(cols < N_k)[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)
        m_i = m_new
        k_ptrs += BN * skn
        v_ptrs += BN * svn

    if GUARD:
        inv = tl.where(l_i > 0.0, 1.0 / tl.where(l_i > 0.0, l_i, 1.0), 0.0)
    else:
        inv = 1.0 / l_i
    acc = acc * inv[:, None]

    o_base = O + b64 * sob + h64 * soh + m64 * son
    tl.store(o_base + rm[:, None] * son + offs_v[None, :],
             acc.to(O.dtype.element_ty), mask=row_ok[:, None])


# ----------------------------------------------------------------------------
# Host side
# ----------------------------------------------------------------------------
_LOG2E = 1.4426950408889634
_TL_DTYPE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

# (BM, BN, num_warps, num_stages)
_TMA_CONFIGS = {
    128: [(128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3), (64, 64, 4, 3)],
    64: [(128, 128, 8, 3), (128, 64, 4, 3), (64, 128, 4, 3), (128, 64, 8, 3)],
}
_PTR_CONFIGS = {
    128: [(128, 128, 8, 2), (128, 64, 8, 3)],
    64: [(128, 64, 4, 3), (128, 128, 8, 2)],
}
_PTR_CONFIGS_ONLY = {
    128: [(128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3), (64, 64, 4, 3)],
    64: [(128, 64, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 128, 4, 3)],
}
_PTR_DEFAULT = {128: (128, 64, 8, 2), 64: (128, 64, 4, 2)}

_best = {}


def _group(bh, bytes_per_head):
    """Heads that run side by side so that their K and V stay in L2."""
    g = 1
    while (g * 2 <= bh and bh % (g * 2) == 0
           and g * 2 * bytes_per_head <= 20 * 1024 * 1024):
        g *= 2
    return g


def _plan2d(t):
    """(rows, cols, row stride, rows per batch, columns per head) or None."""
    B, N, H, D = t.shape
    sb, sn, sh, sd = t.stride()
    if sd != 1 or t.element_size() != 2:
        return None
    if t.data_ptr() % 16 != 0 or sn <= 0 or (sn * 2) % 16 != 0:
        return None
    if B == 1:
        rb = 0
    else:
        if sb < 0 or sb % sn != 0:
            return None
        rb = sb // sn
    if H == 1:
        ch = 0
    else:
        if sh < 0:
            return None
        ch = sh
    cols = (H - 1) * ch + D
    if cols > sn:
        return None
    rows = (B - 1) * rb + N
    if rows >= 2 ** 31 or cols >= 2 ** 31:
        return None
    return rows, cols, sn, rb, ch


def _run_tma(cfg, q, k, v, out, scale, plans):
    BM, BN, nw, ns = cfg
    B, NQ, H, D = q.shape
    NK = k.shape[1]
    DV = v.shape[3]
    pq, pk, pv, po = plans
    qd = TensorDescriptor(q, [pq[0], pq[1]], [pq[2], 1], [BM, D])
    kd = TensorDescriptor(k, [pk[0], pk[1]], [pk[2], 1], [BN, D])
    vd = TensorDescriptor(v, [pv[0], pv[1]], [pv[2], 1], [BN, DV])
    od = TensorDescriptor(out, [po[0], po[1]], [po[2], 1], [BM, DV])
    MB = NQ // BM
    G = _group(B * H, NK * (D + DV) * 2)
    _attn_tma[(MB * B * H,)](
        qd, kd, vd, od, scale * _LOG2E, H, MB, G,
        pq[3], pq[4], pk[3], pk[4], pv[3], pv[4], po[3], po[4], NK - NQ,
        BM=BM, BN=BN, DV=DV, OUT_DTYPE=_TL_DTYPE[out.dtype],
        num_warps=nw, num_stages=ns)


def _run_ptr(cfg, q, k, v, out, scale, plans):
    BM, BN, nw, ns = cfg
    B, NQ, H, D = q.shape
    NK = k.shape[1]
    DV = v.shape[3]
    MB = (NQ + BM - 1) // BM
    G = _group(B * H, NK * (D + DV) * q.element_size())
    neg = scale < 0
    s = abs(scale)
    if s < 1e-30:
        s = 1e-30      # keeps -inf * scale at -inf; the scores become zero
    _attn_ptr[(MB * B * H,)](
        q, k, v, out, s * _LOG2E, H, NQ, NK, MB, G,
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
        BM=BM, BN=BN, D=D, DV=DV, NEG=neg, GUARD=NQ > NK,
        num_warps=nw, num_stages=ns)


def attention(q, k, v, out, *, scale: float) -> None:
    scale = float(scale)
    B, NQ, H, D = q.shape
    NK = k.shape[1]

    # Small problems: one fixed configuration.
    if B * H * NQ * NK < (1 << 27):
        _run_ptr(_PTR_DEFAULT.get(D, (64, 64, 4, 2)), q, k, v, out, scale, None)
        return

    plans = None
    if (TensorDescriptor is not None and scale > 1e-30 and NQ <= NK
            and NQ % 128 == 0 and NK % 128 == 0
            and q.dtype in _TL_DTYPE and out.dtype in _TL_DTYPE):
        plans = (_plan2d(q), _plan2d(k), _plan2d(v), _plan2d(out))
        if any(p is None for p in plans):
            plans = None

    key = (tuple(q.shape), tuple(k.shape), q.stride(), k.stride(), v.stride(),
           out.stride(), q.dtype, q.device.index, plans is not None)
    choice = _best.get(key)
    if choice is None:
        if torch.cuda.is_current_stream_capturing():
            _run_ptr(_PTR_DEFAULT.get(D, (64, 64, 4, 2)), q, k, v, out, scale, None)
            return
        cands = []
        if plans is not None:
            cands += [(_run_tma, c) for c in _TMA_CONFIGS.get(D, [])]
            cands += [(_run_ptr, c) for c in _PTR_CONFIGS.get(D, [])]
        else:
            cands += [(_run_ptr, c) for c in _PTR_CONFIGS_ONLY.get(D, [])]
        best_t = float("inf")
        for fn, cfg in cands:
            try:
                t = triton.testing.do_bench(
                    lambda: fn(cfg, q, k, v, out, scale, plans),
                    warmup=10, rep=40, return_mode="median")
            except Exception:
                continue
            if t < best_t:
                best_t = t
                choice = (fn, cfg)
        if choice is None:
            choice = (_run_ptr, _PTR_DEFAULT.get(D, (64, 64, 4, 2)))
        _best[key] = choice

    fn, cfg = choice
    fn(cfg, q, k, v, out, scale, plans)
