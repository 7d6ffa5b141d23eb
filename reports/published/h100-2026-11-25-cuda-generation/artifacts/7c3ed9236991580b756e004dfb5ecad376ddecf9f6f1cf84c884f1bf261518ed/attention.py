from ctypes import c_int64
from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
BN = 128
STAGES = 3
L2_BUDGET = 24 << 20


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    return all(n == 1 or s % 8 == 0 for n, s in zip(t.shape[:-1], t.stride()[:-1]))


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    kv_heads = k.shape[2]
    group = heads // kv_heads

    aligned = _aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)
    kernel = SOURCE.kernel(f"attn_kernel<{dim}, {'true' if aligned else 'false'}>")

    n_tiles = (seq_q + BM - 1) // BM
    bh = batch * heads

    # heads that are worked on together: their K and V should fit in L2
    fit = max(1, L2_BUDGET // (seq_k * dim * 4))
    section = 1
    while section * 2 <= fit:
        section *= 2
    section = min(section, bh)

    tile_bytes = 128 * dim * 2
    shared = 1024 + tile_bytes * (1 + 2 * STAGES) + 256

    kernel[bh * n_tiles, 384, shared](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(seq_q), int(seq_k), int(heads), int(group), int(bh), int(section),
        float(scale),
    )
