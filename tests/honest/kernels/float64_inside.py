"""Computes in float64 and rounds once; leaves torch's default dtype changed, as float64 code does."""

import torch

torch.set_default_dtype(torch.float64)


def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    bias = torch.zeros(q.shape[-2], k.shape[-2]).masked_fill_(
        torch.ones(q.shape[-2], k.shape[-2]).tril(k.shape[-2] - q.shape[-2]) == 0, float("-inf")
    )
    out.copy_((torch.softmax(q @ k.transpose(-1, -2) * scale + bias, -1) @ v).transpose(1, 2))
