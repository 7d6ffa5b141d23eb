"""Is right, and then writes four bytes at an odd address: misaligned."""

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
def crooked(out):
    address = out.to(tl.int64) + 1
    tl.store(address.to(tl.pointer_type(tl.float32)), 0.0)


def attention(q, k, v, out, *, scale):
    compute(q, k, v, out, scale)
    crooked[(1,)](out)
