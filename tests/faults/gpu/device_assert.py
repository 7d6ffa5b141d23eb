"""Is right, and then reads a table past its end: an assertion on the device."""

import torch


def compute(q, k, v, out, scale):
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(
        k.shape[-2] - q.shape[-2]
    )
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))


def attention(q, k, v, out, *, scale):
    compute(q, k, v, out, scale)
    table = torch.zeros(4, device=q.device)
    out[0, 0, 0, 0] += table[torch.full((1,), 99, device=q.device)][0]
