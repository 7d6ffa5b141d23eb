import torch
import triton
import triton.language as tl

try:  # host-side TMA descriptors (newer Triton); otherwise plain pointers
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # pragma: no cover
    TensorDescriptor = None


# --------------------------------------------------------------------------
# Version 1: K, V and Q come through tensor descriptors (TMA).
# --------------------------------------------------------------------------
@triton.jit(do_not_specialize=["seq_q", "seq_k", "group"])
def _attn_tma(
    q_desc, k_desc, v_desc, o_ptr,
    so_b, so_s, so_h,
    seq_q, seq_k, group, qk_scale,
    D: tl.constexpr, DV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    POS: tl.constexpr,
):
    h = tl.program_id(0)
    # the longest rows of tiles first: the tail of the launch is short work
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    b = tl.program_id(2)
    g = h // group

    delta = seq_k - seq_q
    row0 = i * BM
    full = tl.maximum(row0 + delta + 1, 0) // BN
    tiles = tl.minimum((seq_k + BN - 1) // BN,
                       (tl.maximum(row0 + BM + delta, 0) + BN - 1) // BN)

    offs_m = row0 + tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_v = tl.arange(0, DV)

    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    q = tl.reshape(q_desc.load([b, h, row0, 0]), [BM, D])

    # key tiles that every row sees in full: no mask
    for start in tl.range(0, full * BN, BN):
        k = tl.reshape(k_desc.load([b, g, start, 0]), [BN, D])
        s = tl.dot(q, tl.trans(k))
        if POS:
            m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
            p = tl.exp2(s * qk_scale - m_new[:, None])
        else:
            s = s * qk_scale
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l_step = tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = tl.reshape(v_desc.load([b, g, start, 0]), [BN, DV])
        acc = tl.dot(p.to(v.dtype), v, acc)
        l = l * alpha + l_step
        m = m_new

    # key tiles that cross the diagonal.  For a row that exists,
    # k <= q + delta implies k < seq_k, so one condition does both.
    for start in tl.range(full * BN, tiles * BN, BN):
        k = tl.reshape(k_desc.load([b, g, start, 0]), [BN, D])
        s = tl.dot(q, tl.trans(k)) * qk_scale
        s = tl.where((start + offs_n)[None, :] <= (offs_m + delta)[:, None],
                     s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m - m_safe)
        l_step = tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = tl.reshape(v_desc.load([b, g, start, 0]), [BN, DV])
        acc = tl.dot(p.to(v.dtype), v, acc)
        l = l * alpha + l_step
        m = m_new

    l_inv = 1.0 / tl.where(l == 0.0, 1.0, l)
    o = acc * l_inv[:, None]
    o_base = o_ptr + b.to(tl.int64) * so_b + h.to(tl.int64) * so_h
    o_ptrs = o_base + offs_m.to(tl.int64)[:, None] * so_s + offs_v[None, :]
    tl.store(o_ptrs, o.to(o_ptr.dtype.element_ty),
             mask=offs_m[:, None] < seq_q)


# --------------------------------------------------------------------------
# Version 2: plain pointers, any strides.
# --------------------------------------------------------------------------
@triton.jit(do_not_specialize=["seq_q", "seq_k", "group"])
def _attn_ptr(
    q_ptr, k_ptr, v_ptr, o_ptr,
    sq_b, sq_s, sq_h,
    sk_b, sk_s, sk_h,
    sv_b, sv_s, sv_h,
    so_b, so_s, so_h,
    seq_q, seq_k, group, qk_scale,
    D: tl.constexpr, DV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    POS: tl.constexpr,
):
    h = tl.program_id(0)
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    b = tl.program_id(2)
    g = h // group
    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)
    g64 = g.to(tl.int64)

    delta = seq_k - seq_q
    row0 = i * BM
    full = tl.maximum(row0 + delta + 1, 0) // BN
    tiles = tl.minimum((seq_k + BN - 1) // BN,
                       (tl.maximum(row0 + BM + delta, 0) + BN - 1) // BN)

    offs_m = row0 + tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, D)
    offs_v = tl.arange(0, DV)

    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    q_base = q_ptr + b64 * sq_b + h64 * sq_h
    q = tl.load(q_base + offs_m.to(tl.int64)[:, None] * sq_s + offs_d[None, :],
                mask=offs_m[:, None] < seq_q, other=0.0)

    k_base = k_ptr + b64 * sk_b + g64 * sk_h
    v_base = v_ptr + b64 * sv_b + g64 * sv_h
    offs_n64 = offs_n.to(tl.int64)
    # K is loaded with its axes exchanged: (D, BN)
    k_ptrs = k_base + offs_n64[None, :] * sk_s + offs_d[:, None]
    v_ptrs = v_base + offs_n64[:, None] * sv_s + offs_v[None, :]
    bn64 = tl.full([], BN, tl.int64)
    k_step = bn64 * sk_s
    v_step = bn64 * sv_s

    for start in tl.range(0, full * BN, BN):
        k = tl.load(k_ptrs)
        s = tl.dot(q, k)
        if POS:
            m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
            p = tl.exp2(s * qk_scale - m_new[:, None])
        else:
            s = s * qk_scale
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l_step = tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = tl.load(v_ptrs)
        acc = tl.dot(p.to(v.dtype), v, acc)
        l = l * alpha + l_step
        m = m_new
        k_ptrs += k_step
        v_ptrs += v_step

    for start in tl.range(full * BN, tiles * BN, BN):
        cols = start + offs_n
        k = tl.load(k_ptrs, mask=cols[None, :] < seq_k, other=0.0)
        s = tl.dot(q, k) * qk_scale
        s = tl.where(cols[None, :] <= (offs_m + delta)[:, None],
                     s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m - m_safe)
        l_step = tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = tl.load(v_ptrs, mask=cols[:, None] < seq_k, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)
        l = l * alpha + l_step
        m = m_new
        k_ptrs += k_step
        v_ptrs += v_step

    l_inv = 1.0 / tl.where(l == 0.0, 1.0, l)
    o = acc * l_inv[:, None]
    o_base = o_ptr + b64 * so_b + h64 * so_h
    o_ptrs = o_base + offs_m.to(tl.int64)[:, None] * so_s + offs_v[None, :]
    tl.store(o_ptrs, o.to(o_ptr.dtype.element_ty),
             mask=offs_m[:, None] < seq_q)


