"""Collects garbage in each call, with cycles of its own among it, and keeps the collector off otherwise."""

import gc

import torch

gc.disable()


class Cycle:
    def __init__(self, tensor):
        self.tensor, self.me = tensor, self


def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    s = Cycle((q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf")))
    out.copy_((torch.softmax(s.tensor, -1) @ v).transpose(1, 2))
    del s
    gc.collect()
