import torch

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma, mbarrier, fence_async_shared, warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


# ----------------------------------------------------------------------------
# schedule: which tile a block works on in its r-th turn
# ----------------------------------------------------------------------------

@gluon.jit
def _position(r, pid, nprog):
    # turns come in pairs that run through the blocks in opposite directions;
    # every pair is rotated, so that rounding differences spread evenly
    odd = r & 1
    p = (pid + 49 * (r >> 1)) % nprog
    return p + odd * (nprog - 1 - 2 * p)


@gluon.jit
def _turns(pid, nprog, total):
    whole = total // nprog
    rem = total - whole * nprog
    pos = _position(whole, pid, nprog)
    return whole + (rem - pos + nprog - 1) // nprog


@gluon.jit
def _tile(r, pid, nprog, nq, gk, nkv, group, kv_heads):
    idx = r * nprog + _position(r, pid, nprog)
    per = gk * group * nq
    g = idx // per
    rest = idx - g * per
    hg = gl.minimum(gk, nkv - g * gk) * group
    lev = rest // hg
    u = rest - lev * hg
    t = nq - 1 - lev
    ug = u // group
    kvf = g * gk + ug
    b = kvf // kv_heads
    kv = kvf - b * kv_heads
    h = kv * group + (u - ug * group)
    return b, h, kv, t


@gluon.jit
def _bounds(t, seq_q, seq_k):
    d = seq_k - seq_q
    full = gl.maximum(t * 128 + d + 1, 0) // 128
    seen = gl.maximum(gl.minimum(seq_k, (t + 1) * 128 + d), 0)
    # a tile without any visible key runs one wholly masked round
    n = gl.maximum((seen + 127) // 128, 1)
    return full, n


# ----------------------------------------------------------------------------
# producer
# ----------------------------------------------------------------------------

@gluon.jit
def _load_kv(desc, smem, full, empty, it, b, kv, row):
    st = it & 1
    ph = ((it >> 1) & 1) ^ 1
    mbarrier.wait(empty.index(st), ph)
    mbarrier.expect(full.index(st), 32768)
    tma.async_copy_global_to_shared(desc, [b, kv, row, 0], full.index(st), smem.index(st))


@gluon.jit
def _load_q(desc, smem, full, empty, ph, b, h, row, W: gl.constexpr):
    mbarrier.wait(empty.index(W), ph)
    mbarrier.expect(full.index(W), 16384)
    tma.async_copy_global_to_shared(desc, [b, h, row, 0], full.index(W), smem.index(W))


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              pid, nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k):
    cnt = _turns(pid, nprog, total)
    it = 0
    for r in range(0, cnt):
        b, h, kv, t = _tile(r, pid, nprog, nq, gk, nkv, group, kv_heads)
        full, n = _bounds(t, seq_q, seq_k)
        _load_kv(k_desc, k_smem, k_full, k_empty, it, b, kv, 0)
        qph = (r & 1) ^ 1
        _load_q(q_desc, q_smem, q_full, q_empty, qph, b, h, t * 128, 0)
        _load_q(q_desc, q_smem, q_full, q_empty, qph, b, h, t * 128 + 64, 1)
        for j in range(1, n):
            _load_kv(k_desc, k_smem, k_full, k_empty, it + j, b, kv, j * 128)
            _load_kv(v_desc, v_smem, v_full, v_empty, it + j - 1, b, kv, (j - 1) * 128)
        _load_kv(v_desc, v_smem, v_full, v_empty, it + n - 1, b, kv, (n - 1) * 128)
        it += n


# ----------------------------------------------------------------------------
# consumers
# ----------------------------------------------------------------------------

@gluon.jit
def _to_f16(x):
    return gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x],
                                     dtype=gl.float16, is_pure=True, pack=2)


@gluon.jit
def _round(q, k_smem, v_smem, q_empty, k_full, k_empty, v_full, v_empty,
           o, p, mc, l, it, c, sgn, cols, lim, last,
           W: gl.constexpr, MASK: gl.constexpr, PRESCALE: gl.constexpr,
           L: gl.constexpr, LP: gl.constexpr):
    st = it & 1
    ph = (it >> 1) & 1
    pit = it - 1
    pst = pit & 1
    pph = (pit >> 1) & 1

    # S of this round, then O += P V of the round before
    mbarrier.wait(k_full.index(st), ph)
    zero = gl.full((64, 128), 0.0, gl.float32, L)
    s = warpgroup_mma(q, k_smem.index(st).reshape((128, 128)).permute((1, 0)), zero,
                      use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(pst), pph)
    o = warpgroup_mma(p, v_smem.index(pst).reshape((128, 128)), o,
                      use_acc=True, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(st), count=1)

    if MASK:
        if last:
            mbarrier.arrive(q_empty.index(W), count=1)
    if PRESCALE:
        s = s * sgn
    if MASK:
        s = gl.where(cols[None, :] <= lim[:, None], s, float("-inf"))

    # mc is the running maximum times c
    mn = gl.maximum(mc, gl.max(s, 1) * c)
    if MASK:
        ms = gl.where(mn == float("-inf"), 0.0, mn)
    else:
        ms = mn
    alpha = gl.exp2(mc - ms)
    e = gl.exp2(s * c - ms[:, None])
    l = l * alpha + gl.sum(e, 1)

    o = warpgroup_mma_wait(0, deps=[o])
    mbarrier.arrive(v_empty.index(pst), count=1)
    o = o * alpha[:, None]
    p = gl.convert_layout(_to_f16(e), LP)
    return o, p, mn, l


