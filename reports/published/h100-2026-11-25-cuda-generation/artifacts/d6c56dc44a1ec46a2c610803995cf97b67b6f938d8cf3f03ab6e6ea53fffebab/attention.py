from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
THREADS = 384
TILE_BYTES = 128 * 128 * 2
STAGES = 3
SHARED = TILE_BYTES * (1 + 2 * STAGES) + 128 + 1024


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    for axis in range(3):
        if t.shape[axis] > 1 and t.stride(axis) % 8 != 0:
            return False
    return True


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads = q.shape[0], q.shape[1], q.shape[2]
    seq_k, kv_heads = k.shape[1], k.shape[2]
    aligned = 1 if all(_aligned(t) for t in (q, k, v, out)) else 0
    kernel = SOURCE.kernel(f"causal_gqa<{aligned}>")
    grid = (heads, batch, (seq_q + BM - 1) // BM)
    kernel[grid, THREADS, SHARED](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(seq_q), int(seq_k), int(heads // kv_heads), float(scale),
    )
