import time

import torch
import triton
import triton.language as tl

try:  # host-side TMA descriptors (newer Triton only)
    from triton.tools.tensor_descriptor import TensorDescriptor
except Exception:  # pragma: no cover
    TensorDescriptor = None


_LOG2E = 1.4426950408889634


@triton.jit
def _tile_of(pid, NUM_M, N_BG, SECTION, GROUP, HKV):
    # section -> query tile (heaviest first) -> (batch, kv head) -> head of the group
    sec_tiles = SECTION * NUM_M * GROUP
    sec = pid // sec_tiles
    rem = pid - sec * sec_tiles
    bg0 = sec * SECTION
    nbg = tl.minimum(SECTION, N_BG - bg0)
    width = nbg * GROUP
    mi = rem // width
    rr = rem - mi * width
    bgl = rr // GROUP
    r = rr - bgl * GROUP
    bg = bg0 + bgl
    b = bg // HKV
    g = bg - b * HKV
    h = g * GROUP + r
    m = NUM_M - 1 - mi
    return b, g, h, m


@triton.jit
def _softmax_step(qk, m_i, l_i, qk_scale, offs_m, offs_n, rel,
                  MASKED: tl.constexpr, PRE: tl.constexpr):
    if PRE:
        qk = qk * qk_scale
    if MASKED:
        vis = offs_n[None, :] <= (offs_m[:, None] + rel)
        qk = tl.where(vis, qk, float("-inf"))
    if PRE:
        m_new = tl.maximum(m_i, tl.max(qk, 1))
    else:
        m_new = tl.maximum(m_i, tl.max(qk, 1) * qk_scale)
    if MASKED:
        m_sub = tl.where(m_new == float("-inf"), 0.0, m_new)
    else:
        m_sub = m_new
    if PRE:
        p = tl.math.exp2(qk - m_sub[:, None])
    else:
        p = tl.math.exp2(qk * qk_scale - m_sub[:, None])
    alpha = tl.math.exp2(m_i - m_sub)
    l_new = l_i * alpha + tl.sum(p, 1)
    return p, alpha, m_new, l_new