@gluon.jit
def _consumer(o_desc, q_smem, k_smem, v_smem, o_smem,
              q_full, q_empty, k_full, k_empty, v_full, v_empty,
              pid, nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k,
              c, sgn, W: gl.constexpr, PRESCALE: gl.constexpr):
    L: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1],
                                                instr_shape=[16, 128, 16])
    LP: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=L, k_width=2)

    q = q_smem.index(W).reshape((64, 128))
    o_place = o_smem.index(W)
    rows = gl.arange(0, 64, gl.SliceLayout(1, L))
    cols = gl.arange(0, 128, gl.SliceLayout(0, L))

    cnt = _turns(pid, nprog, total)
    it = 0
    for r in range(0, cnt):
        b, h, kv, t = _tile(r, pid, nprog, nq, gk, nkv, group, kv_heads)
        full, n = _bounds(t, seq_q, seq_k)
        row0 = t * 128 + W * 64
        lim = rows + (row0 + seq_k - seq_q)

        # round 0: nothing to overlap with yet
        mbarrier.wait(q_full.index(W), r & 1)
        st = it & 1
        mbarrier.wait(k_full.index(st), (it >> 1) & 1)
        zero = gl.full((64, 128), 0.0, gl.float32, L)
        s = warpgroup_mma(q, k_smem.index(st).reshape((128, 128)).permute((1, 0)), zero,
                          use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(st), count=1)
        if PRESCALE:
            s = s * sgn
        if full == 0:
            s = gl.where(cols[None, :] <= lim[:, None], s, float("-inf"))
        mc = gl.max(s, 1) * c
        ms = gl.where(mc == float("-inf"), 0.0, mc)
        e = gl.exp2(s * c - ms[:, None])
        l = gl.sum(e, 1)
        p = gl.convert_layout(_to_f16(e), LP)
        o = gl.full((64, 128), 0.0, gl.float32, L)

        # 1. tiles wholly below the diagonal
        for j in range(1, full):
            o, p, mc, l = _round(q, k_smem, v_smem, q_empty, k_full, k_empty, v_full, v_empty,
                                 o, p, mc, l, it + j, c, sgn, cols, lim, j == n - 1,
                                 W, False, PRESCALE, L, LP)

        # 2. tiles on the diagonal or at the end of the keys
        first = gl.maximum(full, 1)
        for j in range(first, n):
            o, p, mc, l = _round(q, k_smem, v_smem, q_empty, k_full, k_empty, v_full, v_empty,
                                 o, p, mc, l, it + j, c, sgn, cols, lim - j * 128, j == n - 1,
                                 W, True, PRESCALE, L, LP)

        # without a masked round Q's place has not been given back yet
        if n <= first:
            mbarrier.arrive(q_empty.index(W), count=1)

        # the last product
        it += n
        pit = it - 1
        pst = pit & 1
        mbarrier.wait(v_full.index(pst), (pit >> 1) & 1)
        acc = warpgroup_mma(p, v_smem.index(pst).reshape((128, 128)), o,
                            use_acc=True, is_async=True)
        res = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(pst), count=1)

        inv = 1.0 / gl.where(l == 0.0, 1.0, l)
        l2 = l[:, None]
        res = gl.where(l2 == 0.0, 0.0, res * inv[:, None])

        tma.store_wait(0)
        o_place.reshape((64, 128)).store(res.to(gl.float16))
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [b, h, row0, 0], o_place)

    tma.store_wait(0)


# ----------------------------------------------------------------------------
# kernels
# ----------------------------------------------------------------------------

@gluon.jit(do_not_specialize=["nprog", "total", "nq", "gk", "nkv", "group", "kv_heads",
                              "seq_q", "seq_k", "c", "sgn"])
