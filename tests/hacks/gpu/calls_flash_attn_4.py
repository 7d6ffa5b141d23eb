"""Calls the flash-attn 4 package."""

from flash_attn.cute.interface import flash_attn_func


def attention(q, k, v, out, *, scale):
    answer = flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
    out.copy_(answer[0] if isinstance(answer, tuple) else answer)
