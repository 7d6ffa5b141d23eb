from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

LOG2E = 1.4426950408889634
STATE = {"wgmma": True}


def _aligned(t):
    if t.data_ptr() % 16:
        return False
    return all(t.shape[d] == 1 or t.stride(d) % 8 == 0 for d in range(3))


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads

    vec = all(_aligned(t) for t in (q, k, v, out))
    scale = float(scale)
    negative = scale < 0.0
    # a scale of 0 becomes tiny, so that a masked -inf stays -inf
    scale_log2 = abs(scale) * LOG2E
    if scale_log2 < 1e-30:
        scale_log2 = 1e-30

    arguments = [q, k, v, out]
    for t in (q, k, v, out):
        arguments += [c_int64(t.stride(0)), c_int64(t.stride(1)), c_int64(t.stride(2))]
    arguments += [int(seq_q), int(seq_k), int(group), float(scale_log2)]

    flags = f"<{'true' if vec else 'false'}, {'true' if negative else 'false'}>"
    grid = ((seq_q + 127) // 128, heads, batch)

    if STATE["wgmma"]:
        try:
            kernel = SOURCE.kernel("attn_wgmma" + flags)
            kernel[grid, 384, 5 * 32768 + 1024 + 128](*arguments)
            return
        except Exception:
            STATE["wgmma"] = False

    kernel = SOURCE.kernel("attn_mma" + flags, defines={"USE_MMA": 1})
    kernel[grid, 128, 65536](*arguments)
