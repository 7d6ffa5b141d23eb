"""Computes tables when it is imported: positions, and powers of two for an exponential of its own."""

import torch

POSITIONS = torch.arange(4096)
POWERS = torch.exp2(torch.arange(-1023, 1, dtype=torch.float64))
FACTORIALS = torch.cumprod(torch.tensor([1, *range(1, 14)], dtype=torch.float64), 0)
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


def exponential(x):
    """Of numbers that are not positive; what is smaller than exp(-700) is zero."""
    x = x.double()
    whole = torch.floor(x * LOG2_E).clamp(-1023, 0)
    rest = (x - whole * LN_2).clamp(0, 1)
    value = torch.zeros_like(rest)
    for factorial in reversed(FACTORIALS):
        value = value * rest + 1 / factorial
    return torch.where(x < -700, 0.0, value * POWERS[(whole + 1023).long()])


def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    rows, columns = POSITIONS[: q.shape[2], None], POSITIONS[None, : k.shape[2]]
    hidden = columns > rows + k.shape[2] - q.shape[2]
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, -1e30)
    p = exponential(s - s.amax(-1, keepdim=True))
    out.copy_((p / p.sum(-1, keepdim=True) @ v.double()).transpose(1, 2))
