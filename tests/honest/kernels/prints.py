"""Prints, warns and logs in each call, to both of its outputs."""

import logging
import os
import sys
import warnings

import torch

warnings.simplefilter("always")


def attention(q, k, v, out, *, scale):
    print("attention of", tuple(q.shape), '\N{SNOWMAN} {"ok": true}', flush=True)
    print("\0 odd bytes \udc80".encode(errors="replace"), file=sys.stderr)
    warnings.warn("about to compute", RuntimeWarning, stacklevel=1)
    logging.getLogger("kernel").warning("still computing")
    os.write(1, b"\xff\xfe\n")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    out.copy_((torch.softmax(s, -1) @ v).transpose(1, 2))
