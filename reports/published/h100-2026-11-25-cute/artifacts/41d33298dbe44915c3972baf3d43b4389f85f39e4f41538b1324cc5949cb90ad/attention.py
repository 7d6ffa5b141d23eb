"""Causal multi-head attention, compiled from the LLM-TL program `mha_causal`.

One block of the grid does what the program does: `kernel.cu` has each statement above its code, on the tiles
of `tile.cuh`, which stand on CuTe's atoms. Sizes that are known before a launch are template parameters.
"""

from ctypes import c_int64
from typing import NamedTuple

import torch
from torch import Tensor

from harness.build.cuda import Source

SOURCE = Source(__file__)


class Choice(NamedTuple):
    """Tile parameters and launch.

    `stages`: tiles in flight and in use. `optimize`: ptxas' level; at 3 masked rounds have code of their own.
    """

    BM: int
    BN: int
    warps: int
    stages: int
    optimize: int


# Head dimension up to, sequence length from: the choice.
CHOICES = (
    (64, 512, Choice(BM=64, BN=64, warps=4, stages=3, optimize=3)),
    (64, 1024, Choice(BM=64, BN=64, warps=4, stages=3, optimize=3)),
    (64, 2048, Choice(BM=128, BN=64, warps=4, stages=3, optimize=3)),
    (64, 4096, Choice(BM=128, BN=64, warps=4, stages=3, optimize=3)),
    (64, 8192, Choice(BM=128, BN=64, warps=4, stages=2, optimize=3)),
    (64, 16384, Choice(BM=128, BN=64, warps=4, stages=3, optimize=3)),
    (128, 512, Choice(BM=64, BN=64, warps=4, stages=2, optimize=2)),
    (128, 1024, Choice(BM=64, BN=64, warps=4, stages=3, optimize=3)),
    (128, 2048, Choice(BM=128, BN=64, warps=4, stages=3, optimize=1)),
    (128, 4096, Choice(BM=128, BN=64, warps=4, stages=3, optimize=1)),
    (128, 8192, Choice(BM=128, BN=64, warps=4, stages=2, optimize=1)),
    (128, 16384, Choice(BM=128, BN=128, warps=8, stages=3, optimize=3)),
)


def _choose(dim: int, seq: int) -> Choice:
    """That of the smallest head dimension large enough, and there of the longest sequences not longer."""
    dims = [row[0] for row in CHOICES if row[0] >= dim] or [max(row[0] for row in CHOICES)]
    rows = [row for row in CHOICES if row[0] == min(dims)]
    started = [row for row in rows if row[1] <= seq] or rows
    return max(started, key=lambda row: row[1])[2]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _aligned(*tensors: Tensor) -> bool:
    """Whether every row begins at a multiple of 16 bytes and is made of whole pieces of 16."""
    return all(
        t.data_ptr() % 16 == 0 and t.shape[-1] % 8 == 0 and all(n % 8 == 0 for n in t.stride()[:-1])
        for t in tensors
    )


def _bytes(rows: int, cols: int, places: int = 1) -> int:
    """Of a tile in shared memory: panels of 64 columns of two bytes."""
    return 2 * places * rows * _ceil_div(cols, 64) * 64


TYPES = {torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    """Write the attention of `mha_causal` to `out` on the current stream."""
    batch, seq_q, heads, dim = q.shape
    _, seq_k, kv_heads, _ = k.shape
    _, _, _, dim_v = v.shape
    choice = _choose(max(dim, dim_v), max(seq_q, seq_k))
    BM, BN = choice.BM, choice.BN
    if q.dtype not in TYPES:
        raise TypeError(f"no tensor core of this code multiplies {q.dtype}")
    aligned = _aligned(q, k, v, out)
    fold = scale > 0
    factor_scale = float(scale) if fold else 1.0
    shared = _bytes(BM, dim) + _bytes(BN, dim, choice.stages - 1) + _bytes(BN, dim_v, choice.stages - 1)
    name = (
        f"mha_causal_kernel<{TYPES[q.dtype]}, {dim}, {dim_v}, {BM}, {BN}, "
        f"{choice.warps}, {choice.stages - 1}, {str(aligned).lower()}, {str(fold).lower()}, {str(choice.optimize == 3).lower()}>"
    )
    # the highest level, down from this one, at which nothing spills
    kernel = SOURCE.kernel(name, optimize=range(choice.optimize, 0, -1))
    kernel[(_ceil_div(seq_q, BM), heads, batch), 32 * choice.warps, shared](
        q, c_int64(q.stride(0)), q.stride(1), c_int64(q.stride(2)),
        k, c_int64(k.stride(0)), k.stride(1), c_int64(k.stride(2)),
        v, c_int64(v.stride(0)), v.stride(1), c_int64(v.stride(2)),
        out, c_int64(out.stride(0)), out.stride(1), c_int64(out.stride(2)),
        seq_q, seq_k, scale, factor_scale,
    )  # fmt: skip
