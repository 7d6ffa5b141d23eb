import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# ----------------------------------------------------------------------------
# schedule: which tile is the r-th of this block
# ----------------------------------------------------------------------------
@gluon.jit
def _tile(r, pid, nprog, n_mt, sec_kv, n_sec, kv_total, kv_heads, group, seq_q, seq_k,
          BM2: gl.constexpr, BN: gl.constexpr):
    odd = r & 1
    pos = pid + odd * (nprog - 1 - 2 * pid)
    idx = r * nprog + pos
    per_sec = sec_kv * group * n_mt
    sec = idx // per_sec
    rem = idx - sec * per_sec
    cnt = gl.minimum(sec_kv, kv_total - sec * sec_kv) * group
    mi = rem // cnt
    x = rem - mi * cnt
    heavy_first = ((n_sec - 1 - sec) & 1) ^ 1
    t = mi + heavy_first * (n_mt - 1 - 2 * mi)
    xg = x // group
    kvg = sec * sec_kv + xg
    b = kvg // kv_heads
    kvh = kvg - b * kv_heads
    h = kvh * group + (x - xg * group)
    m0 = t * BM2
    shift = seq_k - seq_q
    end = gl.minimum(m0 + BM2, seq_q) + shift
    n = gl.maximum((end + (BN - 1)) // BN, 1)
    nf = gl.minimum(gl.maximum(m0 + shift + 1, 0) // BN, n - 1)
    return b, h, kvh, m0, n, nf


# ----------------------------------------------------------------------------
# producer: one warp
# ----------------------------------------------------------------------------
@gluon.jit
def _load(desc, b, h, row, buf, full, empty, it, NBYTES: gl.constexpr):
    st = it & 1
    mbarrier.wait(empty.index(st), ((it >> 1) & 1) ^ 1)
    mbarrier.expect(full.index(st), NBYTES)
    tma.async_copy_global_to_shared(desc, [b, h, row, 0], full.index(st), buf.index(st))


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_buf, k_buf, v_buf,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              n_tiles, pid, nprog, n_mt, sec_kv, n_sec, kv_total, kv_heads, group,
              seq_q, seq_k,
              D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr):
    it = 0
    for r in range(n_tiles):
        b, h, kvh, m0, n, nf = _tile(r, pid, nprog, n_mt, sec_kv, n_sec, kv_total,
                                     kv_heads, group, seq_q, seq_k, 2 * BM, BN)
        _load(k_desc, b, kvh, (n - 1) * BN, k_buf, k_full, k_empty, it, BN * D * 2)
        for w in gl.static_range(2):
            mbarrier.wait(q_empty.index(w), (r & 1) ^ 1)
            mbarrier.expect(q_full.index(w), BM * D * 2)
            tma.async_copy_global_to_shared(q_desc, [b, h, m0 + w * BM, 0],
                                            q_full.index(w), q_buf.index(w))
        for jj in range(0, n - 1):
            j = n - 2 - jj
            _load(k_desc, b, kvh, j * BN, k_buf, k_full, k_empty, it + 1, BN * D * 2)
            _load(v_desc, b, kvh, (j + 1) * BN, v_buf, v_full, v_empty, it, BN * D * 2)
            it = it + 1
        _load(v_desc, b, kvh, 0, v_buf, v_full, v_empty, it, BN * D * 2)
        it = it + 1


# ----------------------------------------------------------------------------
# consumer: one warpgroup, 64 rows
# ----------------------------------------------------------------------------
@gluon.jit
def _step(q_s, k_buf, v_buf, k_full, k_empty, v_full, v_empty, q_empty, turn,
          it, tc, j, p, o, m, l, lim, c, sgn,
          W: gl.constexpr, D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
          MASK: gl.constexpr, SGN: gl.constexpr, L: gl.constexpr, PL: gl.constexpr):
    ks = it & 1
    vi = it - 1
    vs = vi & 1
    k_t = k_buf.index(ks).reshape((BN, D)).permute((1, 0))
    v_s = v_buf.index(vs).reshape((BN, D))
    p16 = gl.convert_layout(p.to(gl.float16), PL)
    zero = gl.full([BM, BN], 0.0, gl.float32, L)

    mbarrier.wait(k_full.index(ks), (it >> 1) & 1)
    mbarrier.wait(v_full.index(vs), (vi >> 1) & 1)
    mbarrier.wait(turn.index(W), (tc & 1) ^ (1 - W))
    s_acc = warpgroup_mma(q_s, k_t, zero, use_acc=False, is_async=True)
    o_acc = warpgroup_mma(p16, v_s, o, use_acc=True, is_async=True)
    mbarrier.arrive(turn.index(1 - W), count=1)

    s = warpgroup_mma_wait(1, deps=[s_acc])
    mbarrier.arrive(k_empty.index(ks), count=1)
    mbarrier.arrive(q_empty.index(W), count=1, pred=(j == 0))

    if SGN:
        s = s * sgn
    if MASK:
        cols = j * BN + gl.arange(0, BN, gl.SliceLayout(0, L))
        s = gl.where(cols[None, :] <= lim[:, None], s, float("-inf"))
    m_new = gl.maximum(m, gl.max(s, 1) * c)
    if MASK:
        m_ref = gl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_ref = m_new
    alpha = gl.exp2(m - m_ref)
    p_new = gl.exp2(s * c - m_ref[:, None])
    l_new = l * alpha + gl.sum(p_new, 1)

    o_new = warpgroup_mma_wait(0, deps=[o_acc])
    mbarrier.arrive(v_empty.index(vs), count=1)
    o_new = o_new * alpha[:, None]
    return p_new, o_new, m_new, l_new


@gluon.jit
def _consumer(o_desc, q_buf, k_buf, v_buf, o_buf,
              q_full, q_empty, k_full, k_empty, v_full, v_empty, turn,
              n_tiles, pid, nprog, n_mt, sec_kv, n_sec, kv_total, kv_heads, group,
              seq_q, seq_k, c, sgn,
              W: gl.constexpr, D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
              SGN: gl.constexpr, L: gl.constexpr, PL: gl.constexpr):
    q_s = q_buf.index(W).reshape((BM, D))
    o_s = o_buf.index(W).reshape((BM, D))
    it = 0
    tc = 0
    for r in range(n_tiles):
        b, h, kvh, m0, n, nf = _tile(r, pid, nprog, n_mt, sec_kv, n_sec, kv_total,
                                     kv_heads, group, seq_q, seq_k, 2 * BM, BN)
        lim = gl.arange(0, BM, gl.SliceLayout(1, L)) + (m0 + W * BM + seq_k - seq_q)

        # first block, always masked
        ks = it & 1
        k_t = k_buf.index(ks).reshape((BN, D)).permute((1, 0))
        zero = gl.full([BM, BN], 0.0, gl.float32, L)
        mbarrier.wait(q_full.index(W), r & 1)
        mbarrier.wait(k_full.index(ks), (it >> 1) & 1)
        s_acc = warpgroup_mma(q_s, k_t, zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s_acc])
        mbarrier.arrive(k_empty.index(ks), count=1)
        mbarrier.arrive(q_empty.index(W), count=1, pred=(n == 1))
        if SGN:
            s = s * sgn
        cols = (n - 1) * BN + gl.arange(0, BN, gl.SliceLayout(0, L))
        s = gl.where(cols[None, :] <= lim[:, None], s, float("-inf"))
        m = gl.max(s, 1) * c
        m_ref = gl.where(m == float("-inf"), 0.0, m)
        p = gl.exp2(s * c - m_ref[:, None])
        l = gl.sum(p, 1)
        o = gl.full([BM, D], 0.0, gl.float32, L)
        it = it + 1

        # further blocks that the diagonal crosses
        for ja in range(0, n - 1 - nf):
            p, o, m, l = _step(q_s, k_buf, v_buf, k_full, k_empty, v_full, v_empty,
                               q_empty, turn, it, tc, n - 2 - ja, p, o, m, l, lim, c, sgn,
                               W, D, BM, BN, True, SGN, L, PL)
            it = it + 1
            tc = tc + 1

        # blocks that every row sees whole
        for jb in range(0, nf):
            p, o, m, l = _step(q_s, k_buf, v_buf, k_full, k_empty, v_full, v_empty,
                               q_empty, turn, it, tc, nf - 1 - jb, p, o, m, l, lim, c, sgn,
                               W, D, BM, BN, False, SGN, L, PL)
            it = it + 1
            tc = tc + 1

        # last P V
        vi = it - 1
        vs = vi & 1
        v_s = v_buf.index(vs).reshape((BN, D))
        p16 = gl.convert_layout(p.to(gl.float16), PL)
        mbarrier.wait(v_full.index(vs), (vi >> 1) & 1)
        o_acc = warpgroup_mma(p16, v_s, o, use_acc=True, is_async=True)
        res = warpgroup_mma_wait(0, deps=[o_acc])
        mbarrier.arrive(v_empty.index(vs), count=1)

        dead = l == 0.0
        inv = gl.where(dead, 0.0, 1.0 / gl.where(dead, 1.0, l))
        res16 = (res * inv[:, None]).to(gl.float16)
        tma.store_wait(0)
        o_s.store(res16)
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [b, h, m0 + W * BM, 0], o_buf.index(W))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["seq_q", "seq_k", "kv_heads", "group", "n_mt", "sec_kv",
                              "n_sec", "kv_total", "total", "nprog"])
