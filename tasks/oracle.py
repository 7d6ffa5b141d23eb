"""Owns the expected values: attention in float64, chunked over queries; never imported by a worker.

For batch b, query head h, kv head g = h // group, D = seq_k - seq_q:
s_ij = scale <q_i, k_j>;  s'_ij = score_mod(s_ij);  p = softmax over allowed j;  o_i = sum_j p_ij v_j.
A row with no allowed key gives zeros.

Float64 is the reference because it is affordable: a cell of the paper grid takes 0.01-0.19 s on an
H100, and chunking bounds its memory to four float64 copies of the tensors plus a few chunks of
scores, whatever the workload. Float32 (`dtype=torch.float32`) is for devices where even that does
not fit or float64 runs at 1/32 speed (T4, RTX 8000, L40S); the record then says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from tasks.spec import Task, Workload

# Scores held at a time (elements): bounds the oracle's memory whatever the workload. Three to four
# tensors of this size live at once, 8 bytes an element: 0.25 GB on a CPU, 2 GB on a GPU.
CHUNK_ELEMENTS: Mapping[str, int] = {"cpu": 1 << 23, "cuda": 1 << 26}


def expected(
    task: Task, workload: Workload, inputs: Mapping[str, Tensor], dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """The exact outputs by name, in `dtype`, on the device of the inputs (batch, seq_q, heads, dim_v)."""
    if task.oracle is not None:
        return {name: t.to(dtype) for name, t in task.oracle(workload, inputs).items()}
    return {"out": attention(task, workload, inputs, dtype)}


def plain(task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same computation by plain PyTorch in the workload's own dtype: the yardstick of rounding."""
    if task.oracle is not None:
        return {name: t.to(workload.torch_dtype) for name, t in task.oracle(workload, inputs).items()}
    with _exact_reductions():
        return {"out": attention(task, workload, inputs, workload.torch_dtype)}


def attention(task: Task, workload: Workload, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Generic attention with every intermediate in `dtype`: (batch, seq_q, heads, dim_v)."""
    w = workload
    q, k, v = (inputs[name].to(dtype).transpose(1, 2).contiguous() for name in ("q", "k", "v"))
    limit = CHUNK_ELEMENTS.get(q.device.type, CHUNK_ELEMENTS["cuda"])
    rows = max(1, min(w.seq_q, limit // (w.heads * w.seq_k)))
    step = max(1, min(w.batch, limit // (w.heads * w.seq_k * rows)))
    out = torch.zeros(w.batch, w.seq_q, w.heads, w.dim_v, dtype=dtype, device=q.device)
    for start in range(0, w.seq_q, rows):
        stop = min(start + rows, w.seq_q)
        hidden, blind, first, last = _visible(task, w, start, stop, q.device)
        for b in range(0, w.batch, step):
            batch = slice(b, min(b + step, w.batch))
            keys, values = k[batch, :, first:last], v[batch, :, first:last]
            part = _rows(task, w, q[batch, :, start:stop], keys, values, hidden, start, first)
            if blind is not None:
                part.masked_fill_(blind, 0.0)
            out[batch, start:stop] = part.transpose(1, 2)
    return out


def _visible(
    task: Task, w: Workload, start: int, stop: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """What is hidden from these rows, and the range of keys that any of them sees.

    Pairs not allowed (rows, last - first), rows that see nothing (rows, 1), first key, last key
    plus one; None for the tensors where nothing is hidden, which saves passes over the scores.
    """
    if task.mask is None:
        return None, None, 0, w.seq_k
    i = torch.arange(start, stop, device=device)[:, None]
    j = torch.arange(w.seq_k, device=device)[None, :]
    allowed = task.mask(i, j, w).expand(stop - start, w.seq_k)
    seen = allowed.any(0).nonzero()
    first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)
    hidden = ~allowed[:, first:last]
    blind = hidden.all(-1, keepdim=True)
    return hidden if bool(hidden.any()) else None, blind if bool(blind.any()) else None, first, last


def _rows(
    task: Task, w: Workload, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, start: int, first: int
) -> Tensor:
    """q (batch, heads, rows, dim) against keys (batch, kv_heads, keys, dim) -> (batch, heads, rows, dim_v).

    `start` and `first` are the absolute positions of the first row and the first key. Rows from
    which all is hidden come out as NaN.
    """
    batch, _, rows, _ = q.shape
    keys = k.shape[2]
    grouped = q.reshape(batch, w.kv_heads, w.group * rows, w.dim)
    scores = torch.matmul(grouped, k.transpose(-1, -2)).mul_(w.softmax_scale)
    scores = scores.view(batch, w.heads, rows, keys)
    if task.score_mod is not None:
        h = torch.arange(w.heads, device=q.device)[:, None, None]
        i = torch.arange(start, start + rows, device=q.device)[:, None]
        j = torch.arange(first, first + keys, device=q.device)[None, :]
        scores = task.score_mod(scores, h, i, j, w)
    if hidden is not None:
        scores = scores.masked_fill_(hidden, float("-inf"))
    p = torch.softmax(scores, dim=-1)
    out = torch.matmul(p.view(batch, w.kv_heads, w.group * rows, keys), v)
    return out.view(batch, w.heads, rows, w.dim_v)


@contextmanager
def _exact_reductions() -> Iterator[None]:
    """No split-K reduction in 16 bits, which cuBLAS may choose by default: it would loosen the yardstick."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction
    flags.allow_fp16_reduced_precision_reduction = flags.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        flags.allow_fp16_reduced_precision_reduction = before[0]
        flags.allow_bf16_reduced_precision_reduction = before[1]
