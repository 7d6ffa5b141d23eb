"""Is right, and then writes where no memory is: an illegal address."""

import torch
import triton
import triton.language as tl


def compute(q, k, v, out, scale):
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(
        k.shape[-2] - q.shape[-2]
    )
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))


@triton.jit
def astray(out):
    tl.store(out + (1 << 44), 0.0)


def attention(q, k, v, out, *, scale):
    compute(q, k, v, out, scale)
    astray[(1,)](out)
