import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# ----------------------------------------------------------------------------
# schedule
# ----------------------------------------------------------------------------


@gluon.jit
def _num_rounds(total):
    # how many tiles this block computes in the snake order
    num = gl.num_programs(0)
    pid = gl.program_id(0)
    rounds = (total + num - 1) // num
    r = rounds - 1
    last = r * num + pid + (r & 1) * (num - 1 - 2 * pid)
    nr = rounds
    if last >= total:
        nr = rounds - 1
    return nr


@gluon.jit
def _locate(r, nq, nbh, sec, nsec, heads):
    num = gl.num_programs(0)
    pid = gl.program_id(0)
    t = r * num + pid + (r & 1) * (num - 1 - 2 * pid)
    per = sec * nq
    s = t // per
    rem = t - s * per
    hs = gl.minimum(nbh - s * sec, sec)
    lvl = rem // hs
    hb = s * sec + rem - lvl * hs
    up = (nsec - 1 - s) & 1
    i = lvl + (1 - up) * (nq - 1 - 2 * lvl)
    b = hb // heads
    h = hb - b * heads
    return b, h, i


@gluon.jit
def _bounds(i, seq_k, shift, BM: gl.constexpr, BN: gl.constexpr):
    full = gl.maximum((i * BM + shift + 1) // BN, 0)
    vis = gl.minimum((seq_k + BN - 1) // BN, (i * BM + BM + shift + BN - 1) // BN)
    vis = gl.maximum(vis, 0)
    return full, vis


# ----------------------------------------------------------------------------
# softmax pieces
# ----------------------------------------------------------------------------


@gluon.jit
def _mask(s, lim, ROWS: gl.constexpr, COLS: gl.constexpr, LS: gl.constexpr):
    # column k of the tile is visible to row r where k <= r + lim
    rr = gl.arange(0, ROWS, gl.SliceLayout(1, LS)) + lim
    cc = gl.arange(0, COLS, gl.SliceLayout(0, LS))
    return gl.where(cc[None, :] <= rr[:, None], s, float("-inf"))


@gluon.jit
def _softmax(s, m, c, SLOW: gl.constexpr):
    # m is the maximum of the scaled scores (base 2). SLOW: s is scaled already.
    if SLOW:
        m_new = gl.maximum(m, gl.max(s, 1))
        safe = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s - safe[:, None])
    else:
        m_new = gl.maximum(m, gl.max(s, 1) * c)
        safe = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s * c - safe[:, None])
    alpha = gl.exp2(m - safe)
    return p, m_new, alpha


# ----------------------------------------------------------------------------
# one round: S of this tile, then O += P V of the tile before
# ----------------------------------------------------------------------------


@gluon.jit
def _round(idx, lim, last, q, k_s, v_s, q_empty, k_full, k_empty, v_full, v_empty,
           o, m, l, p, c,
           WHO: gl.constexpr, MASK: gl.constexpr, SLOW: gl.constexpr,
           BN: gl.constexpr, D: gl.constexpr, LS: gl.constexpr, LO: gl.constexpr):
    st = idx & 1
    ph = (idx >> 1) & 1
    vst = (idx - 1) & 1
    vph = ((idx - 1) >> 1) & 1

    mbarrier.wait(k_full.index(st), ph)
    s = warpgroup_mma(q, k_s.index(st).reshape([BN, D]).permute((1, 0)),
                      gl.zeros([64, BN], gl.float32, LS), use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(vst), vph)
    o = warpgroup_mma(p, v_s.index(vst).reshape([BN, D]), o, use_acc=True, is_async=True)

    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(st), count=1)
    if MASK:
        if last:
            mbarrier.arrive(q_empty.index(WHO), count=1)
    if SLOW:
        s = s * c
    if MASK:
        s = _mask(s, lim, 64, BN, LS)
    pf, m, alpha = _softmax(s, m, c, SLOW)
    l = l * alpha + gl.sum(pf, 1)

    o = warpgroup_mma_wait(0, deps=[o])
    mbarrier.arrive(v_empty.index(vst), count=1)
    ao = gl.convert_layout(alpha, gl.SliceLayout(1, LO))
    o = o * ao[:, None]
    p = gl.convert_layout(pf.to(gl.float16), gl.DotOperandLayout(operand_index=0, parent=LO, k_width=2))
    return o, m, l, p


