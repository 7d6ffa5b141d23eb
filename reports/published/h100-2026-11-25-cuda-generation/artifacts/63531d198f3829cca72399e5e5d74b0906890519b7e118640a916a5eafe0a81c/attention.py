from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
THREADS = 384
SMS = 132
# Q 32 KiB, K 2 x 32 KiB, V 2 x 32 KiB, O staging 32 KiB, barriers, alignment
SHARED = 6 * 32768 + 128 + 1024


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads = q.shape[0], q.shape[1], q.shape[2]
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    total = ((seq_q + BM - 1) // BM) * batch * heads
    name = "causal_gqa<true>" if scale > 0 else "causal_gqa<false>"
    kernel = SOURCE.kernel(name)
    kernel[min(total, SMS), THREADS, SHARED](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(batch), int(heads), int(group), int(seq_q), int(seq_k), float(scale),
    )
