"""What both entries share: the kernel's types, strides, grid and shared memory."""

from ctypes import c_int64

import torch
from torch import Tensor

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file
TYPES = {torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
ROWS, COLUMNS, WARPS = 64, 64, 4  # of a tile: queries, keys; a warp has 16 queries


def launch(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, causal: bool) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k, kv_heads = k.shape[1], k.shape[2]
    pieces = all(t.data_ptr() % 16 == 0 and all(n % 8 == 0 for n in t.stride()[:3]) for t in (q, k, v, out))
    if q.dtype not in TYPES or dim % 64 or v.shape[3] != dim or not pieces:
        raise ValueError(
            "this kernel moves pieces of 16 bytes of fp16 or bf16 heads of 64, 128, ... elements"
        )
    name = f"attention<{TYPES[q.dtype]}, {dim}, {ROWS}, {COLUMNS}, {WARPS}, {str(causal).lower()}>"
    kernel = SOURCE.kernel(name)
    strides = [[c_int64(n) for n in t.stride()[:3]] for t in (q, k, v, out)]
    kernel[(-(-seq_q // ROWS), heads, batch), 32 * WARPS, 2 * dim * (ROWS + 2 * COLUMNS)](
        q, *strides[0], k, *strides[1], v, *strides[2], out, *strides[3],
        seq_q, seq_k, heads // kv_heads, scale * 1.4426950408889634,
    )  # fmt: skip