def _attention_kernel(q_desc, k_desc, v_desc, o_desc,
                      nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k,
                      c, sgn, PRESCALE: gl.constexpr):
    q_smem = gl.allocate_shared_memory(gl.float16, [2, 1, 1, 64, 128], q_desc.layout)
    k_smem = gl.allocate_shared_memory(gl.float16, [2, 1, 1, 128, 128], k_desc.layout)
    v_smem = gl.allocate_shared_memory(gl.float16, [2, 1, 1, 128, 128], v_desc.layout)
    o_smem = gl.allocate_shared_memory(gl.float16, [2, 1, 1, 64, 128], o_desc.layout)

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

    pid = gl.program_id(0)
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1

    gl.warp_specialize([
        (_consumer, (o_desc, q_smem, k_smem, v_smem, o_smem,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     pid, nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k,
                     c, sgn, W0, PRESCALE)),
        (_consumer, (o_desc, q_smem, k_smem, v_smem, o_smem,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     pid, nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k,
                     c, sgn, W1, PRESCALE)),
        (_producer, (q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                     q_full, q_empty, k_full, k_empty, v_full, v_empty,
                     pid, nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k)),
    ], [4, 1], [240, 24])


@gluon.jit(do_not_specialize=["rows", "seq", "heads", "ss0", "ss1", "ss2", "ds0", "ds1", "ds2"])
def _copy_kernel(src, dst, rows, seq, heads, ss0, ss1, ss2, ds0, ds1, ds2,
                 DIM: gl.constexpr):
    # for tensors whose strides or address TMA cannot take
    B: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    r = gl.program_id(0) * 32 + gl.arange(0, 32, gl.SliceLayout(1, B))
    col = gl.arange(0, DIM, gl.SliceLayout(0, B))
    h = (r % heads).to(gl.int64)
    rs = r // heads
    s = (rs % seq).to(gl.int64)
    b = (rs // seq).to(gl.int64)
    so = b * ss0 + s * ss1 + h * ss2
    do = b * ds0 + s * ds1 + h * ds2
    ok = r < rows
    mask = ok[:, None] & (col[None, :] < DIM)
    x = gl.load(src + (so[:, None] + col[None, :]), mask=mask)
    gl.store(dst + (do[:, None] + col[None, :]), x, mask=mask)


# ----------------------------------------------------------------------------
# host
# ----------------------------------------------------------------------------

_SMS = {}
_LOG2E = 1.4426950408889634


def _sm_count(device):
    key = device.index
    if key not in _SMS:
        _SMS[key] = torch.cuda.get_device_properties(device).multi_processor_count
    return _SMS[key]


def _tma_ok(x):
    if x.data_ptr() % 16 != 0:
        return False
    if x.stride(3) != 1:
        return False
    for axis in range(3):
        if x.shape[axis] > 1:
            st = x.stride(axis)
            if st <= 0 or st % 8 != 0:
                return False
    return True


def _copy(src, dst):
    batch, seq, heads, dim = src.shape
    rows = batch * seq * heads
    _copy_kernel[((rows + 31) // 32,)](
        src, dst, rows, seq, heads,
        src.stride(0), src.stride(1), src.stride(2),
        dst.stride(0), dst.stride(1), dst.stride(2),
        dim, num_warps=4)


def _descriptor(x, rows):
    batch, seq, heads, dim = x.shape
    strides = [x.stride(a) if x.shape[a] > 1 else dim for a in range(3)]
    block = [1, 1, rows, dim]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(x, [batch, heads, seq, dim],
                            [strides[0], strides[2], strides[1], 1], block, layout)


def _input(x):
    if _tma_ok(x):
        return x
    y = torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    _copy(x, y)
    return y


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads

    qi = _input(q)
    ki = _input(k)
    vi = _input(v)
    direct = _tma_ok(out)
    oi = out if direct else torch.empty(tuple(out.shape), dtype=out.dtype, device=out.device)

    q_desc = _descriptor(qi, 64)
    k_desc = _descriptor(ki, 128)
    v_desc = _descriptor(vi, 128)
    o_desc = _descriptor(oi, 64)

    nq = (seq_q + 127) // 128
    nkv = batch * kv_heads
    total = batch * heads * nq

    # kv heads in groups whose keys and values fit in 32 MiB
    gk = max(1, (32 << 20) // (seq_k * dim * 4))
    gk = min(gk, nkv)
    parts = (nkv + gk - 1) // gk
    gk = (nkv + parts - 1) // parts

    nprog = min(_sm_count(q.device), total)

    scale = float(scale)
    if scale > 0.0:
        prescale, sgn, c = False, 1.0, scale * _LOG2E
    elif scale < 0.0:
        prescale, sgn, c = True, -1.0, -scale * _LOG2E
    else:
        prescale, sgn, c = True, 0.0, 1.0

    _attention_kernel[(nprog,)](
        q_desc, k_desc, v_desc, o_desc,
        nprog, total, nq, gk, nkv, group, kv_heads, seq_q, seq_k,
        c, sgn, prescale, num_warps=4)

    if not direct:
        _copy(oi, out)
