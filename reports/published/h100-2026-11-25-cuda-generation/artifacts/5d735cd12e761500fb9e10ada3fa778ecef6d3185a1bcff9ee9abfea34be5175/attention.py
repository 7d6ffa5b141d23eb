from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

LOG2E = 1.4426950408889634
STAGES = 3
TILE_BYTES = 128 * 128 * 2
FAST_SHARED = (1 + 2 * STAGES) * TILE_BYTES + 1024 + 128
L2_BUDGET = 16 * 1024 * 1024

_STATE = {"fast": True}


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    for axis in range(3):
        if t.shape[axis] > 1 and t.stride(axis) % 8 != 0:
            return False
    return True


def _strides(t):
    return c_int64(t.stride(0)), c_int64(t.stride(1)), c_int64(t.stride(2))


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    dim_v = v.shape[3]
    group = heads // kv_heads
    scale_log2 = float(scale) * LOG2E
    n_tiles = (seq_q + 127) // 128
    aligned = _aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)
    strides = (*_strides(q), *_strides(k), *_strides(v), *_strides(out))

    if _STATE["fast"] and aligned and dim == 128 and dim_v == 128 and scale_log2 > 1e-30:
        try:
            n_bh = batch * heads
            kv_bytes = seq_k * (dim + dim_v) * 2
            section = min(n_bh, max(1, L2_BUDGET // kv_bytes) * group)
            kernel = SOURCE.kernel(f"attn_wgmma<{STAGES}>")
            kernel[n_tiles * n_bh, 384, FAST_SHARED](
                q, k, v, out, *strides,
                seq_q, seq_k, heads, group, n_bh, section, n_tiles, scale_log2)
            return
        except Exception:
            _STATE["fast"] = False

    flag = "true" if aligned else "false"
    kernel = SOURCE.kernel(f"attn_mma<{dim}, {dim_v}, {flag}>")
    shared = (128 * dim + 64 * dim + 64 * dim_v) * 2
    kernel[(n_tiles, heads, batch), 128, shared](
        q, k, v, out, *strides, seq_q, seq_k, group, scale_log2)
