import torch
import triton
import triton.language as tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # older Triton: pointers only
    TensorDescriptor = None

_LOG2E = 1.4426950408889634
_BM = 128


@triton.jit
def _softmax_step(s, m, l, acc, sl2, limit, cols,
                  MASKED: tl.constexpr, POS: tl.constexpr):
    # s: raw scores. With a positive scale the multiplication is folded into
    # the maximum and into the exponent's FMA.
    if not POS:
        s = s * sl2
    if MASKED:
        s = tl.where(cols[None, :] <= limit[:, None], s, float("-inf"))
    if POS:
        m_new = tl.maximum(m, tl.max(s, 1) * sl2)
    else:
        m_new = tl.maximum(m, tl.max(s, 1))
    if MASKED:
        # a row that has seen no key yet: -inf minus -inf would be NaN
        m_ref = tl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_ref = m_new
    if POS:
        p = tl.math.exp2(s * sl2 - m_ref[:, None])
    else:
        p = tl.math.exp2(s - m_ref[:, None])
    alpha = tl.math.exp2(m - m_ref)
    l = l * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    return p, m_new, l, acc


@triton.jit(do_not_specialize=["seq_q", "seq_k"])
def _fwd_tma(desc_q, desc_k, desc_v, desc_o, sl2, seq_q, seq_k,
             GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
             POS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    h = tl.program_id(0)
    t = tl.num_programs(1) - 1 - tl.program_id(1)
    b = tl.program_id(2)
    g = h // GROUP
    delta = seq_k - seq_q

    first = tl.maximum(t * BM + 1 + delta, 0)
    last = tl.maximum(t * BM + BM + delta, 0)
    full = first // BN
    tiles = tl.minimum((seq_k + BN - 1) // BN, (last + BN - 1) // BN)

    q_row = b * seq_q + t * BM
    k_row = b * seq_k
    k_col = g * D
    v_col = g * DV

    offs_n = tl.arange(0, BN)
    limit = t * BM + tl.arange(0, BM) + delta

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DV], tl.float32)

    q = desc_q.load([q_row, h * D])

    # key tiles that every row sees entirely
    for start in range(0, full * BN, BN):
        k = desc_k.load([k_row + start, k_col])
        s = tl.dot(q, tl.trans(k))
        p, m, l, acc = _softmax_step(s, m, l, acc, sl2, limit, start + offs_n,
                                     False, POS)
        v = desc_v.load([k_row + start, v_col])
        acc = tl.dot(p.to(v.dtype), v, acc)

    # key tiles at the diagonal
    for start in range(full * BN, tiles * BN, BN):
        k = desc_k.load([k_row + start, k_col])
        s = tl.dot(q, tl.trans(k))
        p, m, l, acc = _softmax_step(s, m, l, acc, sl2, limit, start + offs_n,
                                     True, POS)
        v = desc_v.load([k_row + start, v_col])
        acc = tl.dot(p.to(v.dtype), v, acc)

    inv = tl.where(l > 0.0, 1.0 / l, 0.0)
    acc = acc * inv[:, None]
    desc_o.store([q_row, h * DV], acc.to(q.dtype))