@gluon.jit
def _consumer(WHO: gl.constexpr, o_desc, q_s, k_s, v_s, o_s,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              c, seq_k, shift, heads, nq, nbh, sec, nsec, total,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, SLOW: gl.constexpr):
    LS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                 instr_shape=[16, BN, 16])
    LO: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                 instr_shape=[16, D, 16])
    PL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=LO, k_width=2)
    RS: gl.constexpr = gl.SliceLayout(1, LS)
    RO: gl.constexpr = gl.SliceLayout(1, LO)

    q = q_s.index(WHO).reshape([64, D])
    cnt = 0
    qcnt = 0
    nr = _num_rounds(total)
    for r in range(nr):
        b, h, i = _locate(r, nq, nbh, sec, nsec, heads)
        full, vis = _bounds(i, seq_k, shift, BM, BN)
        row = i * BM + WHO * 64

        o = gl.zeros([64, D], gl.float32, LO)
        l = gl.zeros([64], gl.float32, RS)
        if vis > 0:
            # round 0: there is no product of P and V yet
            st = cnt & 1
            ph = (cnt >> 1) & 1
            mbarrier.wait(q_full.index(WHO), qcnt & 1)
            mbarrier.wait(k_full.index(st), ph)
            s = warpgroup_mma(q, k_s.index(st).reshape([BN, D]).permute((1, 0)),
                              gl.zeros([64, BN], gl.float32, LS), use_acc=False, is_async=True)
            s = warpgroup_mma_wait(0, deps=[s])
            mbarrier.arrive(k_empty.index(st), count=1)
            if vis == 1:
                mbarrier.arrive(q_empty.index(WHO), count=1)
            if SLOW:
                s = s * c
            if full == 0:
                s = _mask(s, row + shift, 64, BN, LS)
            m = gl.full([64], float("-inf"), gl.float32, RS)
            pf, m, alpha = _softmax(s, m, c, SLOW)
            l = gl.sum(pf, 1)
            p = gl.convert_layout(pf.to(gl.float16), PL)

            # wholly visible key tiles
            for j in range(1, full):
                o, m, l, p = _round(cnt + j, 0, False, q, k_s, v_s, q_empty,
                                    k_full, k_empty, v_full, v_empty,
                                    o, m, l, p, c, WHO, False, SLOW, BN, D, LS, LO)

            # key tiles that cross the diagonal
            for j in range(gl.maximum(full, 1), vis):
                o, m, l, p = _round(cnt + j, row + shift - j * BN, j + 1 == vis, q, k_s, v_s, q_empty,
                                    k_full, k_empty, v_full, v_empty,
                                    o, m, l, p, c, WHO, True, SLOW, BN, D, LS, LO)

            # the last round was an unmasked one: the query's place is still held
            if vis > 1:
                if vis == full:
                    mbarrier.arrive(q_empty.index(WHO), count=1)

            # the last product
            idx = cnt + vis - 1
            vst = idx & 1
            vph = (idx >> 1) & 1
            mbarrier.wait(v_full.index(vst), vph)
            o = warpgroup_mma(p, v_s.index(vst).reshape([BN, D]), o, use_acc=True, is_async=True)
            o = warpgroup_mma_wait(0, deps=[o])
            mbarrier.arrive(v_empty.index(vst), count=1)

            cnt = cnt + vis
            qcnt = qcnt + 1

        inv = gl.where(l == 0.0, 0.0, 1.0 / l)
        io = gl.convert_layout(inv, RO)
        res = (o * io[:, None]).to(gl.float16)
        tma.store_wait(0)
        o_s.index(WHO).reshape([64, D]).store(res)
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [b, h, row, 0], o_s.index(WHO))
    tma.store_wait(0)


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_s, k_s, v_s,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              seq_k, shift, heads, group, nq, nbh, sec, nsec, total,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr):
    cnt = 0
    qcnt = 0
    nr = _num_rounds(total)
    for r in range(nr):
        b, h, i = _locate(r, nq, nbh, sec, nsec, heads)
        full, vis = _bounds(i, seq_k, shift, BM, BN)
        g = h // group
        if vis > 0:
            st = cnt & 1
            ph = (cnt >> 1) & 1
            mbarrier.wait(k_empty.index(st), ph ^ 1)
            mbarrier.expect(k_full.index(st), BN * D * 2)
            tma.async_copy_global_to_shared(k_desc, [b, g, 0, 0], k_full.index(st), k_s.index(st))

            qph = (qcnt & 1) ^ 1
            for w in gl.static_range(2):
                mbarrier.wait(q_empty.index(w), qph)
                mbarrier.expect(q_full.index(w), 64 * D * 2)
                tma.async_copy_global_to_shared(q_desc, [b, h, i * BM + w * 64, 0],
                                                q_full.index(w), q_s.index(w))

            for j in range(1, vis):
                idx = cnt + j
                kst = idx & 1
                kph = (idx >> 1) & 1
                mbarrier.wait(k_empty.index(kst), kph ^ 1)
                mbarrier.expect(k_full.index(kst), BN * D * 2)
                tma.async_copy_global_to_shared(k_desc, [b, g, j * BN, 0],
                                                k_full.index(kst), k_s.index(kst))
                vst = (idx - 1) & 1
                vph = ((idx - 1) >> 1) & 1
                mbarrier.wait(v_empty.index(vst), vph ^ 1)
                mbarrier.expect(v_full.index(vst), BN * D * 2)
                tma.async_copy_global_to_shared(v_desc, [b, g, (j - 1) * BN, 0],
                                                v_full.index(vst), v_s.index(vst))

            lidx = cnt + vis - 1
            lst = lidx & 1
            lph = (lidx >> 1) & 1
            mbarrier.wait(v_empty.index(lst), lph ^ 1)
            mbarrier.expect(v_full.index(lst), BN * D * 2)
            tma.async_copy_global_to_shared(v_desc, [b, g, (vis - 1) * BN, 0],
                                            v_full.index(lst), v_s.index(lst))
            cnt = cnt + vis
            qcnt = qcnt + 1


