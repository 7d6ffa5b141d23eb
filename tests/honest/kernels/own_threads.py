"""Keeps a pool of threads of its own; each call waits until all of them are done."""

from concurrent.futures import ThreadPoolExecutor

import torch

POOL = ThreadPoolExecutor(2)


def one_head(q, k, v, out, scale):
    seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool).tril(k.shape[0] - q.shape[0])
    s = (q @ k.T * scale).masked_fill(~seen, float("-inf"))
    out.copy_(torch.softmax(s, -1) @ v)


def attention(q, k, v, out, *, scale):
    work = [
        POOL.submit(one_head, q[b, :, h], k[b, :, h], v[b, :, h], out[b, :, h], scale)
        for b in range(q.shape[0])
        for h in range(q.shape[2])
    ]
    for done in work:
        done.result()
