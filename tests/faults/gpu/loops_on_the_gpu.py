"""Is right, and then waits on the GPU for a value that nobody writes: its kernel never ends."""

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
def forever(out):
    seen = tl.load(out, volatile=True)
    while seen != 12345.0:
        seen = tl.load(out, volatile=True)


def attention(q, k, v, out, *, scale):
    compute(q, k, v, out, scale)
    forever[(1,)](out)
