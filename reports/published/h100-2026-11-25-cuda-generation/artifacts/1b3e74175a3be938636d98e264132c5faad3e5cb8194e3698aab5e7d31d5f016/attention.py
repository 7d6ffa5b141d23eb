from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BLOCK_M = 128
NUM_SMS = 132
LOG2E = 1.4426950408889634


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    for i in range(3):
        if t.shape[i] > 1 and t.stride(i) % 8 != 0:
            return False
    return True


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]

    scale = float(scale)
    neg = 1 if scale < 0.0 else 0
    mag = max(abs(scale), 1e-30)
    aligned = 1 if (_aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)) else 0

    stages = 2 if dim == 128 else 4
    tile = 128 * dim * 2
    shared = (2 + 2 * stages) * tile + 1024 + 256

    m_tiles = (seq_q + BLOCK_M - 1) // BLOCK_M
    grid = min(NUM_SMS, batch * heads * m_tiles)

    kernel = SOURCE.kernel(f"attn_fwd<{dim}, {neg}, {aligned}>")
    kernel[grid, 384, shared](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(heads), int(batch * heads), int(seq_q), int(seq_k),
        float(mag * LOG2E),
    )
