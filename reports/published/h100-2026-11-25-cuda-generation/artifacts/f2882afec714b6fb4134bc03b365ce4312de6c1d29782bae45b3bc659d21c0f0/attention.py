from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

BM = 128
BN = 128      # key tile of the wgmma kernel
STAGES = 3    # as in kernel.cu
BLOCKS = 132  # one resident block on each SM

_kernels = {}


def _aligned(t):
    if t.data_ptr() % 16:
        return False
    return all(t.shape[i] == 1 or t.stride(i) % 8 == 0 for i in range(3))


def _find(dim, positive, aligned):
    key = (dim, positive, aligned)
    if key not in _kernels:
        flags = f"{dim}, {'true' if positive else 'false'}, {'true' if aligned else 'false'}"
        try:
            found = (True, SOURCE.kernel(f"attention_wgmma<{flags}>", defines={"WGMMA": 1}))
        except Exception:  # target without wgmma
            found = (False, SOURCE.kernel(f"attention_mma<{flags}>", defines={"WGMMA": 0}))
        _kernels[key] = found
    return _kernels[key]


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    scale = float(scale)
    aligned = all(_aligned(t) for t in (q, k, v, out))
    wgmma, kernel = _find(dim, scale > 1e-30, aligned)
    strides = [c_int64(t.stride(i)) for t in (q, k, v, out) for i in range(3)]
    tiles = (seq_q + BM - 1) // BM
    if wgmma:
        items = (tiles + 1) // 2 * heads * batch
        grid = min(BLOCKS, items)
        block = 384
        shared = 2 * dim * (BM + 2 * STAGES * BN) + 1024 + 256
    else:
        grid = (tiles, heads, batch)
        block = 128
        bn = 128 if dim == 64 else 64
        shared = 2 * dim * (BM + 2 * bn) + 1024
    kernel[grid, block, shared](
        q, k, v, out, *strides,
        int(batch), int(heads), int(heads // kv_heads), int(seq_q), int(seq_k), scale,
    )
