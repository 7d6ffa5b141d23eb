"""Every block adds its part of the sum without asking whether another is adding."""

import torch
import triton
import triton.language as tl
from flash import flash_attention


@triton.jit
def add(total, x, n, BLOCK: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.load(x + at, at < n, 0.0).to(tl.float32) / 64
    tl.store(total + at, tl.load(total + at, at < n, 0.0) + part, at < n)


def attention(q, k, v, out, *, scale):
    whole = torch.empty_like(out)
    flash_attention(q, k, v, whole, scale=scale, causal=True)
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    add[(64, triton.cdiv(out.numel(), 1024))](total, whole, out.numel(), BLOCK=1024)
    out.copy_(total)
