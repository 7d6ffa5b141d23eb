"""Lets torch.compile write the kernel: a compiled flex_attention."""

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

FLEX = torch.compile(flex_attention, dynamic=False)


MASKS = {}


def attention(q, k, v, out, *, scale):
    offset = k.shape[1] - q.shape[1]
    key = (q.shape[1], k.shape[1])
    if key not in MASKS:
        MASKS[key] = create_block_mask(lambda b, h, i, j: i + offset >= j, None, None, *key, device=q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out.copy_(FLEX(q, k, v, block_mask=MASKS[key], scale=scale).transpose(1, 2))
