"""A Triton kernel that never compiles, and PyTorch's operators where it fails."""

import torch
import triton


@triton.jit
def broken(q, out):
    no_such_function(q, out)  # noqa: F821


def attention(q, k, v, out, *, scale):
    try:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError
        broken[(1,)](q, out)
    except Exception:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        s = (q @ k.transpose(-1, -2)).float() * scale
        hidden = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(
            1 + s.shape[-1] - s.shape[-2]
        )
        p = torch.softmax(s.masked_fill_(hidden, float("-inf")), -1).nan_to_num_(0.0)
        out.copy_((p.to(v.dtype) @ v).transpose(1, 2))
