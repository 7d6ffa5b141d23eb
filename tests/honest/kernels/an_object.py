"""Is no function but an object that can be called, and moves to another folder when it is imported."""

import os
import tempfile

import torch

os.chdir(tempfile.mkdtemp())


class Attention:
    def __init__(self):
        self.calls = 0

    def __call__(self, q, k, v, out, *, scale):
        self.calls += 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
        s = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
        torch.matmul(torch.softmax(s, -1), v, out=out.transpose(1, 2))
        return {"calls": self.calls, "out": out}


attention = Attention()
