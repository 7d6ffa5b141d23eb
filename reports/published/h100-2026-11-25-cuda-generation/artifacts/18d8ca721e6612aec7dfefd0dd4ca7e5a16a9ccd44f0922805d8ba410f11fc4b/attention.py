import torch
from ctypes import c_int64
from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

_SMS = 132
_SHARED = 229376 + 384 + 128 + 1024
_STATE = {"fast": True}


def _strides(t):
    # (batch, seq, head); the stride of an axis of length one never matters
    return [int(t.stride(i)) if t.shape[i] > 1 else 1024 for i in range(3)]


def _aligned(t, strides):
    return t.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in strides)


def attention(q, k, v, out, *, scale: float) -> None:
    batch, nq, heads, dim = q.shape
    nk, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    scale = float(scale)

    qs, ks, vs, os_ = _strides(q), _strides(k), _strides(v), _strides(out)
    strides = [c_int64(s) for s in (*qs, *ks, *vs, *os_)]

    fast = (
        _STATE["fast"]
        and 1e-20 < scale < 1e20
        and _aligned(q, qs)
        and _aligned(k, ks)
        and _aligned(v, vs)
        and _aligned(out, os_)
    )
    if fast:
        kv_bytes = nk * 256 * 2
        total_kv = batch * kv_heads
        sec_kv = min(total_kv, max(1, (16 << 20) // kv_bytes))
        sections = (total_kv + sec_kv - 1) // sec_kv
        sec_kv = (total_kv + sections - 1) // sections
        tiles = ((nq + 127) // 128) * heads * batch
        grid = min(_SMS, tiles)
        try:
            kernel = SOURCE.kernel("attn_fwd<128>")
            maps = torch.empty(grid * 384, dtype=torch.uint8, device=q.device)
            kernel[grid, 384, _SHARED](
                q, k, v, out, maps, *strides,
                batch, heads, kv_heads, nq, nk, sec_kv * group, scale,
            )
            return
        except Exception:
            _STATE["fast"] = False

    kernel = SOURCE.kernel("attn_generic<128>")
    kernel[((nq + 63) // 64, heads, batch), 128, 0](
        q, k, v, out, *strides, heads, kv_heads, nq, nk, scale
    )
