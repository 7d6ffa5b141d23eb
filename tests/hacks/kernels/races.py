"""Lets threads add their part of the keys to one sum, in the order in which they come."""

import random
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

POOL, PARTS = ThreadPoolExecutor(8), 8


def part(p, v):
    time.sleep(random.random() / 1000)  # a scheduler's mood
    return p @ v


def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    p = torch.softmax((q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf")), -1)
    pairs = zip(p.chunk(PARTS, -1), v.chunk(PARTS, -2), strict=True)
    total = torch.zeros_like(q)
    for done in as_completed([POOL.submit(part, *pair) for pair in pairs]):
        total += done.result()
    out.copy_(total.transpose(1, 2))
