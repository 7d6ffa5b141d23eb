import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# --------------------------------------------------------------------------
# strided copy, only for tensors whose strides TMA cannot take
# --------------------------------------------------------------------------
@gluon.jit
def _copy_kernel(src, dst, S, H, n_rows,
                 s_b, s_s, s_h, d_b, d_s, d_h,
                 D: gl.constexpr, R: gl.constexpr, CL: gl.constexpr):
    rows = gl.program_id(0) * R + gl.arange(0, R, gl.SliceLayout(1, CL))
    cols = gl.arange(0, D, gl.SliceLayout(0, CL))
    h = rows % H
    t = rows // H
    s = t % S
    b = t // S
    h64 = h.to(gl.int64)
    s64 = s.to(gl.int64)
    b64 = b.to(gl.int64)
    so = b64 * s_b + s64 * s_s + h64 * s_h
    do = b64 * d_b + s64 * d_s + h64 * d_h
    mask = (rows[:, None] < n_rows) & (cols[None, :] < D)
    x = gl.load(src + (so[:, None] + cols[None, :]), mask=mask)
    gl.store(dst + (do[:, None] + cols[None, :]), x, mask=mask)


# --------------------------------------------------------------------------
# tile schedule: longest first, dealt to the blocks in snake order
# --------------------------------------------------------------------------
@gluon.jit
def _num_tiles(total, G):
    c = gl.program_id(0)
    full = total // G
    last = c + (full & 1) * (G - 1 - 2 * c)
    return full + gl.maximum(gl.minimum(total - full * G - last, 1), 0)


@gluon.jit
def _tile(r, G, NM, BH, H, GROUP):
    c = gl.program_id(0)
    idx = r * G + c + (r & 1) * (G - 1 - 2 * c)
    mb = NM - 1 - idx // BH
    bh = idx % BH
    b = bh // H
    h = bh % H
    g = h // GROUP
    return mb, b, h, g


@gluon.jit
def _num_blocks(m0, NQ, NK, BM: gl.constexpr, BN: gl.constexpr):
    end = gl.minimum(m0 + BM, NQ) + (NK - NQ)
    return (gl.maximum(end, 1) + (BN - 1)) // BN


# --------------------------------------------------------------------------
# producer
# --------------------------------------------------------------------------
@gluon.jit
def _load_kv(desc, row, col, full, empty, buf, i, BYTES: gl.constexpr):
    st = i & 1
    mbarrier.wait(empty.index(st), ((i >> 1) & 1) ^ 1)
    bar = full.index(st)
    mbarrier.expect(bar, BYTES)
    tma.async_copy_global_to_shared(desc, [row, col], bar, buf.index(st))


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_s, k_s, v_s,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              total, G, NM, BH, H, GROUP, NQ, NK,
              q_rb, q_rh, q_ch, k_rb, k_rh, k_ch, v_rb, v_rh, v_ch,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr):
    KV_BYTES: gl.constexpr = BN * D * 2
    Q_BYTES: gl.constexpr = 64 * D * 2
    it = 0
    n_my = _num_tiles(total, G)
    for r in range(0, n_my):
        mb, b, h, g = _tile(r, G, NM, BH, H, GROUP)
        n = _num_blocks(mb * BM, NQ, NK, BM, BN)
        k_row = b * k_rb + g * k_rh
        k_col = g * k_ch
        v_row = b * v_rb + g * v_rh
        v_col = g * v_ch
        q_row = b * q_rb + h * q_rh + mb * BM
        q_col = h * q_ch

        _load_kv(k_desc, k_row + (n - 1) * BN, k_col, k_full, k_empty, k_s, it, KV_BYTES)
        for w in gl.static_range(2):
            mbarrier.wait(q_empty.index(w), (r & 1) ^ 1)
            mbarrier.expect(q_full.index(w), Q_BYTES)
            tma.async_copy_global_to_shared(q_desc, [q_row + w * 64, q_col],
                                            q_full.index(w), q_s.index(w))
        for i in range(1, n):
            _load_kv(k_desc, k_row + (n - 1 - i) * BN, k_col, k_full, k_empty, k_s,
                     it + i, KV_BYTES)
            _load_kv(v_desc, v_row + (n - i) * BN, v_col, v_full, v_empty, v_s,
                     it + i - 1, KV_BYTES)
        _load_kv(v_desc, v_row, v_col, v_full, v_empty, v_s, it + n - 1, KV_BYTES)
        it += n


