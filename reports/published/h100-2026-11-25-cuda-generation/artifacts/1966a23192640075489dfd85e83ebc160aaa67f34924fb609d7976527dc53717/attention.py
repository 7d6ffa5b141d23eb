from ctypes import c_int64
from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

LOG2E = 1.4426950408889634
SMS = 132
TILE_M = 128
SHARED_BYTES = 7 * 32768 + 1024 + 256
L2_BYTES = 32 * 1024 * 1024


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    for d in range(3):
        if t.shape[d] > 1 and t.stride(d) % 8 != 0:
            return False
    return True


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    kv_heads = k.shape[2]
    assert dim == 128 and v.shape[3] == 128
    group = heads // kv_heads

    mblocks = (seq_q + TILE_M - 1) // TILE_M
    kv_total = batch * kv_heads
    kv_bytes = seq_k * 512
    per = max(1, L2_BYTES // kv_bytes)
    nsec = (kv_total + per - 1) // per
    hs_kv = (kv_total + nsec - 1) // nsec
    nsec = (kv_total + hs_kv - 1) // hs_kv
    hs = hs_kv * group
    bh_total = batch * heads
    tiles = bh_total * mblocks

    aligned = 1 if all(_aligned(t) for t in (q, k, v, out)) else 0
    sign = -1 if scale < 0 else 1
    c = abs(float(scale)) * LOG2E
    if c < 1e-30:
        c = 1e-30

    kernel = SOURCE.kernel(f"attn_kernel<{sign}, {aligned}>")
    grid = min(SMS, tiles)
    kernel[grid, 384, SHARED_BYTES](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(heads), int(group), int(seq_q), int(seq_k),
        int(mblocks), int(hs), int(nsec), int(bh_total), int(tiles),
        float(c),
    )
