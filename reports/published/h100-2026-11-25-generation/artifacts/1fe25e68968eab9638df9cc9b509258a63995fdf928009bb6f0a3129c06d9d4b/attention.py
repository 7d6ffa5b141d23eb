import torch
import triton
import triton.language as tl

try:  # host-side tensor descriptors (newer Triton); otherwise plain pointers
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:
    TensorDescriptor = None

_LOG2E = 1.4426950408889634


@triton.jit
def _inner(acc, l_i, m_i, q, q_pos,
           k_desc, v_desc, k_base, v_base, kv_row_k, k_col, v_col,
           stride_kn, stride_vn, seq_k, window, qk_scale, lo, hi,
           BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
           MASKED: tl.constexpr, CHECK_K: tl.constexpr, USE_TMA: tl.constexpr):
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, D)
    offs_dv = tl.arange(0, DV)
    k_off = offs_n[:, None] * stride_kn + offs_d[None, :]
    v_off = offs_n[:, None] * stride_vn + offs_dv[None, :]
    for j in range(lo, hi):
        start = j * BN
        # Copy K
        if USE_TMA:
            k = k_desc.load([kv_row_k + start, k_col])
        else:
            k_ptrs = k_base + start.to(tl.int64) * stride_kn + k_off
            if CHECK_K:
                k = tl.load(k_ptrs, mask=offs_n[:, None] < (seq_k - start), other=0.0)
            else:
                k = tl.load(k_ptrs)
        # GEMM Q K^T
        qk = tl.dot(q, tl.trans(k))
        if MASKED:
            # 0 <= p - j < window; p <= seq_k - 1 for every stored row, so this
            # also excludes the columns past seq_k
            diff = (q_pos - start)[:, None] - offs_n[None, :]
            qk = tl.where((diff >= 0) & (diff < window), qk, float("-inf"))
        # online softmax, base 2 (qk_scale > 0)
        m_new = tl.maximum(m_i, tl.max(qk, 1) * qk_scale)
        p = tl.exp2(qk * qk_scale - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        m_i = m_new
        # Copy V
        if USE_TMA:
            v = v_desc.load([kv_row_k + start, v_col])
        else:
            v_ptrs = v_base + start.to(tl.int64) * stride_vn + v_off
            if CHECK_K:
                v = tl.load(v_ptrs, mask=offs_n[:, None] < (seq_k - start), other=0.0)
            else:
                v = tl.load(v_ptrs)
        # GEMM P V
        acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, l_i, m_i


@triton.jit(do_not_specialize=["seq_q", "seq_k", "window"])
def _swa_kernel(q_ptr, k_ptr, v_ptr, o_ptr, k_desc, v_desc, qk_scale,
                stride_qb, stride_qm, stride_qh,
                stride_kb, stride_kn, stride_kh,
                stride_vb, stride_vn, stride_vh,
                stride_ob, stride_om, stride_oh,
                seq_q, seq_k, window,
                GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr,
                SPLIT: tl.constexpr, CHECK_K: tl.constexpr,
                NEG: tl.constexpr, USE_TMA: tl.constexpr):
    # long blocks first
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    h = tl.program_id(1)
    b = tl.program_id(2)
    g = h // GROUP

    shift = seq_k - seq_q
    q_lo = i * BM + shift            # position of the block's first row
    q_hi = q_lo + BM - 1             # position of the block's last row

    # key tiles that meet the band: [first, last)
    first = tl.maximum(q_lo - window + 1, 0) // BN
    last = tl.minimum((seq_k + BN - 1) // BN,
                      (tl.maximum(q_hi + 1, 0) + BN - 1) // BN)

    h64 = h.to(tl.int64)
    b64 = b.to(tl.int64)
    g64 = g.to(tl.int64)
    row0 = (i * BM).to(tl.int64)

    q_base = q_ptr + b64 * stride_qb + h64 * stride_qh + row0 * stride_qm
    k_base = k_ptr + b64 * stride_kb + g64 * stride_kh
    v_base = v_ptr + b64 * stride_vb + g64 * stride_vh
    o_base = o_ptr + b64 * stride_ob + h64 * stride_oh + row0 * stride_om

    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, D)
    offs_dv = tl.arange(0, DV)
    row_ok = offs_m[:, None] < (seq_q - i * BM)

    q = tl.load(q_base + offs_m[:, None] * stride_qm + offs_d[None, :],
                mask=row_ok, other=0.0)
    if NEG:
        q = -q

    q_pos = q_lo + offs_m

    kv_row_k = b * seq_k
    k_col = g * stride_kh
    v_col = g * stride_vh

    # a finite start instead of -inf: exp2(-inf - m) is 0 and never NaN
    m_i = tl.full([BM], -1.0e30, dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    if SPLIT:
        full_lo = (tl.maximum(q_hi - window + 1, 0) + BN - 1) // BN
        full_hi = tl.minimum(tl.maximum(q_lo + 1, 0), seq_k) // BN
        mid_a = tl.minimum(tl.maximum(full_lo, first), last)
        mid_b = tl.maximum(tl.minimum(full_hi, last), mid_a)
        # the window's edge
        acc, l_i, m_i = _inner(acc, l_i, m_i, q, q_pos,
                               k_desc, v_desc, k_base, v_base, kv_row_k, k_col, v_col,
                               stride_kn, stride_vn, seq_k, window, qk_scale,
                               first, mid_a,
                               BN, D, DV, True, CHECK_K, USE_TMA)
        # whole tiles
        acc, l_i, m_i = _inner(acc, l_i, m_i, q, q_pos,
                               k_desc, v_desc, k_base, v_base, kv_row_k, k_col, v_col,
                               stride_kn, stride_vn, seq_k, window, qk_scale,
                               mid_a, mid_b,
                               BN, D, DV, False, False, USE_TMA)
        # the diagonal and the end of the keys
        acc, l_i, m_i = _inner(acc, l_i, m_i, q, q_pos,
                               k_desc, v_desc, k_base, v_base, kv_row_k, k_col, v_col,
                               stride_kn, stride_vn, seq_k, window, qk_scale,
                               mid_b, last,
                               BN, D, DV, True, CHECK_K, USE_TMA)
    else:
        acc, l_i, m_i = _inner(acc, l_i, m_i, q, q_pos,
                               k_desc, v_desc, k_base, v_base, kv_row_k, k_col, v_col,
                               stride_kn, stride_vn, seq_k, window, qk_scale,
                               first, last,
                               BN, D, DV, True, CHECK_K, USE_TMA)

    # l = 0 (no visible key): acc is 0 there, so the row becomes 0
    l_safe = tl.where(l_i > 0.0, l_i, 1.0)
    o = acc / l_safe[:, None]
    tl.store(o_base + offs_m[:, None] * stride_om + offs_dv[None, :],
             o.to(o_ptr.dtype.element_ty), mask=row_ok)


def _tma_view(t, bn):
    """(columns) of the 2D view (batch * seq, columns) or None if it does not exist."""
    batch, seq, heads, dim = t.shape
    sb, sn, sh, sd = t.stride()
    es = t.element_size()
    if sd != 1 or seq % bn != 0:
        return None
    if batch > 1 and sb != seq * sn:
        return None
    if t.data_ptr() % 16 != 0 or (sn * es) % 16 != 0 or (sh * es) % 16 != 0:
        return None
    if sh < 0 or sn <= 0:
        return None
    cols = (heads - 1) * sh + dim
    if cols > sn or batch * seq >= 2 ** 31:
        return None
    return cols


def _tma_ok(k, v, bn):
    if TensorDescriptor is None:
        return False
    return _tma_view(k, bn) is not None and _tma_view(v, bn) is not None


def _launch(cfg, q, k, v, out, qk_scale, neg, window):
    bm, bn, warps, stages, tma = cfg
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads, dim_v = v.shape[1], v.shape[2], v.shape[3]
    use_tma = bool(tma)
    if use_tma:
        rows = batch * seq_k
        k_desc = TensorDescriptor(k, [rows, _tma_view(k, bn)], [k.stride(1), 1], [bn, dim])
        v_desc = TensorDescriptor(v, [rows, _tma_view(v, bn)], [v.stride(1), 1], [bn, dim_v])
    else:
        k_desc, v_desc = k, v
    grid = (triton.cdiv(seq_q, bm), heads, batch)
    _swa_kernel[grid](
        q, k, v, out, k_desc, v_desc, qk_scale,
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
        seq_q, seq_k, window,
        GROUP=heads // kv_heads, D=dim, DV=dim_v,
        BM=bm, BN=bn,
        SPLIT=bool(window >= bm + 2 * bn),
        CHECK_K=bool(seq_k % bn != 0),
        NEG=neg, USE_TMA=use_tma,
        num_warps=warps, num_stages=stages)


def _default(dim, window):
    if dim <= 64:
        return (64, 64, 4, 2, False) if window <= 256 else (128, 64, 4, 3, False)
    if dim <= 128:
        return (128, 64, 8, 2, False)
    return (128, 32, 8, 2, False)


def _candidates(dim, window):
    # (BM, BN, warps, stages, tensor descriptors)
    if dim <= 64:
        if window <= 256:
            return [(64, 64, 4, 2, False), (64, 64, 4, 3, False), (64, 64, 4, 2, True),
                    (128, 64, 4, 2, False), (128, 128, 8, 2, False)]
        return [(128, 64, 4, 3, False), (128, 128, 8, 2, False),
                (128, 128, 8, 2, True), (128, 64, 4, 3, True)]
    if dim <= 128:
        return [(128, 128, 8, 2, True), (128, 64, 8, 3, True), (128, 64, 4, 2, True),
                (128, 128, 8, 2, False), (128, 64, 8, 3, False)]
    return [(128, 64, 8, 2, True), (128, 32, 8, 3, True),
            (128, 64, 8, 2, False), (128, 32, 8, 3, False)]


_CHOSEN = {}


def _choose(q, k, v, out, qk_scale, neg, window):
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    default = _default(max(dim, v.shape[3]), window)
    work = batch * heads * seq_q * min(window, seq_k) * dim
    if work < 2 ** 31:
        return default
    key = (tuple(q.shape), tuple(k.shape), tuple(v.shape),
           tuple(q.stride()), tuple(k.stride()), tuple(v.stride()), tuple(out.stride()),
           k.data_ptr() % 16, v.data_ptr() % 16,
           window, q.dtype, q.device.index)
    cfg = _CHOSEN.get(key)
    if cfg is not None:
        return cfg
    if torch.cuda.is_current_stream_capturing():
        return default
    tried = []
    best, best_t = default, float("inf")
    for c in _candidates(max(dim, v.shape[3]), window):
        if c[4] and not _tma_ok(k, v, c[1]):
            c = c[:4] + (False,)
        if c in tried:
            continue
        tried.append(c)
        try:
            t = triton.testing.do_bench(
                lambda: _launch(c, q, k, v, out, qk_scale, neg, window),
                warmup=20, rep=60)
        except Exception:
            continue
        if t < best_t:
            best, best_t = c, t
    _CHOSEN[key] = best
    return best


def attention(q, k, v, out, *, scale: float, window: int) -> None:
    seq_k = k.shape[1]
    scale = float(scale)
    neg = scale < 0.0
    qk_scale = abs(scale) * _LOG2E
    if qk_scale == 0.0:
        qk_scale = 1.0e-30      # keeps -inf * scale at -inf; the scores vanish anyway
    # a window longer than the keys sees all of them
    window = max(0, min(int(window), seq_k))
    cfg = _choose(q, k, v, out, qk_scale, neg, window)
    _launch(cfg, q, k, v, out, qk_scale, neg, window)