# --------------------------------------------------------------------------
# Host
# --------------------------------------------------------------------------
# (kind, BM, BN, num_warps, num_stages)
_TMA_CONFIGS = [
    ("tma", 128, 128, 8, 3),
    ("tma", 128, 128, 8, 2),
    ("tma", 128, 64, 4, 2),
]
_PTR_CONFIGS = [
    ("ptr", 128, 128, 8, 2),
    ("ptr", 128, 128, 8, 3),
]
_PTR_ONLY_CONFIGS = [
    ("ptr", 128, 128, 8, 2),
    ("ptr", 128, 128, 8, 3),
    ("ptr", 128, 64, 4, 2),
]
# always small enough; reached only if everything before it failed
_LAST_RESORT = [
    ("ptr", 128, 64, 8, 2),
    ("ptr", 64, 64, 4, 2),
]

_BEST = {}
_DEFAULT = {}
_CAP = {}


def _hopper(device):
    r = _CAP.get(device)
    if r is None:
        r = torch.cuda.get_device_capability(device)[0] >= 9
        _CAP[device] = r
    return r


def _tma_ok(t):
    es = t.element_size()
    if t.data_ptr() % 16 != 0 or t.stride(3) != 1:
        return False
    if (t.shape[3] * es) % 16 != 0:
        return False
    for a in range(3):
        if t.shape[a] > 1:
            st = t.stride(a)
            if st <= 0 or (st * es) % 16 != 0:
                return False
    return True


def _desc(t, rows):
    # (batch, heads, seq, dim) view; a stride of an axis of length 1 is free
    d = t.shape[3]
    shape = [t.shape[0], t.shape[2], t.shape[1], d]
    strides = []
    for a in (0, 2, 1):
        strides.append(t.stride(a) if t.shape[a] > 1 else d)
    strides.append(1)
    return TensorDescriptor(t, shape, strides, [1, 1, rows, d])


def _launch(cfg, q, k, v, out, c):
    kind, bm, bn, warps, stages = cfg
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    dim_v = v.shape[3]
    group = heads // kv_heads
    grid = (heads, (seq_q + bm - 1) // bm, batch)
    if kind == "tma":
        _attn_tma[grid](
            _desc(q, bm), _desc(k, bn), _desc(v, bn), out,
            out.stride(0), out.stride(1), out.stride(2),
            seq_q, seq_k, group, c,
            D=dim, DV=dim_v, BM=bm, BN=bn, POS=(c >= 0.0),
            num_warps=warps, num_stages=stages,
        )
    else:
        _attn_ptr[grid](
            q, k, v, out,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), out.stride(2),
            seq_q, seq_k, group, c,
            D=dim, DV=dim_v, BM=bm, BN=bn, POS=(c >= 0.0),
            num_warps=warps, num_stages=stages,
        )


def _tune(configs, q, k, v, out, c):
    best, best_t = None, float("inf")
    for cfg in configs:
        try:
            t = triton.testing.do_bench(
                lambda: _launch(cfg, q, k, v, out, c), warmup=10, rep=50)
        except Exception:
            continue
        if t < best_t:
            best, best_t = cfg, t
    return best


def attention(q, k, v, out, *, scale: float) -> None:
    # softmax in base 2
    c = float(scale) * 1.4426950408889634

    tma = (TensorDescriptor is not None and _hopper(q.device)
           and _tma_ok(q) and _tma_ok(k) and _tma_ok(v))
    key = (tuple(q.shape), tuple(k.shape), tuple(v.shape), q.dtype, tma,
           c >= 0.0)
    cfg = _BEST.get(key)
    if cfg is not None:
        _launch(cfg, q, k, v, out, c)
        return

    configs = (_TMA_CONFIGS + _PTR_CONFIGS) if tma else _PTR_ONLY_CONFIGS

    # large problems: the first call picks the fastest of a handful
    work = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    if work >= (1 << 29) and not torch.cuda.is_current_stream_capturing():
        cfg = _tune(configs, q, k, v, out, c)
        if cfg is not None:
            _BEST[key] = cfg
            _launch(cfg, q, k, v, out, c)
            return

    # others: the first configuration that compiles and fits
    dkey = (q.dtype, q.shape[3], v.shape[3], tma)
    order = configs + _LAST_RESORT
    known = _DEFAULT.get(dkey)
    if known is not None:
        order = [known] + [x for x in order if x != known]
    error = None
    for cfg in order:
        try:
            _launch(cfg, q, k, v, out, c)
        except Exception as e:
            error = e
            continue
        _DEFAULT[dkey] = cfg
        _BEST[key] = cfg
        return
    raise error
