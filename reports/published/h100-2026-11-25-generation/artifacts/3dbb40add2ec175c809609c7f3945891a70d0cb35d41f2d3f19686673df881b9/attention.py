import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: pointers only
    TensorDescriptor = None


@triton.jit
def _tiles(acc, l_i, m_i, q, kb, vb, lo, hi, pos, window, qk_scale, seq_k,
           stride_kn, stride_vn, row0, kcol, vcol,
           D: tl.constexpr, DV: tl.constexpr, BN: tl.constexpr,
           MASK: tl.constexpr, MASK_ROWS: tl.constexpr, FOLD: tl.constexpr,
           TMA: tl.constexpr, WIDE: tl.constexpr):
    offs_n = tl.arange(0, BN)
    if not TMA:
        rows = tl.arange(0, BN)
        if WIDE:
            rows = rows.to(tl.int64)
        k_offs = rows[:, None] * stride_kn + tl.arange(0, D)[None, :]
        v_offs = rows[:, None] * stride_vn + tl.arange(0, DV)[None, :]

    for j in range(lo, hi):
        start = j * BN

        # K tile
        if TMA:
            k = kb.load([row0 + start, kcol])
        else:
            k_ptrs = kb + start.to(tl.int64) * stride_kn + k_offs
            if MASK_ROWS:
                k = tl.load(k_ptrs, mask=(start + offs_n)[:, None] < seq_k, other=0.0)
            else:
                k = tl.load(k_ptrs)

        s = tl.dot(q, tl.trans(k))

        if not FOLD:
            s = s * qk_scale

        if MASK:
            # 0 <= p - k < window in one unsigned comparison
            dist = pos[:, None] - (start + offs_n)[None, :]
            s = tl.where(dist.to(tl.uint32) < window, s, float("-inf"))

        # online softmax, base 2
        if FOLD:
            m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
        else:
            m_new = tl.maximum(m_i, tl.max(s, 1))
        if MASK:
            m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
        else:
            m_use = m_new
        if FOLD:
            p = tl.exp2(s * qk_scale - m_use[:, None])
        else:
            p = tl.exp2(s - m_use[:, None])
        alpha = tl.exp2(m_i - m_use)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        m_i = m_new

        # V tile
        if TMA:
            v = vb.load([row0 + start, vcol])
        else:
            v_ptrs = vb + start.to(tl.int64) * stride_vn + v_offs
            if MASK_ROWS:
                v = tl.load(v_ptrs, mask=(start + offs_n)[:, None] < seq_k, other=0.0)
            else:
                v = tl.load(v_ptrs)

        acc = tl.dot(p.to(v.dtype), v, acc)

    return acc, l_i, m_i


