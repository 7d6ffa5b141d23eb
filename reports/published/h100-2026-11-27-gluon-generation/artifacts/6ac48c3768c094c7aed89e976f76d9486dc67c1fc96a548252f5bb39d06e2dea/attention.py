import torch

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# ---------------------------------------------------------------- helpers


@gluon.jit
def _tile(r, rounds, group_heads, all_heads, q_tiles, heads, blocks):
    # Heads come in groups that fit in L2; inside a group the longest tiles
    # come first and are dealt to the blocks back and forth.
    g = r // rounds
    rr = r - g * rounds
    x = (gl.program_id(0) + g * (blocks // 4)) % blocks
    y = x + (rr & 1) * (blocks - 1 - 2 * x)
    pos = rr * blocks + y
    here = gl.minimum(group_heads, all_heads - g * group_heads)
    valid = pos < here * q_tiles
    level = pos // here
    bh = g * group_heads + (pos - level * here)
    b = bh // heads
    h = bh - b * heads
    qi = q_tiles - 1 - level
    return valid, b, h, qi


@gluon.jit
def _key_tiles(qi, sq, sk, BM: gl.constexpr, BN: gl.constexpr):
    seen = gl.maximum(gl.minimum(sk, (qi + 1) * BM + sk - sq), 0)
    return gl.maximum((seen + BN - 1) // BN, 1)


@gluon.jit
def _to_f16(p):
    return gl.inline_asm_elementwise(
        "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [p],
        dtype=gl.float16, is_pure=True, pack=2)


@gluon.jit
def _mask(s, lim, SL: gl.constexpr, BN: gl.constexpr):
    # row i sees the columns up to i + lim of this tile
    rows = gl.arange(0, 64, gl.SliceLayout(1, SL)) + lim
    cols = gl.arange(0, BN, gl.SliceLayout(0, SL))
    return gl.where(cols[None, :] <= rows[:, None], s, float("-inf"))


@gluon.jit
def _softmax(s, m, l, c, MULT: gl.constexpr):
    # m is kept in the scaled, base-2 domain
    if MULT:
        m_new = gl.maximum(m, gl.max(s, 1))
        ref = gl.where(m_new > float("-inf"), m_new, 0.0)
        p = gl.exp2(s - ref[:, None])
    else:
        m_new = gl.maximum(m, gl.max(s, 1) * c)
        ref = gl.where(m_new > float("-inf"), m_new, 0.0)
        p = gl.exp2(s * c - ref[:, None])
    alpha = gl.exp2(m - ref)
    l_new = l * alpha + gl.sum(p, 1)
    return p, alpha, m_new, l_new


@gluon.jit
def _round(i, release_q, lim, o, p, m, l, c, qs, q_empty_bar, k_smem, v_smem,
           k_full, k_empty, v_full, v_empty,
           D: gl.constexpr, BN: gl.constexpr, ST: gl.constexpr,
           SL: gl.constexpr, OL: gl.constexpr, PL: gl.constexpr,
           MULT: gl.constexpr, MASK: gl.constexpr):
    ks = i & (ST - 1)
    mbarrier.wait(k_full.index(ks), (i // ST) & 1)
    acc = gl.full([64, BN], 0.0, gl.float32, SL)
    s_async = warpgroup_mma(qs, k_smem.index(ks).reshape([BN, D]).permute((1, 0)), acc,
                            use_acc=False, is_async=True)
    u = i - 1
    vs = u & (ST - 1)
    mbarrier.wait(v_full.index(vs), (u // ST) & 1)
    o_async = warpgroup_mma(p, v_smem.index(vs).reshape([BN, D]), o,
                            use_acc=True, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s_async])
    mbarrier.arrive(k_empty.index(ks), count=1)
    if MASK:
        if release_q:
            mbarrier.arrive(q_empty_bar, count=1)
    if MULT:
        s = s * c
    if MASK:
        s = _mask(s, lim, SL, BN)
    pf, alpha, m_new, l_new = _softmax(s, m, l, c, MULT)
    o_done = warpgroup_mma_wait(0, deps=[o_async])
    mbarrier.arrive(v_empty.index(vs), count=1)
    o_new = o_done * gl.convert_layout(alpha, gl.SliceLayout(1, OL))[:, None]
    p_new = gl.convert_layout(_to_f16(pf), PL)
    return o_new, p_new, m_new, l_new


# ---------------------------------------------------------------- roles


@gluon.jit
def _load(desc, b, h, i, j, smem, full, empty,
          D: gl.constexpr, BN: gl.constexpr, ST: gl.constexpr):
    slot = i & (ST - 1)
    mbarrier.wait(empty.index(slot), ((i // ST) & 1) ^ 1)
    bar = full.index(slot)
    mbarrier.expect(bar, BN * D * 2)
    tma.async_copy_global_to_shared(desc, [b, h, j * BN, 0], bar, smem.index(slot))


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
              NC: gl.constexpr, D: gl.constexpr, BN: gl.constexpr, ST: gl.constexpr):
    BM: gl.constexpr = NC * 64
    it = 0
    t = 0
    for r in range(all_rounds):
        valid, b, h, qi = _tile(r, rounds, group_heads, all_heads, q_tiles, heads, blocks)
        if valid:
            nt = _key_tiles(qi, sq, sk, BM, BN)
            _load(k_desc, b, h, it, 0, k_smem, k_full, k_empty, D, BN, ST)
            for w in gl.static_range(NC):
                mbarrier.wait(q_empty.index(w), (t & 1) ^ 1)
                mbarrier.expect(q_full.index(w), 64 * D * 2)
                tma.async_copy_global_to_shared(q_desc, [b, h, qi * BM + w * 64, 0],
                                                q_full.index(w), q_smem.index(w))
            _load(v_desc, b, h, it, 0, v_smem, v_full, v_empty, D, BN, ST)
            for j in range(1, nt):
                _load(k_desc, b, h, it + j, j, k_smem, k_full, k_empty, D, BN, ST)
                _load(v_desc, b, h, it + j, j, v_smem, v_full, v_empty, D, BN, ST)
            it += nt
            t += 1


@gluon.jit
def _consumer(o_desc, q_smem, o_smem, k_smem, v_smem,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
              C: gl.constexpr, NC: gl.constexpr, D: gl.constexpr, BN: gl.constexpr,
              ST: gl.constexpr, MULT: gl.constexpr):
    BM: gl.constexpr = NC * 64
    SL: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                 instr_shape=[16, BN, 16])
    OL: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                 instr_shape=[16, D, 16])
    PL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OL, k_width=2)

    it = 0
    t = 0
    for r in range(all_rounds):
        valid, b, h, qi = _tile(r, rounds, group_heads, all_heads, q_tiles, heads, blocks)
        if valid:
            row0 = qi * BM + C * 64
            diag = row0 + sk - sq
            nt = _key_tiles(qi, sq, sk, BM, BN)
            live = (row0 < sq).to(gl.int32)
            # key tiles that all 64 rows see in full, and that some row sees
            full = (gl.maximum(gl.minimum(sk, diag + 1), 0) * live) // BN
            seen = gl.maximum(gl.minimum(sk, diag + 64), 0) * live
            n = gl.maximum((seen + BN - 1) // BN, 1)

            qs = q_smem.index(C).reshape([64, D])
            q_empty_bar = q_empty.index(C)

            # first round: S only
            k0 = it & (ST - 1)
            mbarrier.wait(q_full.index(C), t & 1)
            mbarrier.wait(k_full.index(k0), (it // ST) & 1)
            acc0 = gl.full([64, BN], 0.0, gl.float32, SL)
            s_first = warpgroup_mma(qs, k_smem.index(k0).reshape([BN, D]).permute((1, 0)), acc0,
                                    use_acc=False, is_async=True)
            s0 = warpgroup_mma_wait(0, deps=[s_first])
            mbarrier.arrive(k_empty.index(k0), count=1)
            if n == 1:
                mbarrier.arrive(q_empty_bar, count=1)
            if MULT:
                s0 = s0 * c
            if full == 0:
                s0 = _mask(s0, diag, SL, BN)
            m_init = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, SL))
            l_init = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, SL))
            p_first, a_first, m, l = _softmax(s0, m_init, l_init, c, MULT)
            p = gl.convert_layout(_to_f16(p_first), PL)
            o = gl.full([64, D], 0.0, gl.float32, OL)

            # key tiles seen in full
            for j in range(1, full):
                o, p, m, l = _round(it + j, j == n - 1, diag, o, p, m, l, c, qs, q_empty_bar,
                                    k_smem, v_smem, k_full, k_empty, v_full, v_empty,
                                    D, BN, ST, SL, OL, PL, MULT, False)
            # key tiles on the diagonal
            for jm in range(gl.maximum(full, 1), n):
                o, p, m, l = _round(it + jm, jm == n - 1, diag - jm * BN, o, p, m, l, c, qs, q_empty_bar,
                                    k_smem, v_smem, k_full, k_empty, v_full, v_empty,
                                    D, BN, ST, SL, OL, PL, MULT, True)
            if (full == n) & (n > 1):
                mbarrier.arrive(q_empty_bar, count=1)

            # last product
            last = it + n - 1
            vl = last & (ST - 1)
            mbarrier.wait(v_full.index(vl), (last // ST) & 1)
            o_last = warpgroup_mma(p, v_smem.index(vl).reshape([BN, D]), o,
                                   use_acc=True, is_async=True)
            o_end = warpgroup_mma_wait(0, deps=[o_last])
            mbarrier.arrive(v_empty.index(vl), count=1)

            # tiles that only other consumers need
            for jr in range(n, nt):
                ir = it + jr
                sr = ir & (ST - 1)
                mbarrier.wait(k_full.index(sr), (ir // ST) & 1)
                mbarrier.arrive(k_empty.index(sr), count=1)
                mbarrier.wait(v_full.index(sr), (ir // ST) & 1)
                mbarrier.arrive(v_empty.index(sr), count=1)

            # normalise and store; where l is 0, O is 0 too
            inv = 1.0 / gl.where(l > 0.0, l, 1.0)
            inv = gl.where(l > 0.0, inv, 0.0)
            res = o_end * gl.convert_layout(inv, gl.SliceLayout(1, OL))[:, None]
            tma.store_wait(0)
            o_place = o_smem.index(C)
            o_place.reshape([64, D]).store(res.to(gl.float16))
            fence_async_shared()
            tma.async_copy_shared_to_global(o_desc, [b, h, row0, 0], o_place)

            it += nt
            t += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["sq", "sk", "heads", "all_heads", "q_tiles", "group_heads",
                              "rounds", "all_rounds", "blocks"])
def _attention_kernel(q_desc, k_desc, v_desc, o_desc, c, sq, sk, heads, all_heads, q_tiles,
                      group_heads, rounds, all_rounds, blocks,
                      NC: gl.constexpr, D: gl.constexpr, BN: gl.constexpr, ST: gl.constexpr,
                      MULT: gl.constexpr):
    q_smem = gl.allocate_shared_memory(gl.float16, [NC, 1, 1, 64, D], q_desc.layout)
    k_smem = gl.allocate_shared_memory(gl.float16, [ST, 1, 1, BN, D], k_desc.layout)
    v_smem = gl.allocate_shared_memory(gl.float16, [ST, 1, 1, BN, D], v_desc.layout)
    o_smem = gl.allocate_shared_memory(gl.float16, [NC, 1, 1, 64, D], o_desc.layout)

    q_full = gl.allocate_shared_memory(gl.int64, [NC, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [NC, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [ST, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [ST, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [ST, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [ST, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(NC):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
    for x in gl.static_range(ST):
        mbarrier.init(k_full.index(x), count=1)
        mbarrier.init(k_empty.index(x), count=NC)
        mbarrier.init(v_full.index(x), count=1)
        mbarrier.init(v_empty.index(x), count=NC)
    fence_async_shared()

    if NC == 2:
        gl.warp_specialize([
            (_consumer, (o_desc, q_smem, o_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         0, NC, D, BN, ST, MULT)),
            (_consumer, (o_desc, q_smem, o_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         1, NC, D, BN, ST, MULT)),
            (_producer, (q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         NC, D, BN, ST)),
        ], [4, 1], [240, 24])
    else:
        gl.warp_specialize([
            (_consumer, (o_desc, q_smem, o_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         0, NC, D, BN, ST, MULT)),
            (_consumer, (o_desc, q_smem, o_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         1, NC, D, BN, ST, MULT)),
            (_consumer, (o_desc, q_smem, o_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         2, NC, D, BN, ST, MULT)),
            (_producer, (q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                         q_full, q_empty, k_full, k_empty, v_full, v_empty,
                         sq, sk, heads, all_heads, q_tiles, group_heads, rounds, all_rounds, blocks,
                         NC, D, BN, ST)),
        ], [4, 4, 1], [160, 160, 24])


# A plain strided copy, for tensors whose strides or address TMA cannot take.
@gluon.jit(do_not_specialize=["rows", "seq", "heads", "s0", "s1", "s2", "d0", "d1", "d2"])
def _copy_kernel(src, dst, rows, seq, heads, s0, s1, s2, d0, d1, d2,
                 D: gl.constexpr, ROWS: gl.constexpr):
    L: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    r = gl.program_id(0) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, L))
    col = gl.arange(0, D, gl.SliceLayout(0, L))
    h = r % heads
    bs = r // heads
    s = bs % seq
    b = bs // seq
    so = b.to(gl.int64) * s0 + s.to(gl.int64) * s1 + h.to(gl.int64) * s2
    do = b.to(gl.int64) * d0 + s.to(gl.int64) * d1 + h.to(gl.int64) * d2
    mask = (r[:, None] < rows) & (col[None, :] < D)
    x = gl.load(src + (so[:, None] + col[None, :]), mask=mask)
    gl.store(dst + (do[:, None] + col[None, :]), x, mask=mask)


# ---------------------------------------------------------------- host


_SMS = {}


def _sms(device):
    n = _SMS.get(device)
    if n is None:
        n = torch.cuda.get_device_properties(device).multi_processor_count
        _SMS[device] = n
    return n


def _tma_ok(t):
    if t.data_ptr() % 16 != 0 or t.stride(3) != 1:
        return False
    for i in range(3):
        if t.shape[i] > 1 and (t.stride(i) <= 0 or t.stride(i) % 8 != 0):
            return False
    return True


def _copy(src, dst):
    b, s, h, d = src.shape
    rows = b * s * h
    per = 16
    _copy_kernel[((rows + per - 1) // per,)](
        src, dst, rows, s, h,
        src.stride(0), src.stride(1), src.stride(2),
        dst.stride(0), dst.stride(1), dst.stride(2),
        D=d, ROWS=per, num_warps=4)


def _desc(t, rows):
    b, s, h, d = t.shape
    strides = []
    for i in (0, 2, 1):
        strides.append(t.stride(i) if t.shape[i] > 1 else d)
    strides.append(1)
    block = [1, 1, rows, d]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(t, [b, h, s, d], strides, block, layout)


def attention(q, k, v, out, *, scale: float) -> None:
    batch, sq, heads, dim = q.shape
    sk = k.shape[1]

    if not _tma_ok(q):
        tmp = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _copy(q, tmp)
        q = tmp
    if not _tma_ok(k):
        tmp = torch.empty(k.shape, dtype=k.dtype, device=k.device)
        _copy(k, tmp)
        k = tmp
    if not _tma_ok(v):
        tmp = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        _copy(v, tmp)
        v = tmp
    dst = out
    if not _tma_ok(out):
        dst = torch.empty(out.shape, dtype=out.dtype, device=out.device)

    if dim == 128:
        nc, stages = 2, 2
    else:
        nc, stages = 3, 4
    bn = 128
    bm = 64 * nc

    all_heads = batch * heads
    q_tiles = (sq + bm - 1) // bm
    blocks = min(_sms(q.device), all_heads * q_tiles)
    # heads in groups whose keys and values fit in 32 MiB of L2
    fit = max(1, min(all_heads, (32 * 1024 * 1024) // (sk * dim * 4)))
    groups = (all_heads + fit - 1) // fit
    group_heads = (all_heads + groups - 1) // groups
    groups = (all_heads + group_heads - 1) // group_heads
    rounds = (group_heads * q_tiles + blocks - 1) // blocks

    scale = float(scale)
    c = scale * 1.4426950408889634
    _attention_kernel[(blocks,)](
        _desc(q, 64), _desc(k, bn), _desc(v, bn), _desc(dst, 64),
        c, sq, sk, heads, all_heads, q_tiles, group_heads, rounds, groups * rounds, blocks,
        NC=nc, D=dim, BN=bn, ST=stages, MULT=not (scale > 0.0), num_warps=4)

    if dst is not out:
        _copy(dst, out)
