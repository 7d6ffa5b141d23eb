import triton
import triton.language as tl


@triton.jit(do_not_specialize=["seq_q", "seq_k", "BH", "H", "group", "G"])
def _causal_mha(
    Q, K, V, Out,
    sqb, sqn, sqh,
    skb, skn, skh,
    svb, svn, svh,
    sob, son, soh,
    seq_q, seq_k, BH, H, group, G,
    qk_scale,
    D: tl.constexpr, DV: tl.constexpr,
    EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
    SCALE_POS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    # ---- grid: groups of G heads that share L2; in a group the longest
    # ---- query tiles of all its heads come first
    pid = tl.program_id(0)
    num_m = (seq_q + BM - 1) // BM
    per_group = G * num_m
    gid = pid // per_group
    first = gid * G
    gsize = tl.minimum(BH - first, G)
    r = pid - gid * per_group
    t = num_m - 1 - r // gsize
    bh = first + r % gsize
    b = bh // H
    h = bh - b * H
    hk = h // group

    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    hk64 = hk.to(tl.int64)
    row0 = t * BM
    row64 = row0.to(tl.int64)

    shift = seq_k - seq_q
    full = tl.maximum(row0 + shift + 1, 0) // BN
    last = (tl.maximum(tl.minimum(row0 + BM + shift, seq_k), 0) + BN - 1) // BN

    q_base = Q + b64 * sqb + h64 * sqh + row64 * sqn
    kb = K + b64 * skb + hk64 * skh
    vb = V + b64 * svb + hk64 * svh
    o_base = Out + b64 * sob + h64 * soh + row64 * son

    rm = tl.arange(0, BM)
    rn = tl.arange(0, BN)
    rd = tl.arange(0, D)
    rv = tl.arange(0, DV)
    offs_m = row0 + rm

    q_ptrs = q_base + rm[:, None] * sqn + rd[None, :]
    if EVEN_Q:
        q = tl.load(q_ptrs)
    else:
        q = tl.load(q_ptrs, mask=offs_m[:, None] < seq_q, other=0.0)

    k_off = rn[:, None] * skn + rd[None, :]
    v_off = rn[:, None] * svn + rv[None, :]

    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    # ---- below the diagonal: no mask
    for j in range(0, full):
        k = tl.load(kb + k_off)
        s = tl.dot(q, tl.trans(k))
        v = tl.load(vb + v_off)
        if SCALE_POS:
            m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
            p = tl.exp2(s * qk_scale - m_new[:, None])
        else:
            s = s * qk_scale
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc)
        m = m_new
        kb += BN * skn
        vb += BN * svn

    # ---- tiles that cross the diagonal: masked
    for j in range(full, last):
        cols = j * BN + rn
        if EVEN_K:
            k = tl.load(kb + k_off)
        else:
            k = tl.load(kb + k_off, mask=cols[:, None] < seq_k, other=0.0)
        s = tl.dot(q, tl.trans(k))
        if EVEN_K:
            v = tl.load(vb + v_off)
        else:
            v = tl.load(vb + v_off, mask=cols[:, None] < seq_k, other=0.0)
        visible = cols[None, :] <= (offs_m + shift)[:, None]
        if SCALE_POS:
            s = tl.where(visible, s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
            m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(s * qk_scale - m_use[:, None])
        else:
            s = tl.where(visible, s * qk_scale, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1))
            m_use = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(s - m_use[:, None])
        alpha = tl.exp2(m - m_use)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc)
        m = m_new
        kb += BN * skn
        vb += BN * svn

    # ---- normalise once; l = 0 gives 0 (acc is 0 there)
    inv = 1.0 / tl.where(l == 0.0, 1.0, l)
    acc = acc * inv[:, None]

    o_ptrs = o_base + rm[:, None] * son + rv[None, :]
    res = acc.to(Out.dtype.element_ty)
    if EVEN_Q:
        tl.store(o_ptrs, res)
    else:
        tl.store(o_ptrs, res, mask=offs_m[:, None] < seq_q)


def _cfg(bm, bn, w, s):
    return triton.Config({"BM": bm, "BN": bn}, num_warps=w, num_stages=s)


_KEY = ["seq_q", "seq_k", "BH"]

_tuned_128 = triton.autotune(
    configs=[
        _cfg(128, 128, 8, 2),
        _cfg(128, 64, 8, 3),
        _cfg(128, 64, 8, 2),
        _cfg(128, 64, 4, 2),
    ],
    key=_KEY,
)(_causal_mha)

_tuned_64 = triton.autotune(
    configs=[
        _cfg(128, 64, 4, 3),
        _cfg(128, 64, 8, 3),
        _cfg(128, 128, 8, 2),
        _cfg(128, 64, 4, 2),
    ],
    key=_KEY,
)(_causal_mha)

_LOG2E = 1.4426950408889634
_L2_BUDGET = 16 * 1024 * 1024


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    dim_v = v.shape[3]
    group = heads // kv_heads
    bh = batch * heads
    scale = float(scale)

    kv_bytes = seq_k * (dim + dim_v) * q.element_size()
    g = max(1, min(bh, _L2_BUDGET // kv_bytes))

    even_q = seq_q % 128 == 0
    even_k = seq_k % 128 == 0

    args = (
        q, k, v, out,
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
        seq_q, seq_k, bh, heads, group, g,
        scale * _LOG2E,
    )
    consts = dict(
        D=dim, DV=dim_v,
        EVEN_Q=even_q, EVEN_K=even_k,
        SCALE_POS=scale > 0.0,
    )

    big = (
        even_q and even_k
        and seq_q >= 1024 and seq_k >= 1024
        and bh * (seq_q // 128) >= 512
    )
    if big:
        kernel = _tuned_64 if dim <= 64 else _tuned_128
        grid = lambda META: (triton.cdiv(seq_q, META["BM"]) * bh,)
        kernel[grid](*args, **consts)
    else:
        if dim <= 64:
            bm, bn, warps, stages = 128, 64, 4, 3
        else:
            bm, bn, warps, stages = 128, 128, 8, 2
        _causal_mha[(triton.cdiv(seq_q, bm) * bh,)](
            *args, **consts, BM=bm, BN=bn, num_warps=warps, num_stages=stages
        )