def _attn_kernel(q_desc, k_desc, v_desc, o_desc,
                 seq_q, seq_k, kv_heads, group, n_mt, sec_kv, n_sec, kv_total, total, nprog,
                 c, sgn,
                 D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
                 SGN: gl.constexpr, L: gl.constexpr, PL: gl.constexpr):
    q_buf = gl.allocate_shared_memory(gl.float16, [2, 1, 1, BM, D], q_desc.layout)
    k_buf = gl.allocate_shared_memory(gl.float16, [2, 1, 1, BN, D], k_desc.layout)
    v_buf = gl.allocate_shared_memory(gl.float16, [2, 1, 1, BN, D], v_desc.layout)
    o_buf = gl.allocate_shared_memory(gl.float16, [2, 1, 1, BM, D], o_desc.layout)

    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
        mbarrier.init(turn.index(i), count=1)
    fence_async_shared()

    pid = gl.program_id(0)
    rounds = total // nprog
    left = total - rounds * nprog
    pos = pid + (rounds & 1) * (nprog - 1 - 2 * pid)
    n_tiles = rounds + (pos < left).to(gl.int32)

    gl.warp_specialize([
        (_consumer, (o_desc, q_buf, k_buf, v_buf, o_buf,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty, turn,
                     n_tiles, pid, nprog, n_mt, sec_kv, n_sec, kv_total, kv_heads, group,
                     seq_q, seq_k, c, sgn,
                     0, D, BM, BN, SGN, L, PL)),
        (_consumer, (o_desc, q_buf, k_buf, v_buf, o_buf,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty, turn,
                     n_tiles, pid, nprog, n_mt, sec_kv, n_sec, kv_total, kv_heads, group,
                     seq_q, seq_k, c, sgn,
                     1, D, BM, BN, SGN, L, PL)),
        (_producer, (q_desc, k_desc, v_desc, q_buf, k_buf, v_buf,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     n_tiles, pid, nprog, n_mt, sec_kv, n_sec, kv_total, kv_heads, group,
                     seq_q, seq_k,
                     D, BM, BN)),
    ], [4, 1], [232, 40])


