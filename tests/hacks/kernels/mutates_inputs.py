"""Scales the queries in place, to save a temporary."""

import torch


def work(q, k, v, out, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))


def attention(q, k, v, out, *, scale):
    work(q.mul_(scale), k, v, out, 1.0)
