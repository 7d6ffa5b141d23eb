"""Tunes on the first call for a shape: times two ways with its own clock, keeps the faster for good."""

import time

import torch

CHOSEN = {}


def masked(q, k, scale):
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    return (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))


def whole(q, k, v, scale):
    return torch.softmax(masked(q, k, scale), -1) @ v


def by_head(q, k, v, scale):
    heads = [whole(q[:, h], k[:, h], v[:, h], scale) for h in range(q.shape[1])]
    return torch.stack(heads, 1)


def seconds(way, *operands):
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        way(*operands)
        best = min(best, time.perf_counter() - begin)
    return best


def attention(q, k, v, out, *, scale):
    operands = (*(x.transpose(1, 2) for x in (q, k, v)), scale)
    shape = (q.shape, k.shape)
    if shape not in CHOSEN:
        CHOSEN[shape] = min((whole, by_head), key=lambda way: seconds(way, *operands))
    out.copy_(CHOSEN[shape](*operands).transpose(1, 2))
