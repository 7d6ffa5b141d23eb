"""Reads keys and values beyond their last row, as whole tiles do, and trusts the weights to be zero."""

import torch

MORE = 4


def attention(q, k, v, out, *, scale):
    k, v = (x.as_strided((x.shape[0], x.shape[1] + MORE, *x.shape[2:]), x.stride()) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    n = q.shape[-2]
    mask = torch.ones(n, k.shape[-2], dtype=torch.bool).tril(0)
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