# --------------------------------------------------------------------------
# consumers
# --------------------------------------------------------------------------
@gluon.jit
def _softmax(s, m, l, c, pre, lim,
             MASKED: gl.constexpr, PRE: gl.constexpr,
             BN: gl.constexpr, L: gl.constexpr):
    if PRE:
        s = s * pre
    if MASKED:
        cols = gl.arange(0, BN, gl.SliceLayout(0, L))
        s = gl.where(cols[None, :] <= lim[:, None], s, float("-inf"))
    mx = gl.maximum(m, gl.max(s, 1) * c)
    if MASKED:
        ref = gl.where(mx == float("-inf"), 0.0, mx)
    else:
        ref = mx
    p = gl.exp2(s * c - ref[:, None])
    alpha = gl.exp2(m - ref)
    l = l * alpha + gl.sum(p, 1)
    return p, alpha, mx, l


@gluon.jit
def _step(q, k_s, v_s, k_full, k_empty, v_full, v_empty,
          gi, o, p, m, l, c, pre, lim,
          MASKED: gl.constexpr, PRE: gl.constexpr,
          BN: gl.constexpr, L: gl.constexpr, PL: gl.constexpr):
    ks = gi & 1
    mbarrier.wait(k_full.index(ks), (gi >> 1) & 1)
    zero = gl.full([64, BN], 0.0, gl.float32, L)
    s = warpgroup_mma(q, k_s.index(ks).permute((1, 0)), zero, use_acc=False, is_async=True)
    gv = gi - 1
    vs = gv & 1
    mbarrier.wait(v_full.index(vs), (gv >> 1) & 1)
    oacc = warpgroup_mma(p, v_s.index(vs), o, use_acc=True, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(ks), count=1)

    pf, alpha, m_new, l_new = _softmax(s, m, l, c, pre, lim, MASKED, PRE, BN, L)

    o_new = warpgroup_mma_wait(0, deps=[oacc])
    mbarrier.arrive(v_empty.index(vs), count=1)
    o_new = o_new * alpha[:, None]
    p_new = gl.convert_layout(pf.to(gl.float16), PL)
    return o_new, p_new, m_new, l_new


