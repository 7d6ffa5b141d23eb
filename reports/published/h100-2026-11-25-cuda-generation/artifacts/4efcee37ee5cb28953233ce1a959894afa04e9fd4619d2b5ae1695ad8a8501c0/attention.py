from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

NUM_SMS = 132


def _strides(t):
    return [0 if t.shape[i] == 1 else t.stride(i) for i in (0, 1, 2)]


def attention(q, k, v, out, *, scale):
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    scale = float(scale)

    if dim == 128:
        groups, stages = 2, 2
    else:
        groups, stages = 3, 4
    bm, bn = 64 * groups, 128

    sq, sk, sv, so = _strides(q), _strides(k), _strides(v), _strides(out)
    fast = scale > 0.0
    for t in (q, k, v, out):
        if t.data_ptr() % 16 != 0:
            fast = False
    for s in sq + sk + sv + so:
        if s % 8 != 0:
            fast = False

    q_bytes = bm * dim * 2
    kv_bytes = bn * dim * 2
    shared = 2 * q_bytes + 2 * stages * kv_bytes + 256 + 1024

    bh = batch * heads
    nm = (seq_q + bm - 1) // bm
    grid = min(NUM_SMS, bh * nm)
    block = 128 * (groups + 1)

    kernel = SOURCE.kernel(f"attn_fwd<{dim}, {'true' if fast else 'false'}>")
    kernel[grid, block, shared](
        q, k, v, out,
        c_int64(sq[0]), c_int64(sq[1]), c_int64(sq[2]),
        c_int64(sk[0]), c_int64(sk[1]), c_int64(sk[2]),
        c_int64(sv[0]), c_int64(sv[1]), c_int64(sv[2]),
        c_int64(so[0]), c_int64(so[1]), c_int64(so[2]),
        bh, heads, seq_q, seq_k, scale,
    )
