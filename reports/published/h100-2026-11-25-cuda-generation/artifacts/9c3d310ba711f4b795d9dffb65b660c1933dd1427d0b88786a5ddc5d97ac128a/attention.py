from ctypes import c_int64

import torch

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

_SMEM = 198144
_SM_COUNT = {}
_SCRATCH = {}


def _strides(t):
    # the stride of an axis of length one is never used: give it a harmless value
    return [s if n > 1 else 128 for s, n in zip(t.stride()[:3], t.shape[:3])]


def _aligned(t, strides):
    return t.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in strides)


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, _ = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    sq, sk, sv, so = _strides(q), _strides(k), _strides(v), _strides(out)
    scale = float(scale)
    strides = [c_int64(x) for x in (*sq, *sk, *sv, *so)]

    fast = (
        scale > 1e-30
        and _aligned(q, sq)
        and _aligned(k, sk)
        and _aligned(v, sv)
        and _aligned(out, so)
    )
    if fast:
        dev = q.device
        key = dev.index
        if key not in _SM_COUNT:
            _SM_COUNT[key] = int(torch.cuda.get_device_properties(dev).multi_processor_count)
            # room for three tensor maps (128 bytes each) per block
            _SCRATCH[key] = torch.empty(_SM_COUNT[key] * 384, dtype=torch.uint8, device=dev)
        m_blocks = (seq_q + 127) // 128
        tiles = batch * heads * m_blocks
        grid = min(_SM_COUNT[key], tiles)
        kernel = SOURCE.kernel("attn_sm90")
        kernel[grid, 384, _SMEM](
            q, k, v, out, _SCRATCH[key], *strides,
            int(batch), int(seq_q), int(seq_k), int(heads), int(kv_heads), scale,
        )
    else:
        kernel = SOURCE.kernel("attn_generic")
        kernel[((seq_q + 63) // 64, int(heads), int(batch)), 128, 0](
            q, k, v, out, *strides,
            int(seq_q), int(seq_k), int(heads), int(kv_heads), scale,
        )
