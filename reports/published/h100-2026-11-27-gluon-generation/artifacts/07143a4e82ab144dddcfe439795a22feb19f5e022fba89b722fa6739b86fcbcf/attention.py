import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# ----------------------------------------------------------------------------
# Tile schedule: tiles sorted from the heaviest query block to the lightest,
# dealt to the persistent blocks in a snake order.
# ----------------------------------------------------------------------------

@gluon.jit
def _rounds(tiles):
    pid = gl.program_id(0)
    grid = gl.num_programs(0)
    full_rounds = tiles // grid
    rem = tiles - full_rounds * grid
    pos = pid + (full_rounds & 1) * (grid - 1 - 2 * pid)
    return full_rounds + (pos < rem).to(gl.int32)


@gluon.jit
def _tile(r, seq_q, seq_k, heads, hb, nm):
    pid = gl.program_id(0)
    grid = gl.num_programs(0)
    idx = r * grid + pid + (r & 1) * (grid - 1 - 2 * pid)
    lvl = idx // hb
    rem = idx - lvl * hb
    b = rem // heads
    h = rem - b * heads
    row0 = (nm - 1 - lvl) * 128
    lim = gl.minimum(row0 + 128, seq_q) + (seq_k - seq_q)
    n = (gl.maximum(lim, 0) + 127) // 128
    n = gl.maximum(n, 1)
    return b, h, row0, n


# ----------------------------------------------------------------------------
# Producer: one warp, TMA loads.
# Ring order for one tile: K0, (K1, V0), (K2, V1), ..., V_last
# ----------------------------------------------------------------------------

@gluon.jit
def _put(desc, b, row, g, ring, full, empty, cnt, STAGES: gl.constexpr):
    st = cnt % STAGES
    ph = (cnt // STAGES) & 1
    mbarrier.wait(empty.index(st), ph ^ 1)
    mbarrier.expect(full.index(st), 32768)
    tma.async_copy_global_to_shared(desc, [b, row, g, 0], full.index(st), ring.index(st))


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_smem, ring, q_full, q_empty, full, empty,
              seq_q, seq_k, heads, hb, nm, tiles,
              GROUP: gl.constexpr, STAGES: gl.constexpr):
    cnt = 0
    rounds = _rounds(tiles)
    for r in range(rounds):
        b, h, row0, n = _tile(r, seq_q, seq_k, heads, hb, nm)
        g = h // GROUP
        _put(k_desc, b, (n - 1) * 128, g, ring, full, empty, cnt, STAGES)
        cnt += 1
        qp = (r & 1) ^ 1
        for w in gl.static_range(2):
            mbarrier.wait(q_empty.index(w), qp)
            mbarrier.expect(q_full.index(w), 16384)
            tma.async_copy_global_to_shared(q_desc, [b, row0 + w * 64, h, 0],
                                            q_full.index(w), q_smem.index(w))
        for i in range(n - 1):
            _put(k_desc, b, (n - 2 - i) * 128, g, ring, full, empty, cnt, STAGES)
            _put(v_desc, b, (n - 1 - i) * 128, g, ring, full, empty, cnt + 1, STAGES)
            cnt += 2
        _put(v_desc, b, 0, g, ring, full, empty, cnt, STAGES)
        cnt += 1


# ----------------------------------------------------------------------------
# Consumers: one warpgroup, 64 query rows each.
# ----------------------------------------------------------------------------

@gluon.jit
def _softmax(s, m, lim, n, c, MASK: gl.constexpr, PRESCALE: gl.constexpr, L: gl.constexpr):
    if PRESCALE:
        s = s * c
    if MASK:
        col = n * 128 + gl.arange(0, 128, gl.SliceLayout(0, L))
        s = gl.where(col[None, :] <= lim[:, None], s, float("-inf"))
    mx = gl.max(s, 1)
    if not PRESCALE:
        mx = mx * c
    m_new = gl.maximum(m, mx)
    base = m_new
    if MASK:
        base = gl.where(m_new == float("-inf"), 0.0, m_new)
    if PRESCALE:
        prob = gl.exp2(s - base[:, None])
    else:
        prob = gl.exp2(s * c - base[:, None])
    alpha = gl.exp2(m - base)
    return prob, m_new, alpha


