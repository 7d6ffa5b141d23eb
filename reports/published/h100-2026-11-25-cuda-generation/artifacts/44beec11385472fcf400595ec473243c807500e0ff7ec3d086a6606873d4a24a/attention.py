from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

SMS = 132
# dim: (rows per tile, consumer warpgroups, stages)
CONFIG = {128: (128, 2, 2), 64: (192, 3, 4)}
BN = 128
_BROKEN = set()


def _aligned(t):
    return t.data_ptr() % 16 == 0 and all(t.stride(i) % 8 == 0 for i in range(3))


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    strides = []
    for t in (q, k, v, out):
        for axis in range(3):
            strides.append(c_int64(t.stride(axis)))
    args = (q, k, v, out, *strides, int(batch), int(heads), int(group),
            int(seq_q), int(seq_k), float(scale))

    fast = (
        dim in CONFIG
        and dim not in _BROKEN
        and v.shape[-1] == dim
        and scale > 0.0
        and all(_aligned(t) for t in (q, k, v, out))
    )
    if fast:
        bm, consumers, stages = CONFIG[dim]
        tiles = (seq_q + bm - 1) // bm
        units = batch * heads * ((tiles + 1) // 2)
        shared = bm * dim * 2 + 2 * stages * BN * dim * 2 + 1024 + 512
        try:
            kernel = SOURCE.kernel(f"attn_fast<{dim}>", defines={"FAST": 1})
            kernel[min(SMS, units), (consumers + 1) * 128, shared](*args)
            return
        except Exception:
            _BROKEN.add(dim)

    tiles = (seq_q + 63) // 64
    shared = 3 * 64 * (dim + 8) * 2
    kernel = SOURCE.kernel(f"attn_generic<{dim}>")
    kernel[tiles * batch * heads, 128, shared](*args)