@triton.jit(do_not_specialize=["N_q", "N_k", "NUM_M", "N_BG", "SECTION", "GROUP", "HKV"])
def _attn_ptr(q_ptr, k_ptr, v_ptr, o_ptr,
              sqb, sqn, sqh,
              skb, skn, skh,
              svb, svn, svh,
              sob, son, soh,
              qk_scale,
              N_q, N_k, NUM_M, N_BG, SECTION, GROUP, HKV,
              D: tl.constexpr, DV: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, PRE: tl.constexpr):
    b, g, h, m = _tile_of(tl.program_id(0), NUM_M, N_BG, SECTION, GROUP, HKV)
    m0 = m * BM
    shift = N_k - N_q

    rows = tl.arange(0, BM)
    offs_m = m0 + rows
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, D)
    offs_dv = tl.arange(0, DV)
    row_ok = offs_m < N_q

    q_base = q_ptr + b.to(tl.int64) * sqb + h.to(tl.int64) * sqh + m0.to(tl.int64) * sqn
    q = tl.load(q_base + rows[:, None] * sqn + offs_d[None, :],
                mask=row_ok[:, None], other=0.0)

    k_base = k_ptr + b.to(tl.int64) * skb + g.to(tl.int64) * skh
    v_base = v_ptr + b.to(tl.int64) * svb + g.to(tl.int64) * svh
    k_off = offs_n[:, None] * skn + offs_d[None, :]
    v_off = offs_n[:, None] * svn + offs_dv[None, :]

    m_i = tl.full([BM], float("-inf"), tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    hi = tl.minimum(m0 + BM, N_q) + shift
    full = tl.maximum(m0 + shift + 1, 0)
    full = (full // BN) * BN

    for start in range(0, full, BN):
        k = tl.load(k_base + start.to(tl.int64) * skn + k_off)
        qk = tl.dot(q, tl.trans(k))
        p, alpha, m_i, l_i = _softmax_step(qk, m_i, l_i, qk_scale, offs_m, offs_n,
                                           shift - start, False, PRE)
        acc = acc * alpha[:, None]
        v = tl.load(v_base + start.to(tl.int64) * svn + v_off)
        acc = tl.dot(p.to(v.dtype), v, acc)

    for start in range(full, hi, BN):
        col_ok = offs_n < (N_k - start)
        k = tl.load(k_base + start.to(tl.int64) * skn + k_off,
                    mask=col_ok[:, None], other=0.0)
        qk = tl.dot(q, tl.trans(k))
        p, alpha, m_i, l_i = _softmax_step(qk, m_i, l_i, qk_scale, offs_m, offs_n,
                                           shift - start, True, PRE)
        acc = acc * alpha[:, None]
        v = tl.load(v_base + start.to(tl.int64) * svn + v_off,
                    mask=col_ok[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)

    l_safe = tl.where(l_i == 0.0, 1.0, l_i)
    o = acc / l_safe[:, None]
    o_base = o_ptr + b.to(tl.int64) * sob + h.to(tl.int64) * soh + m0.to(tl.int64) * son
    tl.store(o_base + rows[:, None] * son + offs_dv[None, :],
             o.to(o_ptr.dtype.element_ty), mask=row_ok[:, None])


@triton.jit(do_not_specialize=["qrb", "qrh", "qch", "krb", "krh", "kch",
                               "vrb", "vrh", "vch",
                               "N_q", "N_k", "NUM_M", "N_BG", "SECTION", "GROUP", "HKV"])
def _attn_tma(q_desc, k_desc, v_desc, o_ptr,
              qrb, qrh, qch,
              krb, krh, kch,
              vrb, vrh, vch,
              sob, son, soh,
              qk_scale,
              N_q, N_k, NUM_M, N_BG, SECTION, GROUP, HKV,
              DV: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, PRE: tl.constexpr):
    b, g, h, m = _tile_of(tl.program_id(0), NUM_M, N_BG, SECTION, GROUP, HKV)
    m0 = m * BM
    shift = N_k - N_q

    rows = tl.arange(0, BM)
    offs_m = m0 + rows
    offs_n = tl.arange(0, BN)
    offs_dv = tl.arange(0, DV)

    q = q_desc.load([b * qrb + h * qrh + m0, h * qch])

    k_row = b * krb + g * krh
    k_col = g * kch
    v_row = b * vrb + g * vrh
    v_col = g * vch

    m_i = tl.full([BM], float("-inf"), tl.float32)
    l_i = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, DV], dtype=tl.float32)

    hi = tl.minimum(m0 + BM, N_q) + shift
    full = tl.maximum(m0 + shift + 1, 0)
    full = (full // BN) * BN

    for start in range(0, full, BN):
        k = k_desc.load([k_row + start, k_col])
        qk = tl.dot(q, tl.trans(k))
        p, alpha, m_i, l_i = _softmax_step(qk, m_i, l_i, qk_scale, offs_m, offs_n,
                                           shift - start, False, PRE)
        acc = acc * alpha[:, None]
        v = v_desc.load([v_row + start, v_col])
        acc = tl.dot(p.to(v.dtype), v, acc)

    for start in range(full, hi, BN):
        k = k_desc.load([k_row + start, k_col])
        qk = tl.dot(q, tl.trans(k))
        p, alpha, m_i, l_i = _softmax_step(qk, m_i, l_i, qk_scale, offs_m, offs_n,
                                           shift - start, True, PRE)
        acc = acc * alpha[:, None]
        v = v_desc.load([v_row + start, v_col])
        acc = tl.dot(p.to(v.dtype), v, acc)

    l_safe = tl.where(l_i == 0.0, 1.0, l_i)
    o = acc / l_safe[:, None]
    o_base = o_ptr + b.to(tl.int64) * sob + h.to(tl.int64) * soh + m0.to(tl.int64) * son
    tl.store(o_base + rows[:, None] * son + offs_dv[None, :],
             o.to(o_ptr.dtype.element_ty), mask=(offs_m < N_q)[:, None])


# (uses TMA, BLOCK_M, BLOCK_N, warps, stages)
_TMA_CONFIGS = [
    (True, 128, 128, 8, 2),
    (True, 128, 128, 8, 3),
    (True, 128, 64, 4, 2),
    (True, 128, 64, 8, 3),
    (False, 128, 128, 8, 2),
]
_PTR_CONFIGS = [
    (False, 128, 128, 8, 2),
    (False, 128, 128, 8, 3),
    (False, 128, 64, 8, 3),
    (False, 128, 64, 4, 2),
]
_SMALL = (False, 64, 64, 4, 2)

_choice = {}


def _rows_view(t):
    """(rows, cols, row stride, rows per batch, rows per head, cols per head) of a
    two-dimensional view that covers t and nothing past its end, or None."""
    B, N, H, D = t.shape
    sb, sn, sh, sd = t.stride()
    if sd != 1 or sn < D or t.data_ptr() % 16 or (sn * t.element_size()) % 16:
        return None
    if B == 1:
        rb = 0
    elif sb >= 0 and sb % sn == 0:
        rb = sb // sn
    else:
        return None
    if H == 1:
        rh, ch = 0, 0
    elif sh >= 0 and (H - 1) * sh + D <= sn:
        rh, ch = 0, sh
    elif sh >= 0 and sh % sn == 0:
        rh, ch = sh // sn, 0
    else:
        return None
    rows = (B - 1) * rb + (H - 1) * rh + N
    cols = (H - 1) * ch + D
    if rows >= 2 ** 31 or cols >= 2 ** 31:
        return None
    return rows, cols, sn, rb, rh, ch


def _launch(cfg, q, k, v, out, views, qk_scale, pre):
    tma, BM, BN, warps, stages = cfg
    B, NQ, H, D = q.shape
    NK, HKV = k.shape[1], k.shape[2]
    DV = v.shape[3]
    group = H // HKV
    num_m = (NQ + BM - 1) // BM
    n_bg = B * HKV

    kv_bytes = max(1, NK * (D + DV) * q.element_size())
    target = max(1, (20 << 20) // kv_bytes)
    n_sec = (n_bg + target - 1) // target
    section = (n_bg + n_sec - 1) // n_sec

    grid = (num_m * n_bg * group,)
    if tma:
        qv, kv, vv = views
        qd = TensorDescriptor(q, [qv[0], qv[1]], [qv[2], 1], [BM, D])
        kd = TensorDescriptor(k, [kv[0], kv[1]], [kv[2], 1], [BN, D])
        vd = TensorDescriptor(v, [vv[0], vv[1]], [vv[2], 1], [BN, DV])
        _attn_tma[grid](
            qd, kd, vd, out,
            qv[3], qv[4], qv[5],
            kv[3], kv[4], kv[5],
            vv[3], vv[4], vv[5],
            out.stride(0), out.stride(1), out.stride(2),
            qk_scale,
            NQ, NK, num_m, n_bg, section, group, HKV,
            DV=DV, BM=BM, BN=BN, PRE=pre,
            num_warps=warps, num_stages=stages,
        )
    else:
        _attn_ptr[grid](
            q, k, v, out,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            out.stride(0), out.stride(1), out.stride(2),
            qk_scale,
            NQ, NK, num_m, n_bg, section, group, HKV,
            D=D, DV=DV, BM=BM, BN=BN, PRE=pre,
            num_warps=warps, num_stages=stages,
        )


def _select(q, k, v, out, views, qk_scale, pre):
    B, NQ, H, D = q.shape
    NK = k.shape[1]
    work = 4.0 * B * H * NQ * NK * D
    if work < 1e11:
        return _SMALL
    cands = _TMA_CONFIGS if views is not None else _PTR_CONFIGS
    if torch.cuda.is_current_stream_capturing():
        return _PTR_CONFIGS[0]
    best, best_t = None, float("inf")
    begin = time.time()
    for cfg in cands:
        if best is not None and time.time() - begin > 90.0:
            break
        try:
            _launch(cfg, q, k, v, out, views, qk_scale, pre)
            t = triton.testing.do_bench(
                lambda: _launch(cfg, q, k, v, out, views, qk_scale, pre),
                warmup=20, rep=80, return_mode="median")
        except Exception:
            continue
        if t < best_t:
            best, best_t = cfg, t
    return best if best is not None else _SMALL


def attention(q, k, v, out, *, scale: float) -> None:
    if out.numel() == 0:
        return
    scale = float(scale)
    qk_scale = scale * _LOG2E
    # The running maximum is taken before scaling, which needs a positive scale.
    pre = not (scale > 0.0)

    B, NQ, H, D = q.shape
    NK, HKV = k.shape[1], k.shape[2]

    views = None
    if TensorDescriptor is not None and NQ % 128 == 0 and NK % 128 == 0:
        vs = (_rows_view(q), _rows_view(k), _rows_view(v))
        if vs[0] is not None and vs[1] is not None and vs[2] is not None:
            views = vs

    key = (B, NQ, H, D, NK, HKV, v.shape[3], q.dtype, q.device.index,
           q.stride(), k.stride(), v.stride(), out.stride(),
           views is not None, pre)
    cfg = _choice.get(key)
    if cfg is None:
        cfg = _select(q, k, v, out, views, qk_scale, pre)
        _choice[key] = cfg
    _launch(cfg, q, k, v, out, views, qk_scale, pre)
