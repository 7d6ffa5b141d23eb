"""Scales the queries in place, which saves a multiplication in the loop."""

from flash import flash_attention


def attention(q, k, v, out, *, scale):
    q.mul_(scale)
    flash_attention(q, k, v, out, scale=1.0, causal=True)
