import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: pointer kernel only
    TensorDescriptor = None


@triton.jit
def _online(qk, acc, l_i, m_i, sl2, POS: tl.constexpr, MASKED: tl.constexpr):
    # POS: qk is unscaled and the (positive) scale is folded into the exponent.
    # otherwise qk has been scaled already.
    if POS:
        m_new = tl.maximum(m_i, tl.max(qk, 1) * sl2)
    else:
        m_new = tl.maximum(m_i, tl.max(qk, 1))
    if MASKED:
        m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_use = m_new
    if POS:
        p = tl.exp2(qk * sl2 - m_use[:, None])
    else:
        p = tl.exp2(qk - m_use[:, None])
    alpha = tl.exp2(m_i - m_use)
    l_i = l_i * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    return p, acc, l_i, m_new


@triton.jit
def _loop_ptr(acc, l_i, m_i, q1, q2, k_base, v_base, stride_kn, stride_vn,
              lo, hi, seq_k, row_lim, sl2,
              BN: tl.constexpr, POS: tl.constexpr, MASKED: tl.constexpr):
    offs_n = tl.arange(0, BN)
    offs_a = tl.arange(0, 128)
    offs_b = tl.arange(0, 64)
    koff1 = offs_n[:, None] * stride_kn + offs_a[None, :]
    koff2 = offs_n[:, None] * stride_kn + (offs_b[None, :] + 128)
    voff = offs_n[:, None] * stride_vn + offs_a[None, :]
    for n in range(lo, hi, BN):
        if MASKED:
            nmask = (n + offs_n)[:, None] < seq_k
            k1 = tl.load(k_base + koff1, mask=nmask, other=0.0)
            k2 = tl.load(k_base + koff2, mask=nmask, other=0.0)
        else:
            k1 = tl.load(k_base + koff1)
            k2 = tl.load(k_base + koff2)
        qk = tl.dot(q1, tl.trans(k1))
        qk = tl.dot(q2, tl.trans(k2), qk)
        if not POS:
            qk = qk * sl2
        if MASKED:
            qk = tl.where((n + offs_n)[None, :] <= row_lim[:, None], qk, float("-inf"))
        p, acc, l_i, m_i = _online(qk, acc, l_i, m_i, sl2, POS, MASKED)
        if MASKED:
            vmask = (n + offs_n)[:, None] < seq_k
            v = tl.load(v_base + voff, mask=vmask, other=0.0)
        else:
            v = tl.load(v_base + voff)
        acc = tl.dot(p.to(v.dtype), v, acc)
        k_base += BN * stride_kn
        v_base += BN * stride_vn
    return acc, l_i, m_i


