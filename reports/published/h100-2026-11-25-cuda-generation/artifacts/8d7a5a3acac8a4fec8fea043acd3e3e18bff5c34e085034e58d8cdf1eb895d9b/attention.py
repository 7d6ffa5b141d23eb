import math
from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

_BM = 128
_FAST_SMEM = 5 * 32768 + 2048
_SLOW_SMEM = (128 + 4 * 64) * 272

_state = {"fast": True}


def _aligned(t):
    if t.data_ptr() % 16 != 0:
        return False
    return all(t.shape[a] == 1 or t.stride(a) % 8 == 0 for a in range(3))


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads = q.shape[0], q.shape[1], q.shape[2]
    seq_k, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads

    scale = float(scale)
    neg = 1 if scale < 0 else 0
    c = abs(scale) * math.log2(math.e)
    if c < 1e-30:
        c = 1e-30  # a scale of zero: every visible key weighs the same

    strides = []
    for t in (q, k, v, out):
        for axis in range(3):
            strides.append(c_int64(t.stride(axis)))

    grid = (batch * heads, (seq_q + _BM - 1) // _BM, 1)
    vec = 1 if (_aligned(q) and _aligned(k) and _aligned(v) and _aligned(out)) else 0

    if vec and _state["fast"]:
        try:
            kernel = SOURCE.kernel(f"attention_wgmma<{neg}>", defines={"USE_WGMMA": 1})
            kernel[grid, 384, _FAST_SMEM](
                q, k, v, out, *strides, seq_q, seq_k, heads, group, c)
            return
        except Exception:
            # the target has no wgmma: the mma.sync kernel below serves
            _state["fast"] = False

    kernel = SOURCE.kernel(f"attention_mma<{neg}>", defines={"USE_WGMMA": 0})
    kernel[grid, 256, _SLOW_SMEM](
        q, k, v, out, *strides, seq_q, seq_k, heads, group, c, vec)