@gluon.jit
def _step(q, ring, full, empty, turn, cnt, t, o, p, l, m, lim, n, c,
          WG: gl.constexpr, MASK: gl.constexpr, PRESCALE: gl.constexpr,
          STAGES: gl.constexpr, L: gl.constexpr, PL: gl.constexpr):
    ks = cnt % STAGES
    kp = (cnt // STAGES) & 1
    vs = (cnt + 1) % STAGES
    vp = ((cnt + 1) // STAGES) & 1

    mbarrier.wait(full.index(ks), kp)
    mbarrier.wait(turn.index(WG), (t & 1) ^ (1 - WG))
    kt = ring.index(ks).reshape([128, 128]).permute((1, 0))
    zero = gl.full([64, 128], 0.0, gl.float32, L)
    s_acc = warpgroup_mma(q, kt, zero, use_acc=False, is_async=True)
    mbarrier.wait(full.index(vs), vp)
    vv = ring.index(vs).reshape([128, 128])
    o_acc = warpgroup_mma(p, vv, o, use_acc=True, is_async=True)
    mbarrier.arrive(turn.index(1 - WG), count=1)

    s = warpgroup_mma_wait(1, deps=[s_acc])
    mbarrier.arrive(empty.index(ks), count=1)

    prob, m_new, alpha = _softmax(s, m, lim, n, c, MASK, PRESCALE, L)
    l_new = l * alpha + gl.sum(prob, 1)

    o_new = warpgroup_mma_wait(0, deps=[o_acc])
    mbarrier.arrive(empty.index(vs), count=1)
    o_new = o_new * alpha[:, None]
    p_new = gl.convert_layout(prob.to(gl.float16), PL)
    return o_new, p_new, l_new, m_new


@gluon.jit
def _consumer(o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
              seq_q, seq_k, heads, hb, nm, tiles, c,
              PRESCALE: gl.constexpr, STAGES: gl.constexpr, WG: gl.constexpr):
    L: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                instr_shape=[16, 128, 16])
    PL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=L, k_width=2)
    RL: gl.constexpr = gl.SliceLayout(1, L)

    q = q_smem.index(WG).reshape([64, 128])
    ob = o_smem.index(WG)
    ob2 = ob.reshape([64, 128])
    shift = seq_k - seq_q

    cnt = 0
    t = 0
    rounds = _rounds(tiles)
    for r in range(rounds):
        b, h, row0, n = _tile(r, seq_q, seq_k, heads, hb, nm)
        row = row0 + WG * 64
        lim = row + shift + gl.arange(0, 64, RL)
        # blocks 0 .. nf-1 are visible to every row of this warpgroup
        nf = gl.minimum(gl.maximum(row + shift + 1, 0) // 128, n - 1)

        # first block
        mbarrier.wait(q_full.index(WG), r & 1)
        ks = cnt % STAGES
        kp = (cnt // STAGES) & 1
        mbarrier.wait(full.index(ks), kp)
        kt = ring.index(ks).reshape([128, 128]).permute((1, 0))
        zero = gl.full([64, 128], 0.0, gl.float32, L)
        s_acc = warpgroup_mma(q, kt, zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s_acc])
        mbarrier.arrive(empty.index(ks), count=1)
        cnt += 1

        m0 = gl.full([64], float("-inf"), gl.float32, RL)
        prob, m, alpha = _softmax(s, m0, lim, n - 1, c, True, PRESCALE, L)
        l = gl.sum(prob, 1)
        p = gl.convert_layout(prob.to(gl.float16), PL)
        o = gl.full([64, 128], 0.0, gl.float32, L)

        # further blocks that cross the diagonal
        for i in range(n - 1 - nf):
            o, p, l, m = _step(q, ring, full, empty, turn, cnt, t, o, p, l, m, lim,
                               n - 2 - i, c, WG, True, PRESCALE, STAGES, L, PL)
            cnt += 2
            t += 1
        # blocks seen in full
        for i in range(nf):
            o, p, l, m = _step(q, ring, full, empty, turn, cnt, t, o, p, l, m, lim,
                               nf - 1 - i, c, WG, False, PRESCALE, STAGES, L, PL)
            cnt += 2
            t += 1

        # Q is free again
        mbarrier.arrive(q_empty.index(WG), count=1)

        # last P V
        vs = cnt % STAGES
        vp = (cnt // STAGES) & 1
        mbarrier.wait(full.index(vs), vp)
        vv = ring.index(vs).reshape([128, 128])
        o_acc = warpgroup_mma(p, vv, o, use_acc=True, is_async=True)
        o_fin = warpgroup_mma_wait(0, deps=[o_acc])
        mbarrier.arrive(empty.index(vs), count=1)
        cnt += 1

        inv = 1.0 / gl.where(l > 0.0, l, 1.0)
        res = (o_fin * inv[:, None]).to(gl.float16)
        tma.store_wait(0)
        ob2.store(res)
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [b, row, h, 0], ob)
    tma.store_wait(0)


@gluon.jit
def _consumer0(o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
               seq_q, seq_k, heads, hb, nm, tiles, c,
               PRESCALE: gl.constexpr, STAGES: gl.constexpr):
    _consumer(o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
              seq_q, seq_k, heads, hb, nm, tiles, c, PRESCALE, STAGES, 0)


@gluon.jit
def _consumer1(o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
               seq_q, seq_k, heads, hb, nm, tiles, c,
               PRESCALE: gl.constexpr, STAGES: gl.constexpr):
    _consumer(o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
              seq_q, seq_k, heads, hb, nm, tiles, c, PRESCALE, STAGES, 1)


@gluon.jit(do_not_specialize=["seq_q", "seq_k", "heads", "hb", "nm", "tiles"])
def _attn_kernel(q_desc, k_desc, v_desc, o_desc,
                 seq_q, seq_k, heads, hb, nm, tiles, c,
                 GROUP: gl.constexpr, PRESCALE: gl.constexpr, STAGES: gl.constexpr):
    ring = gl.allocate_shared_memory(gl.float16, [STAGES, 1, 128, 1, 128], k_desc.layout)
    q_smem = gl.allocate_shared_memory(gl.float16, [2, 1, 64, 1, 128], q_desc.layout)
    o_smem = gl.allocate_shared_memory(gl.float16, [2, 1, 64, 1, 128], o_desc.layout)

    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(turn.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()

    gl.warp_specialize([
        (_consumer0, (o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
                      seq_q, seq_k, heads, hb, nm, tiles, c, PRESCALE, STAGES)),
        (_consumer1, (o_desc, q_smem, o_smem, ring, q_full, q_empty, full, empty, turn,
                      seq_q, seq_k, heads, hb, nm, tiles, c, PRESCALE, STAGES)),
        (_producer, (q_desc, k_desc, v_desc, q_smem, ring, q_full, q_empty, full, empty,
                     seq_q, seq_k, heads, hb, nm, tiles, GROUP, STAGES)),
    ], [4, 1], [232, 40])


# ----------------------------------------------------------------------------
# Copy for tensors whose strides or address TMA cannot take.
# ----------------------------------------------------------------------------

@gluon.jit
def _copy_kernel(src, dst, seq, heads, n_rows, s_b, s_s, s_h, d_b, d_s, d_h,
                 ROWS: gl.constexpr, D: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    row = gl.program_id(0) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    col = gl.arange(0, D, gl.SliceLayout(0, layout))
    tok = row // heads
    h = (row - tok * heads).to(gl.int64)
    b = tok // seq
    s = (tok - b * seq).to(gl.int64)
    b = b.to(gl.int64)
    so = b * s_b + s * s_s + h * s_h
    do = b * d_b + s * d_s + h * d_h
    mask = (row[:, None] < n_rows) & (col[None, :] < D)
    x = gl.load(src + (so[:, None] + col[None, :]), mask=mask)
    gl.store(dst + (do[:, None] + col[None, :]), x, mask=mask)


def _copy(src, dst):
    B, S, H, D = src.shape
    n_rows = B * S * H
    rows = 32
    _copy_kernel[((n_rows + rows - 1) // rows,)](
        src, dst, S, H, n_rows,
        src.stride(0), src.stride(1), src.stride(2),
        dst.stride(0), dst.stride(1), dst.stride(2),
        ROWS=rows, D=D, num_warps=4)


# ----------------------------------------------------------------------------
# Host side.
# ----------------------------------------------------------------------------

_sm_count = {}
_layouts = {}
_stages = 5


def _tma_ok(t):
    if t.data_ptr() % 16 != 0 or t.stride(3) != 1:
        return False
    for d in range(3):
        if t.shape[d] > 1 and (t.stride(d) <= 0 or t.stride(d) % 8 != 0):
            return False
    return True


def _desc(t, rows):
    block = [1, rows, 1, 128]
    layout = _layouts.get(rows)
    if layout is None:
        layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
        _layouts[rows] = layout
    shape = list(t.shape)
    strides = [t.stride(d) if shape[d] > 1 else 128 for d in range(3)] + [1]
    return TensorDescriptor(t, shape, strides, block, layout)


def _ready(t):
    if _tma_ok(t):
        return t
    tmp = torch.empty(tuple(t.shape), dtype=t.dtype, device=t.device)
    _copy(t, tmp)
    return tmp


def attention(q, k, v, out, *, scale: float) -> None:
    global _stages
    B, Sq, H, D = q.shape
    Sk = k.shape[1]
    Hk = k.shape[2]
    assert D == 128 and v.shape[3] == 128, "head dimension 128 only"
    scale = float(scale)

    qq = _ready(q)
    kk = _ready(k)
    vv = _ready(v)
    direct = _tma_ok(out)
    oo = out if direct else torch.empty(tuple(out.shape), dtype=out.dtype, device=out.device)

    dev = q.device
    sms = _sm_count.get(dev)
    if sms is None:
        sms = torch.cuda.get_device_properties(dev).multi_processor_count
        _sm_count[dev] = sms

    nm = (Sq + 127) // 128
    hb = B * H
    tiles = nm * hb
    grid = min(tiles, sms)
    c = scale * math.log2(math.e)
    prescale = not (scale > 1e-30)

    qd = _desc(qq, 64)
    kd = _desc(kk, 128)
    vd = _desc(vv, 128)
    od = _desc(oo, 64)

    def launch(stages):
        _attn_kernel[(grid,)](qd, kd, vd, od, Sq, Sk, H, hb, nm, tiles, c,
                              GROUP=H // Hk, PRESCALE=prescale, STAGES=stages,
                              num_warps=4)

    if _stages > 4:
        try:
            launch(_stages)
        except Exception:
            _stages = 4
            launch(_stages)
    else:
        launch(_stages)

    if not direct:
        _copy(oo, out)