@triton.jit(do_not_specialize=["seq_q", "seq_k"])
def _fwd_ptr(Q, K, V, O, sl2,
             sqb, sqn, sqh,
             skb, skn, skh,
             svb, svn, svh,
             sob, son, soh,
             seq_q, seq_k,
             GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
             POS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    h = tl.program_id(0)
    t = tl.num_programs(1) - 1 - tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    g = (h // GROUP).to(tl.int64)
    hh = h.to(tl.int64)
    row0 = (t * BM).to(tl.int64)
    delta = seq_k - seq_q

    first = tl.maximum(t * BM + 1 + delta, 0)
    last = tl.maximum(t * BM + BM + delta, 0)
    full = first // BN
    tiles = tl.minimum((seq_k + BN - 1) // BN, (last + BN - 1) // BN)

    offs_m = tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, D)
    offs_v = tl.arange(0, DV)
    rows = t * BM + offs_m
    limit = rows + delta
    row_ok = rows < seq_q

    q_base = Q + b * sqb + hh * sqh + row0 * sqn
    o_base = O + b * sob + hh * soh + row0 * son
    k_base = K + b * skb + g * skh
    v_base = V + b * svb + g * svh

    k_off = offs_n[:, None] * skn + offs_d[None, :]
    v_off = offs_n[:, None] * svn + offs_v[None, :]

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DV], tl.float32)

    q = tl.load(q_base + (offs_m[:, None] * sqn + offs_d[None, :]),
                mask=row_ok[:, None], other=0.0)

    # key tiles that every row sees entirely: they lie inside the tensor
    for start in range(0, full * BN, BN):
        k = tl.load(k_base + k_off)
        s = tl.dot(q, tl.trans(k))
        p, m, l, acc = _softmax_step(s, m, l, acc, sl2, limit, start + offs_n,
                                     False, POS)
        v = tl.load(v_base + v_off)
        acc = tl.dot(p.to(v.dtype), v, acc)
        k_base += BN * skn
        v_base += BN * svn

    # key tiles at the diagonal; a ragged last tile is among them
    for start in range(full * BN, tiles * BN, BN):
        n_ok = (start + offs_n) < seq_k
        k = tl.load(k_base + k_off, mask=n_ok[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k))
        p, m, l, acc = _softmax_step(s, m, l, acc, sl2, limit, start + offs_n,
                                     True, POS)
        v = tl.load(v_base + v_off, mask=n_ok[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)
        k_base += BN * skn
        v_base += BN * svn

    inv = tl.where(l > 0.0, 1.0 / l, 0.0)
    acc = acc * inv[:, None]
    tl.store(o_base + (offs_m[:, None] * son + offs_v[None, :]),
             acc.to(q.dtype), mask=row_ok[:, None])


def _set_blocks(nargs):
    bn = nargs["BN"]
    dk = nargs["desc_k"]
    dv = nargs["desc_v"]
    dk.block_shape = [bn, dk.block_shape[1]]
    dv.block_shape = [bn, dv.block_shape[1]]


_CHOICES = [(128, 2), (128, 3), (64, 2), (64, 3)]

_fwd_tma_tuned = triton.autotune(
    configs=[triton.Config({"BM": _BM, "BN": bn}, num_warps=8, num_stages=st,
                           pre_hook=_set_blocks) for bn, st in _CHOICES],
    key=["seq_q", "seq_k", "GROUP"],
)(_fwd_tma)

_fwd_ptr_tuned = triton.autotune(
    configs=[triton.Config({"BM": _BM, "BN": bn}, num_warps=8, num_stages=st)
             for bn, st in _CHOICES],
    key=["seq_q", "seq_k", "GROUP"],
)(_fwd_ptr)

_state = {"tma": TensorDescriptor is not None}


def _is_flat(x):
    # can (batch, seq, heads, dim) be seen as a (batch * seq, heads * dim) matrix
    # that TMA accepts?
    B, N, H, D = x.shape
    sb, sn, sh, sd = x.stride()
    return (sd == 1
            and (H == 1 or sh == D)
            and (B == 1 or sb == N * sn)
            and sn >= H * D
            and (sn * x.element_size()) % 16 == 0
            and x.data_ptr() % 16 == 0
            and B * N < 2 ** 31)


def _descriptor(x, rows):
    B, N, H, D = x.shape
    sn = x.stride(1)
    flat = x.as_strided((B * N, H * D), (sn, 1))
    return TensorDescriptor(flat, [B * N, H * D], [sn, 1], [rows, D])


def attention(q, k, v, out, *, scale: float) -> None:
    B, Nq, H, D = q.shape
    Nk, Hkv = k.shape[1], k.shape[2]
    DV = v.shape[3]
    group = H // Hkv

    sl2 = float(scale) * _LOG2E
    pos = sl2 > 1e-30
    grid = (H, (Nq + _BM - 1) // _BM, B)
    large = B * H * Nq * Nk >= (1 << 29)

    if (_state["tma"]
            and Nq % _BM == 0 and Nk % 128 == 0
            and torch.cuda.get_device_capability(q.device)[0] >= 9
            and _is_flat(q) and _is_flat(k) and _is_flat(v) and _is_flat(out)):
        try:
            dq = _descriptor(q, _BM)
            dk = _descriptor(k, 128)
            dv = _descriptor(v, 128)
            do = _descriptor(out, _BM)
            if large:
                _fwd_tma_tuned[grid](dq, dk, dv, do, sl2, Nq, Nk,
                                     GROUP=group, D=D, DV=DV, POS=pos)
            else:
                _fwd_tma[grid](dq, dk, dv, do, sl2, Nq, Nk,
                               GROUP=group, D=D, DV=DV, POS=pos,
                               BM=_BM, BN=128, num_warps=8, num_stages=2)
            return
        except Exception:
            # this Triton cannot compile the descriptor version: use pointers
            _state["tma"] = False

    args = (q, k, v, out, sl2,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), out.stride(2),
            Nq, Nk)
    if large:
        _fwd_ptr_tuned[grid](*args, GROUP=group, D=D, DV=DV, POS=pos)
    else:
        _fwd_ptr[grid](*args, GROUP=group, D=D, DV=DV, POS=pos,
                       BM=_BM, BN=64, num_warps=8, num_stages=2)
