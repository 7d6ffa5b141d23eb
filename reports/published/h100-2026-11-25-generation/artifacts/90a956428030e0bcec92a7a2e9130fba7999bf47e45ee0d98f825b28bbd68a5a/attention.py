import time

import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton
    TensorDescriptor = None


@triton.jit
def _load_tile(X, base, off, b, g, n, stride_n, seq_k,
               BN: tl.constexpr, DX: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr):
    if TMA:
        x = tl.reshape(X.load([b, g, n, 0]), [BN, DX])
    else:
        ptrs = base + n.to(tl.int64) * stride_n + off
        if MASKED:
            cols = n + tl.arange(0, BN)
            x = tl.load(ptrs, mask=(cols < seq_k)[:, None], other=0.0)
        else:
            x = tl.load(ptrs)
    return x


@triton.jit
def _softmax_step(qk, l_i, m_i, qk_scale, pos, n, W,
                  BN: tl.constexpr, MASKED: tl.constexpr):
    if MASKED:
        dist = pos[:, None] - (n + tl.arange(0, BN))[None, :]
        qk = tl.where((dist >= 0) & (dist < W), qk, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(qk, 1) * qk_scale)
    if MASKED:
        m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_use = m_new
    p = tl.exp2(qk * qk_scale - m_use[:, None])
    alpha = tl.exp2(m_i - m_use)
    l_i = l_i * alpha + tl.sum(p, 1)
    return p, alpha, l_i, m_new