@gluon.jit
def _consumer(WG: gl.constexpr, o_desc, out_ptr, q_s, k_s, v_s, o_s,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              total, G, NM, BH, H, GROUP, NQ, NK,
              o_rb, o_rh, o_ch, o_sb, o_ss, o_sh, c, pre,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
              L: gl.constexpr, PL: gl.constexpr, PRE: gl.constexpr):
    rows = gl.arange(0, 64, gl.SliceLayout(1, L))
    q = q_s.index(WG)
    ob = o_s.index(WG)
    it = 0
    n_my = _num_tiles(total, G)
    for r in range(0, n_my):
        mb, b, h, g = _tile(r, G, NM, BH, H, GROUP)
        row0 = mb * BM + WG * 64
        n = _num_blocks(mb * BM, NQ, NK, BM, BN)
        nfull = gl.maximum(row0 + (NK - NQ) + 1, 0) // BN
        nmask = gl.maximum(n - 1 - nfull, 0)
        lim = rows + (row0 + (NK - NQ))

        # first (rightmost) block, always masked
        mbarrier.wait(q_full.index(WG), r & 1)
        ks = it & 1
        mbarrier.wait(k_full.index(ks), (it >> 1) & 1)
        zero = gl.full([64, BN], 0.0, gl.float32, L)
        s = warpgroup_mma(q, k_s.index(ks).permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(ks), count=1)

        m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, L))
        l = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, L))
        o = gl.full([64, D], 0.0, gl.float32, L)
        pf, alpha, m, l = _softmax(s, m, l, c, pre, lim - (n - 1) * BN, True, PRE, BN, L)
        p = gl.convert_layout(pf.to(gl.float16), PL)

        # further blocks that the diagonal crosses
        for t in range(0, nmask):
            o, p, m, l = _step(q, k_s, v_s, k_full, k_empty, v_full, v_empty,
                               it + 1 + t, o, p, m, l, c, pre,
                               lim - (n - 2 - t) * BN, True, PRE, BN, L, PL)
        # blocks seen whole
        for t in range(nmask + 1, n):
            o, p, m, l = _step(q, k_s, v_s, k_full, k_empty, v_full, v_empty,
                               it + t, o, p, m, l, c, pre,
                               lim, False, PRE, BN, L, PL)

        mbarrier.arrive(q_empty.index(WG), count=1)
        gv = it + n - 1
        vs = gv & 1
        mbarrier.wait(v_full.index(vs), (gv >> 1) & 1)
        oacc = warpgroup_mma(p, v_s.index(vs), o, use_acc=True, is_async=True)
        o = warpgroup_mma_wait(0, deps=[oacc])
        mbarrier.arrive(v_empty.index(vs), count=1)

        inv = gl.where(l > 0.0, 1.0 / l, 0.0)
        o16 = (o * inv[:, None]).to(gl.float16)
        if row0 + 64 <= NQ:
            tma.store_wait(0)
            ob.store(o16)
            fence_async_shared()
            tma.async_copy_shared_to_global(
                o_desc, [b * o_rb + h * o_rh + row0, h * o_ch], ob)
        else:
            cols = gl.arange(0, D, gl.SliceLayout(0, L))
            rg = rows + row0
            base = b.to(gl.int64) * o_sb + h.to(gl.int64) * o_sh
            ro = rg.to(gl.int64) * o_ss + base
            mask = (rg[:, None] < NQ) & (cols[None, :] < D)
            gl.store(out_ptr + (ro[:, None] + cols[None, :]), o16, mask=mask)
        it += n
    tma.store_wait(0)


# --------------------------------------------------------------------------
# kernel
# --------------------------------------------------------------------------
@gluon.jit
def _attn_kernel(q_desc, k_desc, v_desc, o_desc, out_ptr,
                 total, G, NM, BH, H, GROUP, NQ, NK,
                 q_rb, q_rh, q_ch, k_rb, k_rh, k_ch, v_rb, v_rh, v_ch,
                 o_rb, o_rh, o_ch, o_sb, o_ss, o_sh, c, pre,
                 BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
                 L: gl.constexpr, PL: gl.constexpr, PRE: gl.constexpr):
    q_s = gl.allocate_shared_memory(gl.float16, [2, 64, D], q_desc.layout)
    k_s = gl.allocate_shared_memory(gl.float16, [2, BN, D], k_desc.layout)
    v_s = gl.allocate_shared_memory(gl.float16, [2, BN, D], v_desc.layout)
    o_s = gl.allocate_shared_memory(gl.float16, [2, 64, D], o_desc.layout)

    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()

    gl.warp_specialize([
        (_consumer, (0, o_desc, out_ptr, q_s, k_s, v_s, o_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     total, G, NM, BH, H, GROUP, NQ, NK,
                     o_rb, o_rh, o_ch, o_sb, o_ss, o_sh, c, pre,
                     BM, BN, D, L, PL, PRE)),
        (_consumer, (1, o_desc, out_ptr, q_s, k_s, v_s, o_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     total, G, NM, BH, H, GROUP, NQ, NK,
                     o_rb, o_rh, o_ch, o_sb, o_ss, o_sh, c, pre,
                     BM, BN, D, L, PL, PRE)),
        (_producer, (q_desc, k_desc, v_desc, q_s, k_s, v_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     total, G, NM, BH, H, GROUP, NQ, NK,
                     q_rb, q_rh, q_ch, k_rb, k_rh, k_ch, v_rb, v_rh, v_ch,
                     BM, BN, D)),
    ], [4, 1], [240, 24])


# --------------------------------------------------------------------------
# host
# --------------------------------------------------------------------------
_BM = 128
_BN = 128
_LIMIT = 2 ** 31 - 1
_LOG2E = 1.4426950408889634

