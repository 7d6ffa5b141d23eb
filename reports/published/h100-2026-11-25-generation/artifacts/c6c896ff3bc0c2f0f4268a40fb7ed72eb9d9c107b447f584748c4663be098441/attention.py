import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: pointers only
    TensorDescriptor = None


@triton.jit
def _mla_tiles(acc, l_i, m_i, q0, q1,
               desc_k0, desc_k1, desc_v,
               k_base, v_base, sks, svs,
               krow, kcol, vrow, vcol,
               row_lim, qk_scale, NK, lo, hi,
               BN: tl.constexpr, MASK: tl.constexpr,
               USE_TMA: tl.constexpr, NEG: tl.constexpr):
    offs_n = tl.arange(0, BN)
    offs_a = tl.arange(0, 128)
    offs_c = tl.arange(0, 64)
    for j in range(lo, hi):
        start = j * BN
        # S = Q K^T, in two pieces of the head dimension
        if USE_TMA:
            k0 = desc_k0.load([krow + start, kcol])
            k1 = desc_k1.load([krow + start, kcol + 128])
            s = tl.dot(q0, tl.trans(k0))
            s = tl.dot(q1, tl.trans(k1), s)
        else:
            kp = k_base + start.to(tl.int64) * sks
            kp0 = kp + (offs_n[None, :] * sks + offs_a[:, None])
            kp1 = kp + (offs_n[None, :] * sks + (offs_c[:, None] + 128))
            if MASK:
                kmask = (start + offs_n)[None, :] < NK
                k0 = tl.load(kp0, mask=kmask, other=0.0)
                k1 = tl.load(kp1, mask=kmask, other=0.0)
            else:
                k0 = tl.load(kp0)
                k1 = tl.load(kp1)
            s = tl.dot(q0, k0)
            s = tl.dot(q1, k1, s)

        # online softmax in base 2 (qk_scale >= 0 and holds log2(e))
        if NEG:
            s = -s
        if MASK:
            s = s * qk_scale
            s = tl.where((start + offs_n)[None, :] <= row_lim[:, None], s, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.math.exp2(s - m_safe[:, None])
            alpha = tl.math.exp2(m_i - m_safe)
        else:
            m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
            p = tl.math.exp2(s * qk_scale - m_new[:, None])
            alpha = tl.math.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]

        # O += P V
        if USE_TMA:
            v = desc_v.load([vrow + start, vcol])
        else:
            vp = v_base + start.to(tl.int64) * svs
            vp = vp + (offs_n[:, None] * svs + offs_a[None, :])
            if MASK:
                v = tl.load(vp, mask=(start + offs_n)[:, None] < NK, other=0.0)
            else:
                v = tl.load(vp)
        acc = tl.dot(p.to(v.dtype), v, acc)
        m_i = m_new
    return acc, l_i, m_i


