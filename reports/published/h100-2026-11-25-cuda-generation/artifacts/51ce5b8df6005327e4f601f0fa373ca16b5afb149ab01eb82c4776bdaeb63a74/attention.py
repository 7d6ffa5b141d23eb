from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

NUM_SMS = 132
THREADS = 384
# Q 32K + K 64K + V 64K + O 32K, barriers, slack for 1024-byte alignment
SHARED = 6 * 32768 + 128 + 1024


def _aligned(t):
    return (
        t.data_ptr() % 16 == 0
        and t.stride(0) % 8 == 0
        and t.stride(1) % 8 == 0
        and t.stride(2) % 8 == 0
    )


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, _ = q.shape
    seq_k = k.shape[1]
    kv_heads = k.shape[2]
    group = heads // kv_heads
    scale = float(scale)

    vec = _aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)
    pre = not (scale > 1e-20)
    name = "attn_fwd<%s, %s>" % ("true" if vec else "false", "true" if pre else "false")
    kernel = SOURCE.kernel(name)

    m_blocks = (seq_q + 127) // 128
    tiles = m_blocks * batch * heads
    grid = min(NUM_SMS, tiles)

    kernel[grid, THREADS, SHARED](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(batch), int(heads), int(group), int(seq_q), int(seq_k),
        scale,
    )
