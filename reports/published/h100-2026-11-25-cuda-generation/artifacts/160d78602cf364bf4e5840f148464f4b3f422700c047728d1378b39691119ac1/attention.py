from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
BN = 128


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    for axis in range(3):
        if t.shape[axis] > 1 and t.stride(axis) % 8 != 0:
            return False
    return True


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    kv_heads = k.shape[2]
    group = heads // kv_heads
    stages = 3 if dim == 64 else 2
    shared = BM * dim * 2 + 2 * stages * BN * dim * 2 + 1024 + 256
    vec = _aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)
    kernel = SOURCE.kernel(f"causal_mha<{dim}>")
    grid = ((seq_q + BM - 1) // BM, heads, batch)
    kernel[grid, 288, shared](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(seq_q), int(seq_k), int(group), float(scale), bool(vec),
    )
