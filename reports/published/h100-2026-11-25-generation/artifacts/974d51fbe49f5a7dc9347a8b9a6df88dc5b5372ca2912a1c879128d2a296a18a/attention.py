import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: plain loads only
    TensorDescriptor = None


@triton.jit
def _attend(acc, l_i, m_i, q,
            k_src, v_src, row0, k_col, v_col,
            stride_ks, stride_vs,
            lo, hi, q_pos, seq_k, qk_scale,
            BLOCK_N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
            MASKED: tl.constexpr, USE_TMA: tl.constexpr, POS: tl.constexpr):
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, D)
    offs_dv = tl.arange(0, DV)
    for j in tl.range(lo, hi):
        start = j * BLOCK_N

        # Copy K, GEMM Q K^T
        if USE_TMA:
            k = k_src.load([row0 + start, k_col])
        else:
            k_ptrs = (k_src + start.to(tl.int64) * stride_ks
                      + (offs_n[:, None] * stride_ks + offs_d[None, :]))
            if MASKED:
                k = tl.load(k_ptrs, mask=(start + offs_n)[:, None] < seq_k, other=0.0)
            else:
                k = tl.load(k_ptrs)
        s = tl.dot(q, tl.trans(k))

        # scale, mask, online softmax in base 2
        if not POS:
            s = s * qk_scale
        if MASKED:
            s = tl.where((start + offs_n)[None, :] <= q_pos[:, None], s, float("-inf"))
        if POS:
            m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
        else:
            m_new = tl.maximum(m_i, tl.max(s, 1))
        if MASKED:
            m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
        else:
            m_use = m_new
        if POS:
            p = tl.exp2(s * qk_scale - m_use[:, None])
        else:
            p = tl.exp2(s - m_use[:, None])
        alpha = tl.exp2(m_i - m_use)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        m_i = m_new

        # Copy V, GEMM P V
        if USE_TMA:
            v = v_src.load([row0 + start, v_col])
        else:
            v_ptrs = (v_src + start.to(tl.int64) * stride_vs
                      + (offs_n[:, None] * stride_vs + offs_dv[None, :]))
            if MASKED:
                v = tl.load(v_ptrs, mask=(start + offs_n)[:, None] < seq_k, other=0.0)
            else:
                v = tl.load(v_ptrs)
        acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, l_i, m_i


@triton.jit(do_not_specialize=["seq_q", "seq_k", "H", "BH", "GH"])
def _causal_attention(Q, K, V, Out, qk_scale,
                      stride_qb, stride_qs, stride_qh,
                      stride_kb, stride_ks, stride_kh,
                      stride_vb, stride_vs, stride_vh,
                      stride_ob, stride_os, stride_oh,
                      H, BH, GH, seq_q, seq_k,
                      GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                      USE_TMA: tl.constexpr, POS: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    # Grid: every (batch, head, query tile) once.  Groups of GH heads share the
    # L2; inside a group the longest query tiles start first.
    pid = tl.program_id(0)
    num_m = tl.cdiv(seq_q, BLOCK_M)
    per = GH * num_m
    sec = pid // per
    r = pid - sec * per
    first = sec * GH
    g = tl.minimum(GH, BH - first)
    i = num_m - 1 - r // g
    bh = first + r % g
    b = bh // H
    h = bh % H
    hk = h // GROUP

    diff = seq_k - seq_q
    start_m = i * BLOCK_M
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, D)
    offs_dv = tl.arange(0, DV)
    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    hk64 = hk.to(tl.int64)
    m64 = start_m.to(tl.int64)
    row_ok = (start_m + offs_m) < seq_q
    q_pos = start_m + offs_m + diff  # last key that each row sees

    q_base = Q + b64 * stride_qb + h64 * stride_qh + m64 * stride_qs
    q = tl.load(q_base + (offs_m[:, None] * stride_qs + offs_d[None, :]),
                mask=row_ok[:, None], other=0.0)

    if USE_TMA:
        k_src = K
        v_src = V
        row0 = b * seq_k
        k_col = hk * stride_kh
        v_col = hk * stride_vh
    else:
        k_src = K + b64 * stride_kb + hk64 * stride_kh
        v_src = V + b64 * stride_vb + hk64 * stride_vh
        row0 = 0
        k_col = 0
        v_col = 0

    m_i = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, DV], dtype=tl.float32)

    mid = tl.maximum(start_m + diff + 1, 0) // BLOCK_N
    end = tl.maximum(tl.minimum(start_m + BLOCK_M + diff, seq_k), 0)
    hi = (end + BLOCK_N - 1) // BLOCK_N

    # key tiles that every query row sees in full
    acc, l_i, m_i = _attend(acc, l_i, m_i, q, k_src, v_src, row0, k_col, v_col,
                            stride_ks, stride_vs, 0, mid, q_pos, seq_k, qk_scale,
                            BLOCK_N, D, DV, False, USE_TMA, POS)
    # key tiles on the diagonal
    acc, l_i, m_i = _attend(acc, l_i, m_i, q, k_src, v_src, row0, k_col, v_col,
                            stride_ks, stride_vs, mid, hi, q_pos, seq_k, qk_scale,
                            BLOCK_N, D, DV, True, USE_TMA, POS)

    # a row without a visible key has l = 0 and acc = 0: it comes out as 0
    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    acc = acc * inv[:, None]
    o_base = Out + b64 * stride_ob + h64 * stride_oh + m64 * stride_os
    tl.store(o_base + (offs_m[:, None] * stride_os + offs_dv[None, :]),
             acc.to(Out.dtype.element_ty), mask=row_ok[:, None])


