import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: pointer loads only
    TensorDescriptor = None


@triton.jit
def _key_loop(acc, l_i, m_i, q0, q1,
              K0, K1, V, krow, kcol, vcol, sks, svs,
              lo, hi, rows, SK, c,
              MASKED: tl.constexpr, GENERIC: tl.constexpr, TMA: tl.constexpr,
              BN: tl.constexpr):
    offs_n = tl.arange(0, BN)
    d0 = tl.arange(0, 128)
    d1 = tl.arange(0, 64)
    for n in range(lo, hi, BN):
        # ---- scores -------------------------------------------------------
        if TMA:
            k0 = K0.load([krow + n, kcol])
            k1 = K1.load([krow + n, kcol + 128])
        else:
            kb = K0 + tl.cast(n, tl.int64) * sks
            kp0 = kb + (offs_n[:, None] * sks + d0[None, :])
            kp1 = kb + (offs_n[:, None] * sks + (d1[None, :] + 128))
            if MASKED:
                kmask = (n + offs_n)[:, None] < SK
                k0 = tl.load(kp0, mask=kmask, other=0.0)
                k1 = tl.load(kp1, mask=kmask, other=0.0)
            else:
                k0 = tl.load(kp0)
                k1 = tl.load(kp1)
        qk = tl.dot(q0, tl.trans(k0))
        qk = tl.dot(q1, tl.trans(k1), qk)

        if GENERIC:
            qk = qk * c
        if MASKED:
            # rows holds i + D; it also bounds the key by SK for real rows
            qk = tl.where(rows[:, None] >= (n + offs_n)[None, :], qk, float("-inf"))

        # ---- online softmax (base 2) --------------------------------------
        mx = tl.max(qk, 1)
        if GENERIC:
            m_new = tl.maximum(m_i, mx)
            p = tl.math.exp2(qk - m_new[:, None])
        else:
            m_new = tl.maximum(m_i, mx * c)
            p = tl.math.exp2(qk * c - m_new[:, None])
        alpha = tl.math.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]

        # ---- values -------------------------------------------------------
        if TMA:
            v = V.load([krow + n, vcol])
        else:
            vb = V + tl.cast(n, tl.int64) * svs
            vp = vb + (offs_n[:, None] * svs + d0[None, :])
            if MASKED:
                v = tl.load(vp, mask=(n + offs_n)[:, None] < SK, other=0.0)
            else:
                v = tl.load(vp)
        acc = tl.dot(p.to(v.dtype), v, acc)
        m_i = m_new
    return acc, l_i, m_i