# ----------------------------------------------------------------------------
# strided copy, for tensors whose strides or address TMA cannot take
# ----------------------------------------------------------------------------
@gluon.jit(do_not_specialize=["n_rows", "S", "H", "sb", "ss", "sh", "db", "ds", "dh"])
def _copy_kernel(src, dst, n_rows, S, H, sb, ss, sh, db, ds, dh,
                 D: gl.constexpr, R: gl.constexpr, CL: gl.constexpr):
    row = gl.program_id(0) * R + gl.arange(0, R, gl.SliceLayout(1, CL))
    col = gl.arange(0, D, gl.SliceLayout(0, CL))
    per_b = S * H
    b = row // per_b
    x = row - b * per_b
    s = x // H
    h = x - s * H
    b64 = b.to(gl.int64)
    s64 = s.to(gl.int64)
    h64 = h.to(gl.int64)
    so = b64 * sb + s64 * ss + h64 * sh
    do = b64 * db + s64 * ds + h64 * dh
    ok = (row[:, None] < n_rows) & (col[None, :] < D)
    val = gl.load(src + (so[:, None] + col[None, :]), mask=ok)
    gl.store(dst + (do[:, None] + col[None, :]), val, mask=ok)


def _copy(src, dst):
    B, S, H, D = src.shape
    n_rows = B * S * H
    R = 32
    cl = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    _copy_kernel[((n_rows + R - 1) // R,)](
        src, dst, n_rows, S, H,
        src.stride(0), src.stride(1), src.stride(2),
        dst.stride(0), dst.stride(1), dst.stride(2),
        D=D, R=R, CL=cl, num_warps=4)


def _tma_ok(t):
    if t.data_ptr() % 16 != 0 or t.stride(3) != 1:
        return False
    for i in range(3):
        if t.shape[i] > 1 and (t.stride(i) <= 0 or t.stride(i) % 8 != 0):
            return False
    return True


def _contig_like(t):
    return torch.empty(tuple(t.shape), dtype=t.dtype, device=t.device)


def _desc(t, rows):
    B, S, H, D = t.shape
    sb = t.stride(0) if B > 1 else D
    ss = t.stride(1) if S > 1 else D
    sh = t.stride(2) if H > 1 else D
    block = [1, 1, rows, D]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(t, [B, H, S, D], [sb, sh, ss, 1], block, layout)


_SMS = {}


def _num_sms(device):
    key = device.index
    if key not in _SMS:
        _SMS[key] = torch.cuda.get_device_properties(device).multi_processor_count
    return _SMS[key]


def attention(q, k, v, out, *, scale: float) -> None:
    B, seq_q, H, D = q.shape
    seq_k, Hkv = k.shape[1], k.shape[2]
    BM, BN = 64, 128
    group = H // Hkv

    if not _tma_ok(q):
        t = _contig_like(q)
        _copy(q, t)
        q = t
    if not _tma_ok(k):
        t = _contig_like(k)
        _copy(k, t)
        k = t
    if not _tma_ok(v):
        t = _contig_like(v)
        _copy(v, t)
        v = t
    res = out if _tma_ok(out) else _contig_like(out)

    scale = float(scale)
    c = abs(scale) * 1.4426950408889634
    if c < 1e-30:
        c, sgn, use_sgn = 1.0, 0.0, True
    elif scale < 0:
        sgn, use_sgn = -1.0, True
    else:
        sgn, use_sgn = 1.0, False

    n_mt = (seq_q + 2 * BM - 1) // (2 * BM)
    kv_total = B * Hkv
    total = n_mt * B * H
    kv_bytes = seq_k * D * 2 * 2
    sec_kv = max(1, min(kv_total, (16 << 20) // kv_bytes))
    n_sec = (kv_total + sec_kv - 1) // sec_kv
    sec_kv = (kv_total + n_sec - 1) // n_sec
    n_sec = (kv_total + sec_kv - 1) // sec_kv
    nprog = min(_num_sms(q.device), total)

    L = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                  instr_shape=[16, 128, 16])
    PL = gl.DotOperandLayout(operand_index=0, parent=L, k_width=2)

    _attn_kernel[(nprog,)](
        _desc(q, BM), _desc(k, BN), _desc(v, BN), _desc(res, BM),
        seq_q, seq_k, Hkv, group, n_mt, sec_kv, n_sec, kv_total, total, nprog,
        c, sgn,
        D=D, BM=BM, BN=BN, SGN=use_sgn, L=L, PL=PL, num_warps=4)

    if res is not out:
        _copy(res, out)