def _set_blocks(nargs):
    if TensorDescriptor is None or not isinstance(nargs["K"], TensorDescriptor):
        return
    nargs["K"].block_shape = [nargs["BLOCK_N"], nargs["D"]]
    nargs["V"].block_shape = [nargs["BLOCK_N"], nargs["DV"]]


# (BLOCK_M, BLOCK_N, num_warps, num_stages); the first one is the default
_CONFIGS = {
    64: [(128, 64, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 4, 4)],
    128: [(128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 128, 8, 3)],
}
_TUNERS = {}
_TUNED = set()
_BROKEN = set()


def _configs(d):
    return _CONFIGS[64] if d <= 64 else _CONFIGS[128]


def _tuner(d):
    key = 64 if d <= 64 else 128
    t = _TUNERS.get(key)
    if t is None:
        cfgs = [triton.Config({"BLOCK_M": bm, "BLOCK_N": bn}, num_warps=w,
                              num_stages=s, pre_hook=_set_blocks)
                for bm, bn, w, s in _CONFIGS[key]]
        t = triton.autotune(configs=cfgs,
                            key=["seq_q", "seq_k", "BH", "USE_TMA"])(_causal_attention)
        _TUNERS[key] = t
    return t


def _tma_ok(t):
    if TensorDescriptor is None or "tma" in _BROKEN:
        return False
    B, S, H, D = t.shape
    sb, ss, sh, sd = t.stride()
    if sd != 1 or t.data_ptr() % 16 != 0 or (ss * t.element_size()) % 16 != 0:
        return False
    if sh < 0 or ss < (H - 1) * sh + D or S < 128:
        return False
    # one matrix of all batches' rows; tiles must not straddle two batches
    return B == 1 or (sb == S * ss and S % 128 == 0)


def _descriptor(t, block_n):
    B, S, H, D = t.shape
    _, ss, sh, _ = t.stride()
    return TensorDescriptor(t, [B * S, (H - 1) * sh + D], [ss, 1], [block_n, D])


def _launch(q, k, v, out, scale, use_tma):
    B, seq_q, H, D = q.shape
    seq_k, HK = k.shape[1], k.shape[2]
    DV = v.shape[3]
    BH = B * H
    group = H // HK
    qk_scale = float(scale) * 1.4426950408889634
    pos = qk_scale > 1e-30

    kv_bytes = seq_k * (D + DV) * q.element_size()
    gh = max(1, min(BH, (16 * 1024 * 1024) // kv_bytes))

    bm, bn, warps, stages = _configs(max(D, DV))[0]
    if use_tma:
        k_arg, v_arg = _descriptor(k, bn), _descriptor(v, bn)
    else:
        k_arg, v_arg = k, v

    args = (q, k_arg, v_arg, out, qk_scale,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), out.stride(2),
            H, BH, gh, seq_q, seq_k)
    consts = dict(GROUP=group, D=D, DV=DV, USE_TMA=use_tma, POS=pos)

    big = BH * seq_q * seq_k >= (1 << 28) and min(seq_q, seq_k) >= 1024
    if big and "tune" not in _BROKEN:
        key = (max(D, DV), seq_q, seq_k, BH, use_tma, q.dtype)
        if key in _TUNED or not torch.cuda.is_current_stream_capturing():
            try:
                _tuner(max(D, DV))[
                    lambda meta: (triton.cdiv(seq_q, meta["BLOCK_M"]) * BH,)
                ](*args, **consts)
                _TUNED.add(key)
                return
            except Exception:
                if key in _TUNED:
                    raise
                _BROKEN.add("tune")
                if use_tma:
                    k_arg.block_shape = [bn, D]
                    v_arg.block_shape = [bn, DV]

    _causal_attention[(triton.cdiv(seq_q, bm) * BH,)](
        *args, **consts, BLOCK_M=bm, BLOCK_N=bn,
        num_warps=warps, num_stages=stages)


def attention(q, k, v, out, *, scale: float) -> None:
    if _tma_ok(k) and _tma_ok(v):
        try:
            _launch(q, k, v, out, scale, True)
            return
        except Exception:
            # this Triton cannot build the descriptor version: plain loads
            _BROKEN.add("tma")
            _BROKEN.discard("tune")
    _launch(q, k, v, out, scale, False)