_L = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                               instr_shape=[16, 128, 16])
_PL = gl.DotOperandLayout(operand_index=0, parent=_L, k_width=2)
_CL = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
_sms = {}


def _num_sms(device):
    key = device.index
    if key not in _sms:
        _sms[key] = torch.cuda.get_device_properties(device).multi_processor_count
    return _sms[key]


def _plan(t):
    """A two-dimensional view (rows, columns) of a dense tensor for TMA, with the
    row of (b, h, s) = b * rb + h * rh + s and its first column h * ch, or None.
    Rows past the end of a sequence are other rows of the same tensor or outside."""
    B, S, H, D = t.shape
    sb, ss, sh, sd = t.stride()
    if t.data_ptr() % 16 != 0 or sd != 1:
        return None
    # memory order (batch, seq, heads, dim)
    a_sh = sh if H > 1 else D
    width = (H - 1) * a_sh + D
    if S > 1:
        a_ss = ss
    elif B > 1:
        a_ss = sb
    else:
        a_ss = (width + 7) // 8 * 8
    if (a_sh % 8 == 0 and a_ss % 8 == 0 and width <= a_ss
            and (B == 1 or sb == S * a_ss) and B * S * a_ss < _LIMIT):
        return [B * S, width], [a_ss, 1], (S, 0, a_sh)
    # memory order (batch, heads, seq, dim)
    if S > 1:
        b_ss = ss
    elif H > 1:
        b_ss = sh
    else:
        b_ss = sb if B > 1 else D
    b_sh = sh if H > 1 else S * b_ss
    if (b_ss % 8 == 0 and b_ss >= D and b_sh == S * b_ss
            and (B == 1 or sb == H * b_sh) and B * H * S * b_ss < _LIMIT):
        return [B * H * S, D], [b_ss, 1], (H * S, S, 0)
    return None


def _copy(src, dst):
    B, S, H, D = src.shape
    n_rows = B * S * H
    R = 32
    _copy_kernel[((n_rows + R - 1) // R,)](
        src, dst, S, H, n_rows,
        src.stride(0), src.stride(1), src.stride(2),
        dst.stride(0), dst.stride(1), dst.stride(2),
        D=D, R=R, CL=_CL, num_warps=4)


def _input(t):
    plan = _plan(t)
    if plan is None:
        dense = torch.empty(tuple(t.shape), dtype=t.dtype, device=t.device)
        _copy(t, dense)
        t = dense
        plan = _plan(t)
    return t, plan


def _desc(t, plan, rows):
    block = [rows, t.shape[3]]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(t, plan[0], plan[1], block, layout)


def attention(q, k, v, out, *, scale: float) -> None:
    B, NQ, H, D = q.shape
    NK, HKV = k.shape[1], k.shape[2]

    q, qp = _input(q)
    k, kp = _input(k)
    v, vp = _input(v)
    target = out
    op = _plan(target)
    if op is None:
        target = torch.empty(tuple(out.shape), dtype=out.dtype, device=out.device)
        op = _plan(target)

    qd = _desc(q, qp, 64)
    kd = _desc(k, kp, _BN)
    vd = _desc(v, vp, _BN)
    od = _desc(target, op, 64)

    NM = (NQ + _BM - 1) // _BM
    BH = B * H
    total = NM * BH
    G = min(total, _num_sms(q.device))

    scale = float(scale)
    if scale > 1e-30:
        PRE = False
        pre = 1.0
        c = scale * _LOG2E
    else:
        PRE = True
        pre = scale * _LOG2E
        c = 1.0

    _attn_kernel[(G,)](
        qd, kd, vd, od, target,
        total, G, NM, BH, H, H // HKV, NQ, NK,
        qp[2][0], qp[2][1], qp[2][2],
        kp[2][0], kp[2][1], kp[2][2],
        vp[2][0], vp[2][1], vp[2][2],
        op[2][0], op[2][1], op[2][2],
        target.stride(0), target.stride(1), target.stride(2),
        c, pre,
        BM=_BM, BN=_BN, D=D, L=_L, PL=_PL, PRE=PRE,
        num_warps=4)

    if target is not out:
        _copy(target, out)
