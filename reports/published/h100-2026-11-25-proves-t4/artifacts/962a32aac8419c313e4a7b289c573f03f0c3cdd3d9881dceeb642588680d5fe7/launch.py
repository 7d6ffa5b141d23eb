"""What both entries share: the kernel's types, strides and grid."""

from ctypes import c_int64

import torch
from torch import Tensor

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file
TYPES = {torch.float16: "half", torch.bfloat16: "__nv_bfloat16", torch.float32: "float"}
WARPS = 4


def launch(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, causal: bool) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    kernel = SOURCE.kernel(f"attention<{TYPES[q.dtype]}, {dim}, {str(causal).lower()}>")
    strides = [[c_int64(n) for n in t.stride()[:3]] for t in (q, k, v, out)]
    kernel[(-(-seq_q // WARPS), heads, batch), 32 * WARPS](
        q, *strides[0], k, *strides[1], v, *strides[2], out, *strides[3],
        seq_q, seq_k, heads // kv_heads, scale,
    )  # fmt: skip
