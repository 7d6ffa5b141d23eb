from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
L2_BUDGET = 16 << 20


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
    nq = (seq_q + BM - 1) // BM
    nbh = batch * heads

    # heads walked together: their keys and values stay in L2
    per_head = max(1, seq_k * dim * 4)
    section = 1
    while section * 2 * per_head <= L2_BUDGET and section < nbh:
        section *= 2

    scale = float(scale)
    fast = _aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)
    if fast:
        positive = "true" if scale > 0.0 else "false"
        kernel = SOURCE.kernel(f"attn_fwd<{dim}, {positive}>")
        block = 384
        shared = 1024 + 5 * 128 * dim * 2 + 128
    else:
        kernel = SOURCE.kernel(f"attn_any<{dim}>")
        block = 256
        shared = 128 * dim * 2 + 4 * 64 * dim * 2 + 128

    kernel[nq * nbh, block, shared](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(heads), int(group), int(nbh), int(section),
        int(seq_q), int(seq_k), scale,
    )
