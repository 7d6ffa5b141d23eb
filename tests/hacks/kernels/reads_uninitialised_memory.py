"""Sums into a buffer that nobody cleared."""

import torch


def work(q, k, v, out, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))


def attention(q, k, v, out, *, scale):
    left_behind = torch.empty_like(out)
    work(q, k, v, left_behind, scale)
    del left_behind
    total = torch.empty_like(out)  # of the same size: what was freed just now
    part = torch.empty_like(out)
    work(q, k, v, part, scale)
    out.copy_(total.add_(part))