@triton.jit(do_not_specialize=["seq_q", "seq_k", "W"])
def _swa_kernel(Q, K, V, O,
                sqb, sqn, sqh,
                skb, skn, skh,
                svb, svn, svh,
                sob, son, soh,
                qk_scale, seq_q, seq_k, W,
                PACK: tl.constexpr, GROUP: tl.constexpr,
                D: tl.constexpr, DV: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr,
                SIGN: tl.constexpr, SINGLE: tl.constexpr, TMA: tl.constexpr):
    BPOS: tl.constexpr = BM // PACK

    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # long rows first
    hb = tl.program_id(1)
    b = tl.program_id(2)
    g = (hb * PACK) // GROUP
    b64 = b.to(tl.int64)
    g64 = g.to(tl.int64)
    h64 = hb.to(tl.int64) * PACK

    m0 = tile * BPOS
    m64 = m0.to(tl.int64)
    r = tl.arange(0, BM)
    rp = r // PACK
    rh = r % PACK
    rows = m0 + rp
    shift = seq_k - seq_q
    pos = rows + shift
    row_ok = rows < seq_q

    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    nn = tl.arange(0, BN)

    q_base = Q + b64 * sqb + m64 * sqn + h64 * sqh
    q_off = (rp * sqn + rh * sqh)[:, None] + d[None, :]
    q = tl.load(q_base + q_off, mask=row_ok[:, None], other=0.0)
    if SIGN == -1:
        q = -q
    if SIGN == 0:
        q = tl.zeros([BM, D], dtype=Q.dtype.element_ty)

    if TMA:
        k_base = 0
        v_base = 0
        k_off = 0
        v_off = 0
    else:
        k_base = K + b64 * skb + g64 * skh
        v_base = V + b64 * svb + g64 * svh
        k_off = (nn * skn)[:, None] + d[None, :]
        v_off = (nn * svn)[:, None] + dv[None, :]

    # the band of keys of this tile, [lo, hi)
    first = m0 + shift
    last = tl.minimum(m0 + BPOS, seq_q) - 1 + shift
    lo = tl.maximum(first - W + 1, 0)
    hi = tl.minimum(last + 1, seq_k)
    total = (tl.maximum(hi - lo, 0) + BN - 1) // BN

    m_i = tl.full([BM], float("-inf"), dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    if SINGLE:
        for t in tl.range(0, total):
            n = lo + t * BN
            k = _load_tile(K, k_base, k_off, b, g, n, skn, seq_k, BN, D, True, TMA)
            qk = tl.dot(q, tl.trans(k))
            p, alpha, l_i, m_i = _softmax_step(qk, l_i, m_i, qk_scale, pos, n, W, BN, True)
            acc = acc * alpha[:, None]
            v = _load_tile(V, v_base, v_off, b, g, n, svn, seq_k, BN, DV, True, TMA)
            acc = tl.dot(p.to(v.dtype), v, acc)
    else:
        # tiles [0, n_left) cut by the window's far edge, then n_mid full ones,
        # then the ones cut by the diagonal
        far = tl.maximum(last - W + 1, lo)
        n_left = tl.minimum((far - lo + BN - 1) // BN, total)
        n_end = tl.maximum(first + 1 - lo, 0) // BN
        n_mid = tl.maximum(tl.minimum(n_end, total) - n_left, 0)

        for t in tl.range(0, total - n_mid):
            n = lo + (t + tl.where(t >= n_left, n_mid, 0)) * BN
            k = _load_tile(K, k_base, k_off, b, g, n, skn, seq_k, BN, D, True, TMA)
            qk = tl.dot(q, tl.trans(k))
            p, alpha, l_i, m_i = _softmax_step(qk, l_i, m_i, qk_scale, pos, n, W, BN, True)
            acc = acc * alpha[:, None]
            v = _load_tile(V, v_base, v_off, b, g, n, svn, seq_k, BN, DV, True, TMA)
            acc = tl.dot(p.to(v.dtype), v, acc)

        for t in tl.range(n_left, n_left + n_mid):
            n = lo + t * BN
            k = _load_tile(K, k_base, k_off, b, g, n, skn, seq_k, BN, D, False, TMA)
            qk = tl.dot(q, tl.trans(k))
            p, alpha, l_i, m_i = _softmax_step(qk, l_i, m_i, qk_scale, pos, n, W, BN, False)
            acc = acc * alpha[:, None]
            v = _load_tile(V, v_base, v_off, b, g, n, svn, seq_k, BN, DV, False, TMA)
            acc = tl.dot(p.to(v.dtype), v, acc)

    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    o = acc * inv[:, None]
    o_base = O + b64 * sob + m64 * son + h64 * soh
    o_off = (rp * son + rh * soh)[:, None] + dv[None, :]
    tl.store(o_base + o_off, o.to(O.dtype.element_ty), mask=row_ok[:, None])


# (BM, BN, warps, stages, single loop, tma)
def _configs(dim, window):
    if dim <= 64:
        if window <= 512:
            return [
                (128, 64, 4, 3, True, False),
                (128, 32, 4, 3, True, False),
                (64, 64, 4, 3, True, False),
                (128, 32, 4, 3, False, False),
                (128, 64, 4, 3, True, True),
            ]
        return [
            (128, 64, 4, 3, False, False),
            (128, 128, 8, 2, False, False),
            (128, 64, 4, 3, False, True),
        ]
    if dim <= 128:
        return [
            (128, 128, 8, 2, False, False),
            (128, 64, 8, 3, False, False),
            (128, 64, 4, 2, False, False),
            (128, 128, 8, 2, False, True),
            (128, 64, 4, 2, False, True),
        ]
    return [
        (128, 64, 8, 2, False, False),
        (128, 32, 8, 3, False, False),
        (128, 64, 8, 2, False, True),
        (128, 32, 8, 3, False, True),
    ]


_SAFE = (64, 32, 4, 2, False, False)
_BEST = {}
_DEFAULT = {}


def _tma_ok(x):
    if TensorDescriptor is None or x.data_ptr() % 16 != 0:
        return False
    e = x.element_size()
    for s in x.stride()[:-1]:
        if s <= 0 or (s * e) % 16 != 0:
            return False
    return x.stride(-1) == 1


def _descriptor(x, bn):
    bsz, n, h, dd = x.shape
    sb, sn, sh, _ = x.stride()
    return TensorDescriptor(x, [bsz, h, n, dd], [sb, sh, sn, 1], [1, 1, bn, dd])


def attention(q, k, v, out, *, scale: float, window: int) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    dim_v = v.shape[3]
    if out.numel() == 0:
        return
    group = heads // kv_heads
    w = max(0, min(int(window), seq_k))

    pack = 1
    while pack < 16 and group % (pack * 2) == 0:
        pack *= 2

    scale = float(scale)
    if scale > 0:
        sign, mag = 1, scale
    elif scale < 0:
        sign, mag = -1, -scale
    else:
        sign, mag = 0, 1.0
    qk_scale = mag * 1.4426950408889634

    def launch(cfg):
        bm, bn, warps, stages, single, tma = cfg
        if tma:
            ka, va = _descriptor(k, bn), _descriptor(v, bn)
        else:
            ka, va = k, v
        grid = (triton.cdiv(seq_q, bm // pack), heads // pack, batch)
        _swa_kernel[grid](
            q, ka, va, out,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), out.stride(2),
            qk_scale, seq_q, seq_k, w,
            PACK=pack, GROUP=group, D=dim, DV=dim_v,
            BM=bm, BN=bn, SIGN=sign, SINGLE=single, TMA=tma,
            num_warps=warps, num_stages=stages,
        )

    key = (
        tuple(q.shape), tuple(k.shape), dim_v, w, q.dtype, q.device.index,
        q.stride(), k.stride(), v.stride(), out.stride(),
        q.data_ptr() % 16, k.data_ptr() % 16, v.data_ptr() % 16, out.data_ptr() % 16,
    )
    cfg = _BEST.get(key)
    if cfg is not None:
        launch(cfg)
        return

    cfgs = _configs(max(dim, dim_v), w)
    work = batch * heads * seq_q * min(w, seq_k) * dim

    if work >= 4_000_000_000 and not torch.cuda.is_current_stream_capturing():
        tma_fine = _tma_ok(k) and _tma_ok(v)
        best, best_ms = None, float("inf")
        t0 = time.monotonic()
        for c in cfgs:
            if c[5] and not tma_fine:
                continue
            if best is not None and time.monotonic() - t0 > 80.0:
                break
            try:
                launch(c)
                launch(c)
                ms = float("inf")
                for _ in range(3):
                    e0 = torch.cuda.Event(enable_timing=True)
                    e1 = torch.cuda.Event(enable_timing=True)
                    e0.record()
                    for _ in range(3):
                        launch(c)
                    e1.record()
                    e1.synchronize()
                    ms = min(ms, e0.elapsed_time(e1))
            except Exception:
                continue
            if ms < best_ms:
                best, best_ms = c, ms
        if best is None:
            best = _SAFE
        _BEST[key] = best
        launch(best)
        return

    # small problems: the first configuration that builds
    dkey = (dim, dim_v, group, w <= 512, q.dtype)
    cfg = _DEFAULT.get(dkey)
    if cfg is not None:
        launch(cfg)
        return
    for c in [c for c in cfgs if not c[5]]:
        try:
            launch(c)
        except Exception:
            continue
        _DEFAULT[dkey] = c
        return
    launch(_SAFE)
    _DEFAULT[dkey] = _SAFE
