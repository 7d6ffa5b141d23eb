"""Wrong on purpose: the mask's edge is off by one."""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    i = torch.arange(q.shape[1], device=q.device)[:, None] + k.shape[1] - q.shape[1]
    j = torch.arange(k.shape[1], device=q.device)[None, :]
    scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * scale
    p = torch.softmax(scores.masked_fill(~(j < i), float("-inf")), dim=-1)
    out.copy_(torch.matmul(torch.nan_to_num(p), v.transpose(1, 2)).transpose(1, 2))
