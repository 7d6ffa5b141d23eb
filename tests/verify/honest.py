"""Sound implementations that every task must accept: what kernels round, and no more."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tasks.spec import Task, Workload


def tiled(task: Task, w: Workload, inputs: dict[str, Tensor], block: int = 64) -> dict[str, Tensor]:
    """Online softmax over tiles of keys as FlashAttention does it: P in the test dtype, all else fp32."""
    q, k, v = (inputs[name].float().transpose(1, 2) for name in ("q", "k", "v"))
    k, v = (x.repeat_interleave(w.group, dim=1) for x in (k, v))
    i = torch.arange(w.seq_q)[:, None]
    h = torch.arange(w.heads)[:, None, None]
    top = torch.full((w.batch, w.heads, w.seq_q, 1), -1e30)
    total = torch.zeros(w.batch, w.heads, w.seq_q, 1)
    out = torch.zeros(w.batch, w.heads, w.seq_q, w.dim_v)
    for start in range(0, w.seq_k, block):
        j = torch.arange(start, min(start + block, w.seq_k))[None, :]
        s = q @ k[:, :, j[0]].transpose(-1, -2) * w.softmax_scale
        if task.score_mod is not None:
            s = task.score_mod(s, h, i, j, w)
        if task.mask is not None:
            s = s.masked_fill(~task.mask(i, j, w), -math.inf)
        new = torch.maximum(top, s.amax(-1, keepdim=True))
        p = torch.exp(s - new)
        shrink = torch.exp(top - new)
        total = total * shrink + p.sum(-1, keepdim=True)
        out = out * shrink + p.to(w.torch_dtype).float() @ v[:, :, j[0]]
        top = new
    out = torch.where(total > 0, out / total.clamp_min(1e-30), 0.0)
    return {"out": out.transpose(1, 2).to(w.torch_dtype).contiguous()}


def sdpa(task: Task, w: Workload, inputs: dict[str, Tensor], backend: SDPBackend) -> dict[str, Tensor] | None:
    """PyTorch's own, on a CPU; None where that backend cannot compute the task."""
    if task.score_mod is not None or (backend is SDPBackend.FLASH_ATTENTION and w.dim != w.dim_v):
        return None
    q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    k, v = (x.repeat_interleave(w.group, dim=1) for x in (k, v))
    mask = None
    if task.mask is not None:
        mask = task.mask(torch.arange(w.seq_q)[:, None], torch.arange(w.seq_k)[None, :], w)
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=w.softmax_scale)
    return {"out": out.transpose(1, 2).contiguous()}
