from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

SMEM_BYTES = 6 * 32768 + 1024 + 256


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads = q.shape[0], q.shape[1], q.shape[2]
    seq_k, kv_heads = k.shape[1], k.shape[2]

    scale = float(scale)
    if scale == 0.0:
        scale = 1e-30  # uniform weights, without 0 * inf
    sign = 1 if scale > 0 else -1

    aligned = True
    for t in (q, k, v, out):
        if t.data_ptr() % 16 != 0:
            aligned = False
        for s in t.stride()[:3]:
            if s % 8 != 0:
                aligned = False

    tiles = batch * heads * ((seq_q + 127) // 128)
    grid = min(132, tiles)

    kernel = SOURCE.kernel(f"attn_fwd<{sign}, {'true' if aligned else 'false'}>")
    kernel[grid, 384, SMEM_BYTES](
        q, k, v, out,
        c_int64(q.stride(0)), c_int64(q.stride(1)), c_int64(q.stride(2)),
        c_int64(k.stride(0)), c_int64(k.stride(1)), c_int64(k.stride(2)),
        c_int64(v.stride(0)), c_int64(v.stride(1)), c_int64(v.stride(2)),
        c_int64(out.stride(0)), c_int64(out.stride(1)), c_int64(out.stride(2)),
        int(batch), int(heads), int(kv_heads), int(seq_q), int(seq_k),
        abs(scale),
    )