@triton.jit(do_not_specialize=["H", "BH", "SQ", "SK", "G", "NM"])
def _attn_kernel(Q, K0, K1, V, O,
                 sqb, sqs, sqh,
                 skb, sks, skh,
                 svb, svs, svh,
                 sob, sos, soh,
                 H, BH, SQ, SK, G, NM, c,
                 GENERIC: tl.constexpr, TMA: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr):
    # groups of G heads share L2; inside a group the heaviest tiles go first
    pid = tl.program_id(0)
    per_group = G * NM
    gid = pid // per_group
    first = gid * G
    gsz = tl.minimum(BH - first, G)
    r = pid - gid * per_group
    bh = first + r % gsz
    mblk = NM - 1 - r // gsz
    b = bh // H
    h = bh - b * H
    b64 = tl.cast(b, tl.int64)
    h64 = tl.cast(h, tl.int64)

    m0 = mblk * BM
    D = SK - SQ
    om = tl.arange(0, BM)
    d0 = tl.arange(0, 128)
    d1 = tl.arange(0, 64)
    row_ok = (m0 + om)[:, None] < SQ

    qb = Q + b64 * sqb + h64 * sqh + tl.cast(m0, tl.int64) * sqs
    q0 = tl.load(qb + (om[:, None] * sqs + d0[None, :]), mask=row_ok, other=0.0)
    q1 = tl.load(qb + (om[:, None] * sqs + (d1[None, :] + 128)), mask=row_ok, other=0.0)

    acc = tl.zeros([BM, 128], dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    m_i = tl.full([BM], -1.0e30, dtype=tl.float32)

    # keys [0, lo) are seen by every row of the tile; [lo, hi) need the mask
    lo = (tl.maximum(m0 + D + 1, 0) // BN) * BN
    hi = tl.minimum(m0 + BM + D, SK)
    rows = m0 + om + D

    if TMA:
        krow = b * SK
        kcol = h * 192
        vcol = h * 128
        acc, l_i, m_i = _key_loop(acc, l_i, m_i, q0, q1, K0, K1, V,
                                  krow, kcol, vcol, sks, svs,
                                  0, lo, rows, SK, c,
                                  False, GENERIC, True, BN)
        acc, l_i, m_i = _key_loop(acc, l_i, m_i, q0, q1, K0, K1, V,
                                  krow, kcol, vcol, sks, svs,
                                  lo, hi, rows, SK, c,
                                  True, GENERIC, True, BN)
    else:
        kb = K0 + b64 * skb + h64 * skh
        vb = V + b64 * svb + h64 * svh
        acc, l_i, m_i = _key_loop(acc, l_i, m_i, q0, q1, kb, kb, vb,
                                  0, 0, 0, sks, svs,
                                  0, lo, rows, SK, c,
                                  False, GENERIC, False, BN)
        acc, l_i, m_i = _key_loop(acc, l_i, m_i, q0, q1, kb, kb, vb,
                                  0, 0, 0, sks, svs,
                                  lo, hi, rows, SK, c,
                                  True, GENERIC, False, BN)

    # a row without keys has l = 0 and acc = 0
    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    o = acc * inv[:, None]
    ob = O + b64 * sob + h64 * soh + tl.cast(m0, tl.int64) * sos
    tl.store(ob + (om[:, None] * sos + d0[None, :]), o.to(O.dtype.element_ty), mask=row_ok)


# (use TMA, BLOCK_M, BLOCK_N, warps, stages)
_TMA_CONFIGS = [
    (True, 128, 128, 8, 2),
    (True, 128, 64, 8, 3),
    (True, 64, 64, 4, 2),
]
_PTR_CONFIGS = [
    (False, 128, 64, 8, 3),
    (False, 128, 128, 8, 2),
]
_PTR_LAST_RESORT = [
    (False, 128, 64, 8, 2),
    (False, 64, 64, 4, 2),
    (False, 64, 32, 4, 1),
]

_LOG2E = 1.4426950408889634
_CHOICE = {}


def _tma_ok(k, v):
    if TensorDescriptor is None:
        return False
    batch, seq_k = k.shape[0], k.shape[1]
    if seq_k < 128 or (batch > 1 and seq_k % 128 != 0):
        return False
    for t, dim in ((k, 192), (v, 128)):
        if t.element_size() != 2 or t.data_ptr() % 16 != 0:
            return False
        nb, ns, nh, _ = t.shape
        sb, ss, sh, sd = t.stride()
        if sd != 1 or ss % 8 != 0 or ss < nh * dim:
            return False
        if nh > 1 and sh != dim:
            return False
        if nb > 1 and sb != ns * ss:
            return False
    return True


def _launch(cfg, q, k, v, out, scale):
    tma, bm, bn, warps, stages = cfg
    batch, seq_q, heads, _ = q.shape
    seq_k = k.shape[1]
    nm = (seq_q + bm - 1) // bm
    bh = batch * heads

    limit = max(1, (24 * 1024 * 1024) // (seq_k * 320 * 2))
    group = 1
    while group * 2 <= limit and group < bh:
        group *= 2
    group = min(group, bh)

    if tma:
        kshape = [batch * seq_k, heads * 192]
        vshape = [batch * seq_k, heads * 128]
        kstr = [k.stride(1), 1]
        vstr = [v.stride(1), 1]
        a0 = TensorDescriptor(k, kshape, kstr, [bn, 128])
        a1 = TensorDescriptor(k, kshape, kstr, [bn, 64])
        av = TensorDescriptor(v, vshape, vstr, [bn, 128])
    else:
        a0, a1, av = k, k, v

    _attn_kernel[(nm * bh,)](
        q, a0, a1, av, out,
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
        heads, bh, seq_q, seq_k, group, nm, scale * _LOG2E,
        GENERIC=not (scale > 0.0), TMA=tma, BM=bm, BN=bn,
        num_warps=warps, num_stages=stages,
    )


def _first_working(configs, q, k, v, out, scale):
    error = None
    for cfg in configs:
        try:
            _launch(cfg, q, k, v, out, scale)
            return cfg
        except Exception as e:  # does not compile or does not fit here
            error = e
    raise error


def _choose(tma, q, k, v, out, scale):
    configs = (_TMA_CONFIGS if tma else []) + _PTR_CONFIGS
    work = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    if work >= (1 << 28) and not torch.cuda.is_current_stream_capturing():
        best, best_t = None, None
        for cfg in configs:
            try:
                _launch(cfg, q, k, v, out, scale)
                t = triton.testing.do_bench(
                    lambda: _launch(cfg, q, k, v, out, scale), warmup=15, rep=60)
            except Exception:
                continue
            if best is None or t < best_t * 0.99:
                best, best_t = cfg, t
        if best is not None:
            return best
    return _first_working(configs + _PTR_LAST_RESORT, q, k, v, out, scale)


def attention(q, k, v, out, *, scale: float) -> None:
    scale = float(scale)
    tma = _tma_ok(k, v)
    key = (tuple(q.shape), tuple(k.shape), q.stride(), k.stride(), v.stride(),
           q.dtype, q.device, tma, scale > 0.0)
    cfg = _CHOICE.get(key)
    if cfg is None:
        cfg = _choose(tma, q, k, v, out, scale)
        _CHOICE[key] = cfg
    _launch(cfg, q, k, v, out, scale)