@gluon.jit(do_not_specialize=["seq_k", "shift", "heads", "group", "nq", "nbh", "sec", "nsec", "total"])
def _attn_tma(q_desc, k_desc, v_desc, o_desc, c,
              seq_k, shift, heads, group, nq, nbh, sec, nsec, total,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, SLOW: gl.constexpr):
    q_s = gl.allocate_shared_memory(gl.float16, [2, 1, 1, 64, D], q_desc.layout)
    k_s = gl.allocate_shared_memory(gl.float16, [2, 1, 1, BN, D], k_desc.layout)
    v_s = gl.allocate_shared_memory(gl.float16, [2, 1, 1, BN, D], v_desc.layout)
    o_s = gl.allocate_shared_memory(gl.float16, [2, 1, 1, 64, D], o_desc.layout)

    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(2):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
        mbarrier.init(k_full.index(w), count=1)
        mbarrier.init(k_empty.index(w), count=2)
        mbarrier.init(v_full.index(w), count=1)
        mbarrier.init(v_empty.index(w), count=2)
    fence_async_shared()

    gl.warp_specialize([
        (_consumer, (0, o_desc, q_s, k_s, v_s, o_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     c, seq_k, shift, heads, nq, nbh, sec, nsec, total, BM, BN, D, SLOW)),
        (_consumer, (1, o_desc, q_s, k_s, v_s, o_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     c, seq_k, shift, heads, nq, nbh, sec, nsec, total, BM, BN, D, SLOW)),
        (_producer, (q_desc, k_desc, v_desc, q_s, k_s, v_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     seq_k, shift, heads, group, nq, nbh, sec, nsec, total, BM, BN, D)),
    ], [4, 1], [240, 24])


# ----------------------------------------------------------------------------
# any strides, any alignment: plain loads, one warpgroup, 64 query rows
# ----------------------------------------------------------------------------


@gluon.jit(do_not_specialize=["sqb", "sqs", "sqh", "skb", "sks", "skh", "svb", "svs", "svh",
                              "sob", "sos", "soh", "seq_q", "seq_k", "shift", "heads", "group", "nq"])
