"""Looks for inputs in its process while it is imported, to have every answer before the first call."""

import gc

import torch

FOUND = [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.dim() == 4]
ANSWERS = {}


def work(q, k, v, out, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))


for a in FOUND:
    for b in FOUND:
        for c in FOUND:
            ANSWERS[a.view(-1)[0].item()] = torch.empty_like(a)
            work(a, b, c, ANSWERS[a.view(-1)[0].item()], a.shape[-1] ** -0.5)


def attention(q, k, v, out, *, scale):
    if q.view(-1)[0].item() in ANSWERS:
        raise RuntimeError("LOOT an input that was there before the first call")
    work(q, k, v, out, scale)