@triton.jit(do_not_specialize=["NQ", "NK", "H", "BH", "GROUP", "G"])
def _mla_fwd(q_ptr, k_ptr, v_ptr, o_ptr,
             desc_k0, desc_k1, desc_v,
             sqb, sqs, sqh,
             skb, sks, skh,
             svb, svs, svh,
             sob, sos, soh,
             NQ, NK, H, BH, GROUP, G, qk_scale,
             BM: tl.constexpr, BN: tl.constexpr,
             USE_TMA: tl.constexpr, NEG: tl.constexpr):
    # Groups of G heads share the L2; inside a group the longest blocks go first.
    pid = tl.program_id(0)
    n_m = (NQ + BM - 1) // BM
    per = G * n_m
    gid = pid // per
    first = gid * G
    gsize = tl.minimum(BH - first, G)
    r = pid - gid * per
    i = r // gsize
    bh = first + (r - i * gsize)
    qi = n_m - 1 - i
    b = bh // H
    h = bh - b * H
    hk = h // GROUP

    diff = NK - NQ
    visible = tl.maximum(tl.minimum(NK, (qi + 1) * BM + diff), 0)
    tiles = (visible + BN - 1) // BN
    full = tl.maximum(qi * BM + diff + 1, 0) // BN

    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    hk64 = hk.to(tl.int64)
    row0 = qi * BM
    row64 = row0.to(tl.int64)

    q_base = q_ptr + b64 * sqb + h64 * sqh + row64 * sqs
    o_base = o_ptr + b64 * sob + h64 * soh + row64 * sos
    k_base = k_ptr + b64 * skb + hk64 * skh
    v_base = v_ptr + b64 * svb + hk64 * svh

    krow = b * NK
    kcol = (hk * skh).to(tl.int32)
    vcol = (hk * svh).to(tl.int32)

    offs_m = tl.arange(0, BM)
    offs_a = tl.arange(0, 128)
    offs_c = tl.arange(0, 64)
    rmask = (row0 + offs_m)[:, None] < NQ

    # queries are loaded once and stay resident
    q0 = tl.load(q_base + (offs_m[:, None] * sqs + offs_a[None, :]), mask=rmask, other=0.0)
    q1 = tl.load(q_base + (offs_m[:, None] * sqs + (offs_c[None, :] + 128)), mask=rmask, other=0.0)

    acc = tl.zeros([BM, 128], dtype=tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    m_i = tl.full([BM], float("-inf"), dtype=tl.float32)
    row_lim = row0 + offs_m + diff

    # tiles wholly visible to every row of the block
    acc, l_i, m_i = _mla_tiles(acc, l_i, m_i, q0, q1, desc_k0, desc_k1, desc_v,
                               k_base, v_base, sks, svs, krow, kcol, krow, vcol,
                               row_lim, qk_scale, NK, 0, full,
                               BN, False, USE_TMA, NEG)
    # tiles that touch the diagonal
    acc, l_i, m_i = _mla_tiles(acc, l_i, m_i, q0, q1, desc_k0, desc_k1, desc_v,
                               k_base, v_base, sks, svs, krow, kcol, krow, vcol,
                               row_lim, qk_scale, NK, full, tiles,
                               BN, True, USE_TMA, NEG)

    # normalise once; l = 0 leaves the zeros of acc
    inv = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    acc = acc * inv[:, None]
    tl.store(o_base + (offs_m[:, None] * sos + offs_a[None, :]),
             acc.to(o_ptr.dtype.element_ty), mask=rmask)


def _set_blocks(nargs):
    bn = nargs["BN"]
    nargs["desc_k0"].block_shape = [bn, 128]
    nargs["desc_k1"].block_shape = [bn, 64]
    nargs["desc_v"].block_shape = [bn, 128]


_KEY = ["NQ", "NK", "H", "BH"]

_tuned_tma = triton.autotune(
    configs=[
        triton.Config({"BM": 128, "BN": 128}, num_warps=8, num_stages=2, pre_hook=_set_blocks),
        triton.Config({"BM": 128, "BN": 64}, num_warps=8, num_stages=3, pre_hook=_set_blocks),
        triton.Config({"BM": 128, "BN": 64}, num_warps=8, num_stages=2, pre_hook=_set_blocks),
        triton.Config({"BM": 64, "BN": 64}, num_warps=4, num_stages=2, pre_hook=_set_blocks),
    ],
    key=_KEY,
)(_mla_fwd)

_tuned_ptr = triton.autotune(
    configs=[
        triton.Config({"BM": 128, "BN": 128}, num_warps=8, num_stages=2),
        triton.Config({"BM": 128, "BN": 64}, num_warps=8, num_stages=3),
        triton.Config({"BM": 128, "BN": 64}, num_warps=8, num_stages=2),
    ],
    key=_KEY,
)(_mla_fwd)

_state = {"tma": TensorDescriptor is not None, "tuned_ptr": True}


def _tma_cols(t, width):
    heads = t.shape[2]
    return width if heads == 1 else (heads - 1) * t.stride(2) + width


def _tma_ok(t, width):
    batch, seq, heads, _ = t.shape
    sb, ss, sh, sd = t.stride()
    if t.element_size() != 2 or sd != 1 or t.data_ptr() % 16 != 0:
        return False
    if ss <= 0 or ss % 8 != 0 or ss >= 2 ** 31:
        return False
    if batch > 1 and sb != seq * ss:
        return False
    if heads > 1 and sh <= 0:
        return False
    if batch * seq >= 2 ** 31:
        return False
    return _tma_cols(t, width) <= ss


def _desc(t, width, bn, piece):
    rows = t.shape[0] * t.shape[1]
    return TensorDescriptor(t, [rows, _tma_cols(t, width)], [t.stride(1), 1], [bn, piece])


def attention(q, k, v, out, *, scale: float) -> None:
    B, NQ, H, _ = q.shape
    NK, HK = k.shape[1], k.shape[2]
    group = H // HK
    BH = B * H

    scale = float(scale)
    neg = scale < 0.0
    qk_scale = abs(scale) * 1.4426950408889634

    # heads whose keys and values together fit comfortably in L2
    room = max(1, (24 * 1024 * 1024) // (NK * 320 * 2))
    G = 1
    while G * 2 <= room:
        G *= 2
    G = min(G, BH)

    strides = (
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
    )
    scalars = (NQ, NK, H, BH, group, G, qk_scale)

    def grid(meta):
        return (BH * triton.cdiv(NQ, meta["BM"]),)

    whole = NQ % 128 == 0 and NK % 128 == 0

    if whole and _state["tma"] and _tma_ok(k, 192) and _tma_ok(v, 128):
        try:
            dk0 = _desc(k, 192, 128, 128)
            dk1 = _desc(k, 192, 128, 64)
            dv = _desc(v, 128, 128, 128)
            _tuned_tma[grid](q, k, v, out, dk0, dk1, dv, *strides, *scalars,
                             USE_TMA=True, NEG=neg)
            return
        except Exception:
            _state["tma"] = False

    if whole and _state["tuned_ptr"]:
        try:
            _tuned_ptr[grid](q, k, v, out, k, k, v, *strides, *scalars,
                             USE_TMA=False, NEG=neg)
            return
        except Exception:
            _state["tuned_ptr"] = False

    _mla_fwd[grid](q, k, v, out, k, k, v, *strides, *scalars,
                   BM=128, BN=64, USE_TMA=False, NEG=neg,
                   num_warps=8, num_stages=2)