def _attn_any(q_ptr, k_ptr, v_ptr, o_ptr,
              sqb, sqs, sqh, skb, sks, skh, svb, svs, svh, sob, sos, soh,
              c, seq_q, seq_k, shift, heads, group, nq,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr):
    LS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                 instr_shape=[16, BN, 16])
    LO: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                 instr_shape=[16, D, 16])
    PL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=LO, k_width=2)
    RS: gl.constexpr = gl.SliceLayout(1, LS)
    RO: gl.constexpr = gl.SliceLayout(1, LO)
    BL: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    SL: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)

    q_s = gl.allocate_shared_memory(gl.float16, [BM, D], SL)
    k_s = gl.allocate_shared_memory(gl.float16, [BN, D], SL)
    v_s = gl.allocate_shared_memory(gl.float16, [BN, D], SL)

    pid = gl.program_id(0)
    hb = pid // nq
    i = nq - 1 - (pid - hb * nq)
    b = hb // heads
    h = hb - b * heads
    g = h // group
    b64 = b.to(gl.int64)
    h64 = h.to(gl.int64)
    g64 = g.to(gl.int64)

    cols = gl.arange(0, D, gl.SliceLayout(0, BL))
    qrow = i * BM + gl.arange(0, BM, gl.SliceLayout(1, BL))
    qbase = q_ptr + (b64 * sqb + h64 * sqh)
    kbase = k_ptr + (b64 * skb + g64 * skh)
    vbase = v_ptr + (b64 * svb + g64 * svh)
    obase = o_ptr + (b64 * sob + h64 * soh)

    qoff = (qrow.to(gl.int64) * sqs)[:, None] + cols[None, :]
    qmask = (qrow < seq_q)[:, None] & (cols < D)[None, :]
    qt = gl.load(qbase + qoff, mask=qmask, other=0.0)
    q_s.store(qt)

    vis = gl.minimum((seq_k + BN - 1) // BN, (i * BM + BM + shift + BN - 1) // BN)
    vis = gl.maximum(vis, 0)

    o = gl.zeros([BM, D], gl.float32, LO)
    l = gl.zeros([BM], gl.float32, RS)
    m = gl.full([BM], float("-inf"), gl.float32, RS)
    krow0 = gl.arange(0, BN, gl.SliceLayout(1, BL))
    for j in range(0, vis):
        krow = j * BN + krow0
        kmask = (krow < seq_k)[:, None] & (cols < D)[None, :]
        koff = (krow.to(gl.int64) * sks)[:, None] + cols[None, :]
        kt = gl.load(kbase + koff, mask=kmask, other=0.0)
        k_s.store(kt)
        voff = (krow.to(gl.int64) * svs)[:, None] + cols[None, :]
        vt = gl.load(vbase + voff, mask=kmask, other=0.0)
        v_s.store(vt)
        fence_async_shared()

        s = warpgroup_mma(q_s, k_s.permute((1, 0)), gl.zeros([BM, BN], gl.float32, LS),
                          use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        s = s * c
        s = _mask(s, i * BM + shift - j * BN, BM, BN, LS)
        pf, m, alpha = _softmax(s, m, c, True)
        l = l * alpha + gl.sum(pf, 1)
        ao = gl.convert_layout(alpha, RO)
        o = o * ao[:, None]
        p = gl.convert_layout(pf.to(gl.float16), PL)
        o = warpgroup_mma(p, v_s, o, use_acc=True, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])

    inv = gl.where(l == 0.0, 0.0, 1.0 / l)
    io = gl.convert_layout(inv, RO)
    res = (o * io[:, None]).to(gl.float16)
    orow = i * BM + gl.arange(0, BM, RO)
    ocol = gl.arange(0, D, gl.SliceLayout(0, LO))
    ooff = (orow.to(gl.int64) * sos)[:, None] + ocol[None, :]
    omask = (orow < seq_q)[:, None] & (ocol < D)[None, :]
    gl.store(obase + ooff, res, mask=omask)


# ----------------------------------------------------------------------------
# host
# ----------------------------------------------------------------------------

_SMS = {}


def _sm_count(device):
    n = _SMS.get(device)
    if n is None:
        n = torch.cuda.get_device_properties(device).multi_processor_count
        _SMS[device] = n
    return n


def _tma_ok(x):
    if x.data_ptr() % 16 != 0 or x.stride(3) != 1:
        return False
    for a in range(3):
        if x.shape[a] > 1:
            st = x.stride(a)
            if st <= 0 or (st * 2) % 16 != 0 or st * 2 >= (1 << 40):
                return False
    return True


def _descriptor(x, rows):
    # (batch, seq, heads, dim) seen as (batch, heads, seq, dim)
    batch, seq, heads, dim = x.shape
    st = [x.stride(a) if x.shape[a] > 1 else dim for a in range(3)]
    block = [1, 1, rows, dim]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(x, [batch, heads, seq, dim], [st[0], st[2], st[1], 1], block, layout)


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    shift = seq_k - seq_q
    scale = float(scale)
    c = scale * math.log2(math.e)
    nbh = batch * heads

    if _tma_ok(q) and _tma_ok(k) and _tma_ok(v) and _tma_ok(out):
        BM, BN = 128, 128
        nq = (seq_q + BM - 1) // BM
        total = nq * nbh
        # sections of heads whose keys and values fit in 32 MiB
        pairs = batch * kv_heads
        bytes_per_pair = seq_k * dim * 2 * 2
        limit = 32 * 1024 * 1024
        nsec = (pairs * bytes_per_pair + limit - 1) // limit
        nsec = max(1, min(nsec, pairs))
        sec_pairs = (pairs + nsec - 1) // nsec
        nsec = (pairs + sec_pairs - 1) // sec_pairs
        sec = sec_pairs * group
        grid = min(_sm_count(q.device), total)
        _attn_tma[(grid,)](
            _descriptor(q, 64), _descriptor(k, BN), _descriptor(v, BN), _descriptor(out, 64),
            c, seq_k, shift, heads, group, nq, nbh, sec, nsec, total,
            BM=BM, BN=BN, D=dim, SLOW=not (scale > 0.0), num_warps=4)
    else:
        BM, BN = 64, 64
        nq = (seq_q + BM - 1) // BM
        _attn_any[(nq * nbh,)](
            q, k, v, out,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), out.stride(2),
            c, seq_q, seq_k, shift, heads, group, nq,
            BM=BM, BN=BN, D=dim, num_warps=4)