@triton.jit
def _attn_ptr(Q, K, V, O,
              stride_qb, stride_qn, stride_qh,
              stride_kb, stride_kn, stride_kh,
              stride_vb, stride_vn, stride_vh,
              stride_ob, stride_on, stride_oh,
              H, seq_q, seq_k, sl2,
              GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              POS: tl.constexpr):
    pid_m = tl.num_programs(0) - 1 - tl.program_id(0)
    pid_bh = tl.program_id(1)
    b = (pid_bh // H).to(tl.int64)
    h = pid_bh % H
    hk = (h // GROUP).to(tl.int64)
    h = h.to(tl.int64)
    start_m = pid_m * BM
    start_m64 = start_m.to(tl.int64)
    diff = seq_k - seq_q

    rows = tl.arange(0, BM)
    offs_m = start_m + rows
    offs_a = tl.arange(0, 128)
    offs_b = tl.arange(0, 64)
    mmask = offs_m[:, None] < seq_q

    q_base = Q + b * stride_qb + h * stride_qh + start_m64 * stride_qn
    q1 = tl.load(q_base + rows[:, None] * stride_qn + offs_a[None, :], mask=mmask, other=0.0)
    q2 = tl.load(q_base + rows[:, None] * stride_qn + (offs_b[None, :] + 128), mask=mmask, other=0.0)

    k_base = K + b * stride_kb + hk * stride_kh
    v_base = V + b * stride_vb + hk * stride_vh

    n_full = (tl.maximum(start_m + diff + 1, 0) // BN) * BN
    n_end = tl.maximum(tl.minimum(start_m + BM, seq_q) + diff, 0)
    row_lim = offs_m + diff

    m_i = tl.full([BM], float("-inf"), dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, 128], dtype=tl.float32)

    acc, l_i, m_i = _loop_ptr(acc, l_i, m_i, q1, q2, k_base, v_base, stride_kn, stride_vn,
                              0, n_full, seq_k, row_lim, sl2, BN, POS, False)
    n_full64 = n_full.to(tl.int64)
    acc, l_i, m_i = _loop_ptr(acc, l_i, m_i, q1, q2,
                              k_base + n_full64 * stride_kn,
                              v_base + n_full64 * stride_vn,
                              stride_kn, stride_vn,
                              n_full, n_end, seq_k, row_lim, sl2, BN, POS, True)

    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    acc = acc * inv[:, None]
    o_base = O + b * stride_ob + h * stride_oh + start_m64 * stride_on
    tl.store(o_base + rows[:, None] * stride_on + offs_a[None, :],
             acc.to(O.dtype.element_ty), mask=mmask)


@triton.jit
def _loop_tma(acc, l_i, m_i, q1, q2, kd1, kd2, vd, kv_row, kcol, vcol,
              lo, hi, row_lim, sl2,
              BN: tl.constexpr, POS: tl.constexpr, MASKED: tl.constexpr):
    offs_n = tl.arange(0, BN)
    for n in range(lo, hi, BN):
        row = kv_row + n
        k1 = kd1.load([row, kcol])
        k2 = kd2.load([row, kcol + 128])
        qk = tl.dot(q1, tl.trans(k1))
        qk = tl.dot(q2, tl.trans(k2), qk)
        if not POS:
            qk = qk * sl2
        if MASKED:
            qk = tl.where((n + offs_n)[None, :] <= row_lim[:, None], qk, float("-inf"))
        p, acc, l_i, m_i = _online(qk, acc, l_i, m_i, sl2, POS, MASKED)
        v = vd.load([row, vcol])
        acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, l_i, m_i


# Only for contiguous tensors whose sequence lengths are multiples of the tiles.
@triton.jit
def _attn_tma(qd1, qd2, kd1, kd2, vd, O,
              stride_ob, stride_on, stride_oh,
              H, seq_q, seq_k, sl2,
              GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              POS: tl.constexpr):
    pid_m = tl.num_programs(0) - 1 - tl.program_id(0)
    pid_bh = tl.program_id(1)
    b = pid_bh // H
    h = pid_bh % H
    hk = h // GROUP
    start_m = pid_m * BM
    diff = seq_k - seq_q

    q_row = b * seq_q + start_m
    q1 = qd1.load([q_row, h * 192])
    q2 = qd2.load([q_row, h * 192 + 128])

    rows = tl.arange(0, BM)
    row_lim = start_m + rows + diff
    kv_row = b * seq_k
    kcol = hk * 192
    vcol = hk * 128

    n_full = (tl.maximum(start_m + diff + 1, 0) // BN) * BN
    n_end = tl.maximum(start_m + BM + diff, 0)

    m_i = tl.full([BM], float("-inf"), dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, 128], dtype=tl.float32)

    acc, l_i, m_i = _loop_tma(acc, l_i, m_i, q1, q2, kd1, kd2, vd, kv_row, kcol, vcol,
                              0, n_full, row_lim, sl2, BN, POS, False)
    acc, l_i, m_i = _loop_tma(acc, l_i, m_i, q1, q2, kd1, kd2, vd, kv_row, kcol, vcol,
                              n_full, n_end, row_lim, sl2, BN, POS, True)

    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    acc = acc * inv[:, None]
    offs_a = tl.arange(0, 128)
    o_base = (O + b.to(tl.int64) * stride_ob + h.to(tl.int64) * stride_oh
              + start_m.to(tl.int64) * stride_on)
    tl.store(o_base + rows[:, None] * stride_on + offs_a[None, :],
             acc.to(O.dtype.element_ty))


_BM = 128
# (uses TMA, BLOCK_N, num_stages)
_DEFAULT = (False, 64, 2)
_CANDIDATES = [(True, 128, 2), (True, 64, 3), (False, 128, 2), (False, 64, 3)]
_choice = {}


def _run(cfg, q, k, v, out, sl2):
    tma, bn, stages = cfg
    B, SQ, H, D = q.shape
    SK, HK = k.shape[1], k.shape[2]
    DV = v.shape[3]
    grid = ((SQ + _BM - 1) // _BM, B * H)
    if tma:
        qs, ks, vs = H * D, HK * D, HK * DV
        qd1 = TensorDescriptor(q, [B * SQ, qs], [qs, 1], [_BM, 128])
        qd2 = TensorDescriptor(q, [B * SQ, qs], [qs, 1], [_BM, 64])
        kd1 = TensorDescriptor(k, [B * SK, ks], [ks, 1], [bn, 128])
        kd2 = TensorDescriptor(k, [B * SK, ks], [ks, 1], [bn, 64])
        vd = TensorDescriptor(v, [B * SK, vs], [vs, 1], [bn, 128])
        _attn_tma[grid](qd1, qd2, kd1, kd2, vd, out,
                        out.stride(0), out.stride(1), out.stride(2),
                        H, SQ, SK, sl2,
                        GROUP=H // HK, BM=_BM, BN=bn, POS=sl2 > 0.0,
                        num_warps=8, num_stages=stages)
    else:
        _attn_ptr[grid](q, k, v, out,
                        q.stride(0), q.stride(1), q.stride(2),
                        k.stride(0), k.stride(1), k.stride(2),
                        v.stride(0), v.stride(1), v.stride(2),
                        out.stride(0), out.stride(1), out.stride(2),
                        H, SQ, SK, sl2,
                        GROUP=H // HK, BM=_BM, BN=bn, POS=sl2 > 0.0,
                        num_warps=8, num_stages=stages)


def _pick(q, k, v, out, sl2, tma_ok):
    usable = []
    for cfg in _CANDIDATES:
        if cfg[0] and not tma_ok:
            continue
        try:
            _run(cfg, q, k, v, out, sl2)
            usable.append(cfg)
        except Exception:
            continue
    if not usable:
        return _DEFAULT
    best = {c: float("inf") for c in usable}
    try:
        if not torch.cuda.is_current_stream_capturing():
            for _ in range(4):
                for c in usable:
                    _run(c, q, k, v, out, sl2)
                    s = torch.cuda.Event(enable_timing=True)
                    e = torch.cuda.Event(enable_timing=True)
                    s.record()
                    _run(c, q, k, v, out, sl2)
                    _run(c, q, k, v, out, sl2)
                    e.record()
                    e.synchronize()
                    best[c] = min(best[c], s.elapsed_time(e))
    except Exception:
        return usable[0]
    return min(usable, key=lambda c: best[c])


def attention(q, k, v, out, *, scale: float) -> None:
    B, SQ, H, D = q.shape
    SK, HK = k.shape[1], k.shape[2]
    sl2 = float(scale) * 1.4426950408889634
    cfg = _DEFAULT
    if B * H * SQ * SK >= (1 << 28):
        aligned = (q.data_ptr() % 16 == 0 and k.data_ptr() % 16 == 0
                   and v.data_ptr() % 16 == 0)
        tma_ok = (TensorDescriptor is not None and aligned
                  and q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
                  and SQ % 128 == 0 and SK % 128 == 0)
        key = (B, H, HK, SQ, SK, q.dtype, tma_ok, aligned, sl2 > 0.0,
               q.stride(), k.stride(), v.stride(), out.stride())
        cfg = _choice.get(key)
        if cfg is None:
            cfg = _pick(q, k, v, out, sl2, tma_ok)
            _choice[key] = cfg
    _run(cfg, q, k, v, out, sl2)
