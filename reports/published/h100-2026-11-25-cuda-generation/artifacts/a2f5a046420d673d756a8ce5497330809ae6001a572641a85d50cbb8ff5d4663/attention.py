from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
BN = 128
THREADS = 256


def _aligned(t):
    """Pointer and strides allow 16-byte accesses (8 elements of two bytes)."""
    if t.data_ptr() % 16:
        return False
    return all(n == 1 or s % 8 == 0 for n, s in zip(t.shape[:3], t.stride()[:3]))


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    vec = _aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)
    kernel = SOURCE.kernel(f"attention_kernel<{dim}, {'true' if vec else 'false'}>")
    grid = ((seq_q + BM - 1) // BM, heads, batch)
    shared = 1024 + 5 * 128 * dim * 2  # Q, two of K, two of V, alignment
    kernel[grid, THREADS, shared](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(seq_q), int(seq_k), int(group), float(scale),
    )
