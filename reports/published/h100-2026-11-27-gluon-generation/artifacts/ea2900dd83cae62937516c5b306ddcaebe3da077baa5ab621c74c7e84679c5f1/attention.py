import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# ----------------------------------------------------------------------------
# shared pieces
# ----------------------------------------------------------------------------

@gluon.jit
def _softmax(s, m_i, l_i, qk_scale, MASKED: gl.constexpr):
    # m_i is kept in scaled (log2) units, so that alpha matches the shifts used.
    m_new = gl.maximum(m_i, gl.max(s, 1) * qk_scale)
    if MASKED:
        m_use = gl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_use = m_new
    p = gl.exp2(s * qk_scale - m_use[:, None])
    alpha = gl.exp2(m_i - m_use)
    l_new = l_i * alpha + gl.sum(p, 1)
    return p, m_new, l_new, alpha


@gluon.jit
def _num_items(pid, nprog, total):
    units = (total + 1) // 2
    mine = (units - 1 - pid) // nprog + 1
    last = pid + (mine - 1) * nprog
    n = 2 * mine
    return gl.minimum(n, n - (2 * last + 2 - total))


@gluon.jit
def _tile(it, pid, nprog, nb, heads, seq_q, seq_k, BM: gl.constexpr, BN: gl.constexpr):
    # tiles of one head in the order nb-1, 0, nb-2, 1, ...: pairs of equal work
    t = 2 * (pid + (it // 2) * nprog) + (it % 2)
    bh = t // nb
    j = t % nb
    half = j // 2
    odd = j % 2
    mb = (1 - odd) * (nb - 1 - half) + odd * half
    b = bh // heads
    h = bh % heads
    m0 = mb * BM
    off = seq_k - seq_q
    end = gl.minimum(seq_k, m0 + BM + off)
    n_end = gl.maximum((end + BN - 1) // BN, 1)
    full = gl.minimum(gl.maximum(m0 + off + 1, 0), seq_k) // BN
    n_masked = gl.maximum(n_end - full, 1)
    return b, h, m0, n_end, n_masked


# ----------------------------------------------------------------------------
# the fast kernel: roles
# ----------------------------------------------------------------------------

@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_s, k_s, v_s,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              seq_q, seq_k, heads, nb, total,
              BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    pid = gl.program_id(0)
    nprog = gl.num_programs(0)
    n_items = _num_items(pid, nprog, total)
    cnt = 0
    for it in range(0, n_items):
        b, h, m0, n_end, n_masked = _tile(it, pid, nprog, nb, heads, seq_q, seq_k, BM, BN)

        # first K block
        st = cnt & (STAGES - 1)
        ph = (cnt // STAGES) & 1
        mbarrier.wait(k_empty.index(st), ph ^ 1)
        mbarrier.expect(k_full.index(st), BN * D * 2)
        tma.async_copy_global_to_shared(k_desc, [b, (n_end - 1) * BN, h, 0],
                                        k_full.index(st), k_s.index(st))
        # Q
        mbarrier.wait(q_empty.index(0), (it & 1) ^ 1)
        mbarrier.expect(q_full.index(0), BM * D * 2)
        tma.async_copy_global_to_shared(q_desc, [b, m0, h, 0], q_full.index(0), q_s.index(0))
        tma.async_copy_global_to_shared(q_desc, [b, m0 + 64, h, 0], q_full.index(0), q_s.index(1))

        for i in range(1, n_end):
            n = n_end - 1 - i
            # K of block i
            kc = cnt + 1
            ks = kc & (STAGES - 1)
            kp = (kc // STAGES) & 1
            mbarrier.wait(k_empty.index(ks), kp ^ 1)
            mbarrier.expect(k_full.index(ks), BN * D * 2)
            tma.async_copy_global_to_shared(k_desc, [b, n * BN, h, 0],
                                            k_full.index(ks), k_s.index(ks))
            # V of block i - 1
            vs = cnt & (STAGES - 1)
            vp = (cnt // STAGES) & 1
            mbarrier.wait(v_empty.index(vs), vp ^ 1)
            mbarrier.expect(v_full.index(vs), BN * D * 2)
            tma.async_copy_global_to_shared(v_desc, [b, (n + 1) * BN, h, 0],
                                            v_full.index(vs), v_s.index(vs))
            cnt += 1

        # last V block (block number 0)
        ls = cnt & (STAGES - 1)
        lp = (cnt // STAGES) & 1
        mbarrier.wait(v_empty.index(ls), lp ^ 1)
        mbarrier.expect(v_full.index(ls), BN * D * 2)
        tma.async_copy_global_to_shared(v_desc, [b, 0, h, 0],
                                        v_full.index(ls), v_s.index(ls))
        cnt += 1


@gluon.jit
def _step(q, k_s, v_s, k_full, k_empty, v_full, v_empty, order,
          cnt, turn, n, lim, cols, acc, p16, m_i, l_i, qk_scale,
          WG: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
          FLIP: gl.constexpr, MASKED: gl.constexpr,
          S_L: gl.constexpr, O_L: gl.constexpr, P_L: gl.constexpr):
    ks = cnt & (STAGES - 1)
    kp = (cnt // STAGES) & 1
    pc = cnt - 1
    vs = pc & (STAGES - 1)
    vp = (pc // STAGES) & 1

    mbarrier.wait(k_full.index(ks), kp)
    mbarrier.wait(v_full.index(vs), vp)
    # my turn on the tensor cores
    mbarrier.wait(order.index(WG), (turn & 1) ^ (1 - WG))
    zero = gl.full([64, BN], 0.0, gl.float32, S_L)
    s = warpgroup_mma(q, k_s.index(ks).reshape([BN, D]).permute((1, 0)), zero,
                      use_acc=False, is_async=True)
    acc = warpgroup_mma(p16, v_s.index(vs).reshape([BN, D]), acc,
                        use_acc=True, is_async=True)
    mbarrier.arrive(order.index(1 - WG), count=1)

    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(ks), count=1)
    if FLIP:
        s = s * (-1.0)
    if MASKED:
        s = gl.where(cols[None, :] <= (lim - n * BN)[:, None], s, float("-inf"))
    p, m_i, l_i, alpha = _softmax(s, m_i, l_i, qk_scale, MASKED)

    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(v_empty.index(vs), count=1)
    alpha_o = gl.convert_layout(alpha, gl.SliceLayout(1, O_L))
    acc = acc * alpha_o[:, None]
    p16 = gl.convert_layout(p.to(gl.float16), P_L)
    return acc, p16, m_i, l_i


@gluon.jit
def _consumer(o_desc, q_s, k_s, v_s, o_s,
              q_full, q_empty, k_full, k_empty, v_full, v_empty, order,
              seq_q, seq_k, heads, nb, total, qk_scale,
              WG: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
              STAGES: gl.constexpr, FLIP: gl.constexpr,
              S_L: gl.constexpr, O_L: gl.constexpr, P_L: gl.constexpr):
    pid = gl.program_id(0)
    nprog = gl.num_programs(0)
    n_items = _num_items(pid, nprog, total)
    rows = gl.arange(0, 64, gl.SliceLayout(1, S_L))
    cols = gl.arange(0, BN, gl.SliceLayout(0, S_L))
    cnt = 0
    turn = 0
    for it in range(0, n_items):
        b, h, m0, n_end, n_masked = _tile(it, pid, nprog, nb, heads, seq_q, seq_k, BM, BN)
        row0 = m0 + WG * 64
        # last key that each row may see
        lim = gl.minimum(rows + (row0 + seq_k - seq_q), seq_k - 1)

        q = q_s.index(WG).reshape([64, D])
        mbarrier.wait(q_full.index(0), it & 1)

        # first block, always masked
        st = cnt & (STAGES - 1)
        ph = (cnt // STAGES) & 1
        mbarrier.wait(k_full.index(st), ph)
        zero = gl.full([64, BN], 0.0, gl.float32, S_L)
        s = warpgroup_mma(q, k_s.index(st).reshape([BN, D]).permute((1, 0)), zero,
                          use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(st), count=1)
        if FLIP:
            s = s * (-1.0)
        s = gl.where(cols[None, :] <= (lim - (n_end - 1) * BN)[:, None], s, float("-inf"))
        m_i = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S_L))
        l_i = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, S_L))
        p, m_i, l_i, alpha = _softmax(s, m_i, l_i, qk_scale, True)
        p16 = gl.convert_layout(p.to(gl.float16), P_L)
        acc = gl.full([64, D], 0.0, gl.float32, O_L)
        cnt += 1

        for i in range(1, n_masked):
            acc, p16, m_i, l_i = _step(
                q, k_s, v_s, k_full, k_empty, v_full, v_empty, order,
                cnt, turn, n_end - 1 - i, lim, cols, acc, p16, m_i, l_i, qk_scale,
                WG, BN, D, STAGES, FLIP, True, S_L, O_L, P_L)
            cnt += 1
            turn += 1

        for i in range(n_masked, n_end):
            acc, p16, m_i, l_i = _step(
                q, k_s, v_s, k_full, k_empty, v_full, v_empty, order,
                cnt, turn, n_end - 1 - i, lim, cols, acc, p16, m_i, l_i, qk_scale,
                WG, BN, D, STAGES, FLIP, False, S_L, O_L, P_L)
            cnt += 1
            turn += 1

        # every product with Q is done
        mbarrier.arrive(q_empty.index(0), count=1)

        # last P V
        lc = cnt - 1
        ls = lc & (STAGES - 1)
        lp = (lc // STAGES) & 1
        mbarrier.wait(v_full.index(ls), lp)
        acc = warpgroup_mma(p16, v_s.index(ls).reshape([BN, D]), acc,
                            use_acc=True, is_async=True)
        inv = gl.where(l_i > 0.0, 1.0 / l_i, 0.0)
        inv_o = gl.convert_layout(inv, gl.SliceLayout(1, O_L))
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(ls), count=1)
        o16 = (acc * inv_o[:, None]).to(gl.float16)

        # the previous tile's store must have left the buffer
        tma.store_wait(0)
        o_s.index(WG).reshape([64, D]).store(o16)
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [b, row0, h, 0], o_s.index(WG))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["seq_q", "seq_k", "heads", "nb", "total"])
def _attn_ws(q_desc, k_desc, v_desc, o_desc,
             seq_q, seq_k, heads, nb, total, qk_scale,
             BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
             FLIP: gl.constexpr, S_L: gl.constexpr, O_L: gl.constexpr, P_L: gl.constexpr):
    q_s = gl.allocate_shared_memory(gl.float16, [2, 1, 64, 1, D], q_desc.layout)
    k_s = gl.allocate_shared_memory(gl.float16, [STAGES, 1, BN, 1, D], k_desc.layout)
    v_s = gl.allocate_shared_memory(gl.float16, [STAGES, 1, BN, 1, D], v_desc.layout)
    o_s = gl.allocate_shared_memory(gl.float16, [2, 1, 64, 1, D], o_desc.layout)

    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    order = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())

    mbarrier.init(q_full.index(0), count=1)
    mbarrier.init(q_empty.index(0), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    mbarrier.init(order.index(0), count=1)
    mbarrier.init(order.index(1), count=1)
    fence_async_shared()

    gl.warp_specialize([
        (_consumer, (o_desc, q_s, k_s, v_s, o_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty, order,
                     seq_q, seq_k, heads, nb, total, qk_scale,
                     0, BM, BN, D, STAGES, FLIP, S_L, O_L, P_L)),
        (_consumer, (o_desc, q_s, k_s, v_s, o_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty, order,
                     seq_q, seq_k, heads, nb, total, qk_scale,
                     1, BM, BN, D, STAGES, FLIP, S_L, O_L, P_L)),
        (_producer, (q_desc, k_desc, v_desc, q_s, k_s, v_s,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     seq_q, seq_k, heads, nb, total,
                     BM, BN, D, STAGES)),
    ], [4, 1], [232, 40])


# ----------------------------------------------------------------------------
# the plain kernel, for strides or addresses that TMA cannot take
# ----------------------------------------------------------------------------

@gluon.jit(do_not_specialize=["sqb", "sqs", "sqh", "skb", "sks", "skh",
                              "svb", "svs", "svh", "sob", "sos", "soh",
                              "seq_q", "seq_k", "heads", "nb"])
def _attn_plain(q_ptr, k_ptr, v_ptr, o_ptr,
                sqb, sqs, sqh, skb, sks, skh, svb, svs, svh, sob, sos, soh,
                seq_q, seq_k, heads, nb, qk_scale,
                BN: gl.constexpr, D: gl.constexpr, FLIP: gl.constexpr,
                S_L: gl.constexpr, O_L: gl.constexpr, P_L: gl.constexpr,
                LD_L: gl.constexpr, SM_L: gl.constexpr):
    pid = gl.program_id(0)
    mb = pid % nb
    bh = pid // nb
    b = (bh // heads).to(gl.int64)
    h = (bh % heads).to(gl.int64)
    m0 = mb * 64

    q_s = gl.allocate_shared_memory(gl.float16, [64, D], SM_L)
    k_s = gl.allocate_shared_memory(gl.float16, [BN, D], SM_L)
    v_s = gl.allocate_shared_memory(gl.float16, [BN, D], SM_L)

    lr = gl.arange(0, 64, gl.SliceLayout(1, LD_L))
    lc = gl.arange(0, D, gl.SliceLayout(0, LD_L))
    cmask = (lc < D)[None, :]

    qr = m0 + lr
    q_off = (qr.to(gl.int64) * sqs)[:, None] + lc.to(gl.int64)[None, :]
    q_base = q_ptr + (b * sqb + h * sqh)
    q_tile = gl.load(q_base + q_off, mask=(qr < seq_q)[:, None] & cmask, other=0.0)
    q_s.store(q_tile)

    k_base = k_ptr + (b * skb + h * skh)
    v_base = v_ptr + (b * svb + h * svh)

    rows = gl.arange(0, 64, gl.SliceLayout(1, S_L))
    cols = gl.arange(0, BN, gl.SliceLayout(0, S_L))
    lim = gl.minimum(rows + (m0 + seq_k - seq_q), seq_k - 1)

    m_i = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S_L))
    l_i = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, S_L))
    acc = gl.full([64, D], 0.0, gl.float32, O_L)

    end = gl.minimum(seq_k, m0 + 64 + seq_k - seq_q)
    n_end = gl.maximum((end + BN - 1) // BN, 1)
    for n in range(0, n_end):
        kr = n * BN + lr
        kmask = (kr < seq_k)[:, None] & cmask
        kr64 = kr.to(gl.int64)
        k_tile = gl.load(k_base + ((kr64 * sks)[:, None] + lc.to(gl.int64)[None, :]),
                         mask=kmask, other=0.0)
        v_tile = gl.load(v_base + ((kr64 * svs)[:, None] + lc.to(gl.int64)[None, :]),
                         mask=kmask, other=0.0)
        k_s.store(k_tile)
        v_s.store(v_tile)
        fence_async_shared()
        zero = gl.full([64, BN], 0.0, gl.float32, S_L)
        s = warpgroup_mma(q_s, k_s.permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        if FLIP:
            s = s * (-1.0)
        s = gl.where(cols[None, :] <= (lim - n * BN)[:, None], s, float("-inf"))
        p, m_i, l_i, alpha = _softmax(s, m_i, l_i, qk_scale, True)
        alpha_o = gl.convert_layout(alpha, gl.SliceLayout(1, O_L))
        acc = acc * alpha_o[:, None]
        p16 = gl.convert_layout(p.to(gl.float16), P_L)
        acc = warpgroup_mma(p16, v_s, acc, use_acc=True, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])

    inv = gl.where(l_i > 0.0, 1.0 / l_i, 0.0)
    inv_o = gl.convert_layout(inv, gl.SliceLayout(1, O_L))
    o16 = (acc * inv_o[:, None]).to(gl.float16)

    orow = m0 + gl.arange(0, 64, gl.SliceLayout(1, O_L))
    ocol = gl.arange(0, D, gl.SliceLayout(0, O_L))
    o_off = (orow.to(gl.int64) * sos)[:, None] + ocol.to(gl.int64)[None, :]
    o_base = o_ptr + (b * sob + h * soh)
    gl.store(o_base + o_off, o16, mask=(orow < seq_q)[:, None] & (ocol < D)[None, :])


# ----------------------------------------------------------------------------
# host
# ----------------------------------------------------------------------------

_CONF = {}
_SMS = {}
_BROKEN = set()


def _conf(D):
    c = _CONF.get(D)
    if c is None:
        def mma(n):
            return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                             instr_shape=[16, n, 16])
        BM, BN = 128, 128
        stages = 2 if D >= 128 else 4
        o_l = mma(D)
        tc = D // 8
        c = dict(
            BM=BM, BN=BN, STAGES=stages,
            S_L=mma(BN), O_L=o_l,
            P_L=gl.DotOperandLayout(operand_index=0, parent=o_l, k_width=2),
            S_L64=mma(64),
            LD_L=gl.BlockedLayout([1, 8], [32 // tc, tc], [4, 1], [1, 0]),
            SM_L=gl.NVMMASharedLayout.get_default_for([64, D], gl.float16),
            QB=[1, 64, 1, D], KB=[1, BN, 1, D],
            QL=gl.NVMMASharedLayout.get_default_for([1, 64, 1, D], gl.float16),
            KL=gl.NVMMASharedLayout.get_default_for([1, BN, 1, D], gl.float16),
        )
        _CONF[D] = c
    return c


def _sms(device):
    n = _SMS.get(device)
    if n is None:
        n = torch.cuda.get_device_properties(device).multi_processor_count
        _SMS[device] = n
    return n


def _tma_strides(t):
    """Strides for a TMA descriptor, or None where TMA cannot describe the tensor."""
    if t.data_ptr() % 16 != 0:
        return None
    res = []
    for n, s in zip(t.shape[:-1], t.stride()[:-1]):
        if n == 1:
            s = t.shape[-1]
        elif s <= 0 or s % 8 != 0:
            return None
        res.append(int(s))
    return res + [1]


def attention(q, k, v, out, *, scale: float) -> None:
    B, Nq, H, D = q.shape
    Nk = k.shape[1]
    c = _conf(D)

    sc = float(scale)
    flip = sc < 0.0
    sc = abs(sc)
    if sc == 0.0:
        sc = 1e-30          # all weights equal, and masked scores stay -inf
    qk_scale = sc * 1.4426950408889634

    key = (D, flip)
    if key not in _BROKEN:
        sq, sk, sv, so = _tma_strides(q), _tma_strides(k), _tma_strides(v), _tma_strides(out)
        if sq is not None and sk is not None and sv is not None and so is not None:
            try:
                qd = TensorDescriptor(q, list(q.shape), sq, c["QB"], c["QL"])
                kd = TensorDescriptor(k, list(k.shape), sk, c["KB"], c["KL"])
                vd = TensorDescriptor(v, list(v.shape), sv, c["KB"], c["KL"])
                od = TensorDescriptor(out, list(out.shape), so, c["QB"], c["QL"])
                nb = (Nq + c["BM"] - 1) // c["BM"]
                total = B * H * nb
                grid = min(_sms(q.device), (total + 1) // 2)
                _attn_ws[(grid,)](
                    qd, kd, vd, od, Nq, Nk, H, nb, total, qk_scale,
                    BM=c["BM"], BN=c["BN"], D=D, STAGES=c["STAGES"], FLIP=flip,
                    S_L=c["S_L"], O_L=c["O_L"], P_L=c["P_L"], num_warps=4)
                return
            except Exception:
                # it did not compile here: nothing was launched, use the plain kernel
                _BROKEN.add(key)

    nb = (Nq + 63) // 64
    _attn_plain[(B * H * nb,)](
        q, k, v, out,
        q.stride(0), q.stride(1), q.stride(2),
        k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2),
        out.stride(0), out.stride(1), out.stride(2),
        Nq, Nk, H, nb, qk_scale,
        BN=64, D=D, FLIP=flip,
        S_L=c["S_L64"], O_L=c["O_L"], P_L=c["P_L"],
        LD_L=c["LD_L"], SM_L=c["SM_L"], num_warps=4)
