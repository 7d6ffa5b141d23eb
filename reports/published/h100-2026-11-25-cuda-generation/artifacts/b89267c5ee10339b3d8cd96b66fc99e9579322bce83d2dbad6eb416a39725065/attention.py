from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
THREADS = 384
# Q, two stages of K, two stages of V (32 KiB each), alignment, barriers
SHARED = 5 * 32768 + 1024 + 128


def _vectors(t):
    """16-byte copies are possible: pointer and strides are multiples of 16 bytes."""
    return t.data_ptr() % 16 == 0 and all(s % 8 == 0 for s in t.stride()[:-1])


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    assert dim == 128 and v.shape[3] == 128
    aligned = all(_vectors(t) for t in (q, k, v, out))
    positive = scale > 0
    name = "causal_gqa<%s, %s>" % (
        "true" if aligned else "false",
        "true" if positive else "false",
    )
    kernel = SOURCE.kernel(name)
    grid = ((seq_q + BM - 1) // BM, heads, batch)
    kernel[grid, THREADS, SHARED](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(seq_q), int(seq_k), int(heads // kv_heads), float(scale),
    )
