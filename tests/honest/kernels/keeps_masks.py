"""Keeps a mask for each shape between calls: it follows from the shape, and is no input."""

import functools

import torch


@functools.cache
def hidden(seq_q, seq_k):
    return torch.ones(seq_q, seq_k, dtype=torch.bool).triu(seq_k - seq_q + 1)


def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden(q.shape[2], k.shape[2]), float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
