"""Splits the keys in halves by recursion and joins the two results by their log-sum-exp."""

import torch

LEAF = 16


def part(q, k, v, hidden, scale):
    """Output and log-sum-exp over these keys; -inf where a row sees none of them."""
    if k.shape[2] <= LEAF:
        s = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, float("-inf"))
        lse = torch.logsumexp(s, -1, keepdim=True)
        return torch.exp(s - lse.clamp_min(-3e38)) @ v, lse
    middle = k.shape[2] // 2
    (left, a), (right, b) = (
        part(q, k[:, :, half], v[:, :, half], hidden[:, half], scale)
        for half in (slice(None, middle), slice(middle, None))
    )
    both = torch.logaddexp(a, b)
    floor = both.clamp_min(-3e38)
    return left * torch.exp(a - floor) + right * torch.exp(b - floor), both


def attention(q, k, v, out, *, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
    out.copy_(part(q, k, v, hidden, scale)[0].transpose(1, 2))