@triton.jit(do_not_specialize=["window", "seq_q", "seq_k"])
def _swa_kernel(Q, K, V, O, qk_scale, window, seq_q, seq_k,
                stride_qb, stride_qn, stride_qh,
                stride_kb, stride_kn, stride_kh,
                stride_vb, stride_vn, stride_vh,
                stride_ob, stride_on, stride_oh,
                GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr,
                SPLIT: tl.constexpr, FOLD: tl.constexpr,
                MASK_Q: tl.constexpr, MASK_K: tl.constexpr,
                TMA: tl.constexpr, WIDE: tl.constexpr):
    if SPLIT:
        # query tiles vary fastest; long ones first
        i = tl.num_programs(0) - 1 - tl.program_id(0)
        h = tl.program_id(1)
    else:
        # narrow band: heads vary fastest
        h = tl.program_id(0)
        i = tl.program_id(1)
    b = tl.program_id(2)
    g = h // GROUP
    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    g64 = g.to(tl.int64)

    base = i * BM + seq_k - seq_q  # position of the tile's first query

    first = tl.maximum(base - window + 1, 0) // BN
    last = (tl.minimum(seq_k, tl.maximum(base + BM, 0)) + BN - 1) // BN
    diagonal = tl.maximum(base + 1, 0) // BN
    lower = (tl.maximum(base + BM - window, 0) + BN - 1) // BN

    rows = i * BM + tl.arange(0, BM)
    pos = base + tl.arange(0, BM)

    row0 = b * seq_k
    kcol = g * D
    vcol = g * DV

    if TMA:
        kb = K
        vb = V
        q = Q.load([b * seq_q + i * BM, h * D])
    else:
        kb = K + b64 * stride_kb + g64 * stride_kh
        vb = V + b64 * stride_vb + g64 * stride_vh
        q_ptrs = (Q + b64 * stride_qb + h64 * stride_qh
                  + rows.to(tl.int64)[:, None] * stride_qn + tl.arange(0, D)[None, :])
        if MASK_Q:
            q = tl.load(q_ptrs, mask=rows[:, None] < seq_q, other=0.0)
        else:
            q = tl.load(q_ptrs)

    m_i = tl.full([BM], float("-inf"), dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    if SPLIT:
        lo_end = tl.minimum(tl.maximum(lower, first), last)
        mid_end = tl.minimum(tl.maximum(diagonal, lo_end), last)
        # lower edge of the window
        acc, l_i, m_i = _tiles(acc, l_i, m_i, q, kb, vb, first, lo_end, pos, window, qk_scale,
                               seq_k, stride_kn, stride_vn, row0, kcol, vcol,
                               D, DV, BN, True, MASK_K, FOLD, TMA, WIDE)
        # whole visible tiles
        acc, l_i, m_i = _tiles(acc, l_i, m_i, q, kb, vb, lo_end, mid_end, pos, window, qk_scale,
                               seq_k, stride_kn, stride_vn, row0, kcol, vcol,
                               D, DV, BN, False, False, FOLD, TMA, WIDE)
        # diagonal and end of the keys
        acc, l_i, m_i = _tiles(acc, l_i, m_i, q, kb, vb, mid_end, last, pos, window, qk_scale,
                               seq_k, stride_kn, stride_vn, row0, kcol, vcol,
                               D, DV, BN, True, MASK_K, FOLD, TMA, WIDE)
    else:
        acc, l_i, m_i = _tiles(acc, l_i, m_i, q, kb, vb, first, last, pos, window, qk_scale,
                               seq_k, stride_kn, stride_vn, row0, kcol, vcol,
                               D, DV, BN, True, MASK_K, FOLD, TMA, WIDE)

    # normalise once; l = 0 gives 0 (acc is 0 there)
    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    acc = acc * inv[:, None]

    o_ptrs = (O + b64 * stride_ob + h64 * stride_oh
              + rows.to(tl.int64)[:, None] * stride_on + tl.arange(0, DV)[None, :])
    res = acc.to(O.dtype.element_ty)
    if MASK_Q:
        tl.store(o_ptrs, res, mask=rows[:, None] < seq_q)
    else:
        tl.store(o_ptrs, res)


_LOG2E = 1.4426950408889634
_SPLIT_WINDOW = 1024
_plans = {}


def _launch(cfg, q, k, v, out, scale, window):
    tma, bm, bn, warps, stages = cfg
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    dim_v = v.shape[3]
    n_i = (seq_q + bm - 1) // bm
    split = window >= _SPLIT_WINDOW
    grid = (n_i, heads, batch) if split else (heads, n_i, batch)
    qk_scale = float(scale) * _LOG2E
    if tma:
        qa = TensorDescriptor(q, [batch * seq_q, heads * dim], [heads * dim, 1], [bm, dim])
        ka = TensorDescriptor(k, [batch * seq_k, kv_heads * dim], [kv_heads * dim, 1], [bn, dim])
        va = TensorDescriptor(v, [batch * seq_k, kv_heads * dim_v], [kv_heads * dim_v, 1],
                              [bn, dim_v])
    else:
        qa, ka, va = q, k, v
    wide = max(k.stride(1), v.stride(1)) >= (1 << 23)
    _swa_kernel[grid](
        qa, ka, va, out, qk_scale, window, seq_q, seq_k,
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
        GROUP=heads // kv_heads, D=dim, DV=dim_v, BM=bm, BN=bn,
        SPLIT=split, FOLD=qk_scale > 1e-30,
        MASK_Q=(seq_q % bm != 0), MASK_K=(seq_k % bn != 0),
        TMA=tma, WIDE=wide,
        num_warps=warps, num_stages=stages,
    )


def _pointer_configs(dim, window):
    if dim <= 64:
        if window < _SPLIT_WINDOW:
            return [(False, 128, 64, 4, 2), (False, 64, 64, 4, 2), (False, 128, 128, 8, 2)]
        return [(False, 128, 64, 4, 3), (False, 128, 128, 8, 2)]
    if dim <= 128:
        return [(False, 128, 128, 8, 2), (False, 128, 64, 8, 3), (False, 128, 64, 4, 2)]
    return [(False, 128, 64, 8, 2), (False, 128, 32, 8, 3)]


def _descriptor_configs(dim, window):
    if dim <= 64:
        if window < _SPLIT_WINDOW:
            return [(True, 128, 64, 4, 2), (True, 64, 64, 4, 2), (True, 128, 128, 8, 2)]
        return [(True, 128, 64, 4, 3), (True, 128, 128, 8, 2)]
    if dim <= 128:
        return [(True, 128, 128, 8, 2), (True, 128, 128, 8, 3), (True, 128, 64, 4, 2)]
    return [(True, 128, 64, 8, 2), (True, 128, 32, 8, 3)]


def _choose(q, k, v, out, scale, window, aligned):
    """First call of a shape: pick a configuration."""
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    pointer = _pointer_configs(dim, window)
    work = batch * heads * seq_q * min(window, seq_k) * dim

    if work >= (1 << 32) and not torch.cuda.is_current_stream_capturing():
        cands = list(pointer)
        if (TensorDescriptor is not None and aligned and q.is_contiguous()
                and k.is_contiguous() and v.is_contiguous()):
            cands = [c for c in _descriptor_configs(dim, window)
                     if seq_q % c[1] == 0 and seq_k % c[2] == 0] + cands
        best, best_ms = None, float("inf")
        for cfg in cands:
            try:
                _launch(cfg, q, k, v, out, scale, window)
                ms = triton.testing.do_bench(
                    lambda: _launch(cfg, q, k, v, out, scale, window),
                    warmup=10, rep=50, return_mode="median")
            except Exception:
                continue
            if ms < best_ms:
                best, best_ms = cfg, ms
        if best is not None:
            return best

    error = None
    for cfg in pointer + [(False, 64, 32, 4, 2), (False, 64, 32, 4, 1)]:
        try:
            _launch(cfg, q, k, v, out, scale, window)
            return cfg
        except Exception as e:
            error = e
    raise error


def attention(q, k, v, out, *, scale: float, window: int) -> None:
    seq_k = k.shape[1]
    # no query is further than seq_k - 1 from a key it may see
    window = max(0, min(int(window), seq_k))
    aligned = (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16 == 0
    key = (tuple(q.shape), tuple(k.shape), tuple(v.shape),
           q.stride(), k.stride(), v.stride(), out.stride(),
           q.dtype, window, scale > 0, aligned, q.device.index)
    cfg = _plans.get(key)
    if cfg is None:
        cfg = _choose(q, k, v, out, scale, window, aligned)
        _plans[key] = cfg
    _launch(cfg, q, k, v, out, scale, window)
