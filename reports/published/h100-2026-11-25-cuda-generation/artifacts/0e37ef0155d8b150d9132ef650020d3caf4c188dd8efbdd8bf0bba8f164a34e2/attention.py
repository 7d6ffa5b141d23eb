from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
THREADS = 256
L2_BYTES = 32 << 20  # K and V of one section of heads should stay in L2

_KERNELS = {}


def _kernel(dim, aligned):
    key = (dim, aligned)
    kernel = _KERNELS.get(key)
    if kernel is None:
        name = f"causal_attention<{dim}, {aligned}>"
        try:
            kernel = SOURCE.kernel(name, defines={"USE_WGMMA": 1})
        except Exception:  # target without wgmma: the same kernel with mma.sync
            kernel = SOURCE.kernel(name, defines={"USE_WGMMA": 0})
        _KERNELS[key] = kernel
    return kernel


def _aligned(x):
    return x.data_ptr() % 16 == 0 and all(
        x.shape[a] == 1 or x.stride(a) % 8 == 0 for a in range(3)
    )


def _strides(x):
    # batch, sequence, head; an axis of size one is never stepped along
    return [c_int64(x.stride(a) if x.shape[a] > 1 else 0) for a in range(3)]


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    bn = 128 if dim == 64 else 64

    aligned = 1 if all(_aligned(x) for x in (q, k, v, out)) else 0
    kernel = _kernel(dim, aligned)

    batch_heads = batch * heads
    n_tiles = (seq_q + BM - 1) // BM
    head_bytes = seq_k * dim * 2 * 2
    section = max(1, min(batch_heads, L2_BYTES // head_bytes))

    shared = BM * dim * 2 + 4 * bn * dim * 2 + 1024
    kernel[batch_heads * n_tiles, THREADS, shared](
        q, k, v, out,
        *_strides(q), *_strides(k), *_strides(v), *_strides(out),
        int(batch_heads), int(heads), int(group), int(seq_q), int(seq_k),
        int(section), float(scale),
    )
